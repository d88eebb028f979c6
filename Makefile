# make app: from nothing to a cat/dog app in a browser.  make test: all tests.  make help: the rest.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# TORCH: cpu or cu130 and the like: PyTorch from its own index of that name. pip: what pip has, on Linux with CUDA.
# Default: that of an existing .venv, else cpu on Linux without a GPU if its index can be reached, else pip.
TORCH ?=
MADE_WITH := $(if $(wildcard .venv/installed),$(or $(shell cat .venv/installed),pip))
TORCH_INDEX := https://download.pytorch.org/whl
found = $(shell [ "$$(uname)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && $(PYTHON) -c \
	'from urllib.request import urlopen; urlopen("$(TORCH_INDEX)/cpu/", timeout=5)' 2>/dev/null && echo cpu || echo pip)
VARIANT = $(eval VARIANT := $(or $(TORCH),$(MADE_WITH),$(found)))$(VARIANT)
without_cuda = $(or $(filter cpu,$(VARIANT)),$(if $(filter Linux,$(shell uname)),,$(VARIANT)))
# WORDS="grizzly 'black bear' teddy": labels of the app. Without them: the model that there is, or one of cats and dogs.
WORDS ?=
# Number of test processes; many tests wait for a browser or a deadline, so this may exceed the number of cores
JOBS ?= 3
.DEFAULT_GOAL := help
.PHONY: help app site lab hooks repository screenshot test nightly outputs bench readme clean browser

help: ## this list
	@awk -F ':.*## ' '/^[a-zA-Z._-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/installed ## only create the environment
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'catdog needs Python 3.11 or later: make PYTHON=/path/to/python3.11'; exit 2; }
	@echo 'Making .venv with PyTorch from $(if $(filter pip,$(VARIANT)),pip,its index $(VARIANT)), with$(if $(without_cuda),out) CUDA:'
	@echo 'it downloads $(if $(without_cuda),0.7 GB and takes 2.6,3.4 GB and takes 7.2) GB of disk, in two to three minutes.'
	@$(if $(without_cuda),:,echo '"make TORCH=cpu ..." would leave CUDA out: 0.7 GB and 2.6 GB of disk.')
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(if $(filter pip,$(VARIANT)),,$(BIN)/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX)/$(VARIANT) torch torchvision)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@echo '$(VARIANT)' >$@
$(if $(and $(TORCH),$(MADE_WITH),$(filter-out $(MADE_WITH),$(TORCH))),$(error .venv has another variant of PyTorch: \
	move it away (mv .venv .venv.old) to make one with TORCH=$(TORCH)))

app: .venv/installed ## build a model if there is none, then serve the app and print its URL
	@set -- $(WORDS); if [ $$# = 0 ]; then ls models/*/model.onnx >/dev/null 2>&1 || $(BIN)/catdog-build cat dog; \
	else [ -e "$$($(BIN)/python -c 'import sys; from catdog.dataset.folder import default_folder; print(default_folder(sys.argv[1:], "models"))' "$$@")/model.onnx" ] || $(BIN)/catdog-build "$$@"; fi
	@$(BIN)/catdog-app

site: .venv/installed ## the app as a static page, written to site/ and served on localhost
	@$(BIN)/catdog-site
	@$(BIN)/python -m http.server -b 127.0.0.1 -d site

lab: .venv/installed ## JupyterLab on the notebooks, with the app's limit of 64 MB per message
	$(BIN)/jupyter lab nbs --ServerApp.tornado_settings='{"websocket_max_message_size": 67108864}'

test: .venv/installed browser ## pytest, which also runs every notebook and compares its outputs with the saved ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --durations 15
nightly: .venv/installed browser ## pytest, with the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --nightly
outputs: .venv/installed ## execute notebooks and save their outputs: all, or FILES="nbs/02_data.ipynb ..."
	OMP_NUM_THREADS=1 $(BIN)/python .ci/notebooks.py $(FILES)

browser: .venv/installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/get_browser && tests/get_nginx

bench: .venv/installed ## every measurement of bench/, one after the other (long)
	for file in bench/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

readme: .venv/installed ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --log-level ERROR --RegexRemovePreprocessor.patterns='#\| hide' --stdout nbs/index.ipynb | sed -E 's#\]\((images/|[0-9]{2}_)#](nbs/\1#g' >README.md

repository: .venv/installed ## REPO=OWNER/NAME: the project's repository on GitHub, and Colab badges for the chapters
	$(BIN)/python .ci/set_repository.py $(REPO)
	$(MAKE) readme

screenshot: .venv/installed browser ## nbs/images/app_and_cleaner.jpg, the image of the README, on drawn images
	$(BIN)/python nbs/images/app_and_cleaner.py

hooks: .venv/installed ## git hooks that clean and merge notebooks
	$(BIN)/nbdev-install-hooks

clean: ## remove build and test files; never your data or models
	rm -rf build dist *.egg-info .pytest_cache; find catdog tests -name __pycache__ -prune -exec rm -rf {} +
