# make app: from nothing to a cat/dog app in a browser.  make test: all tests.  make help: the rest.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# TORCH=cpu: PyTorch without CUDA, from its own index. An existing .venv keeps the variant it was made with.
MADE_WITH := $(shell cat .venv/installed 2>/dev/null)
TORCH ?= $(MADE_WITH)
# WORDS="grizzly 'black bear' teddy": labels of the app. Without them: the model that there is, or one of cats and dogs.
WORDS ?=
# Number of test processes; many tests wait for a browser or a deadline, so this may exceed the number of cores
JOBS ?= 3
.DEFAULT_GOAL := help
.PHONY: help app site lab hooks repository screenshot test nightly test-notebooks outputs bench readme clean browser

help: ## this list
	@grep -hE '^[a-zA-Z._-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([^:]+):.*## /\1\t/' | expand -t 18

.venv: .venv/installed ## only create the environment
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'catdog needs Python 3.11 or later: make PYTHON=/path/to/python3.11'; exit 2; }
ifeq ($(TORCH),cpu)
	@echo 'Making .venv with PyTorch without CUDA: it downloads 0.7 GB and takes 2.6 GB of disk, in about 2 minutes.'
else
	@echo 'Making .venv: it downloads 3.4 GB and takes 7.2 GB of disk, in about 3 minutes (on Linux; elsewhere, and by'
	@echo '"make TORCH=cpu ...", which leaves out CUDA, 0.7 GB and 2.6 GB of disk).'
endif
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
ifneq ($(TORCH),)
	$(BIN)/python -m pip install -q -c constraints.txt --index-url https://download.pytorch.org/whl/$(TORCH) torch torchvision
endif
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@echo '$(TORCH)' >$@
ifneq ($(TORCH),$(MADE_WITH))
ifneq ($(wildcard .venv/installed),)
$(error .venv has another variant of PyTorch: move it away (mv .venv .venv.old) to make one with TORCH=$(TORCH))
endif
endif

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
test-notebooks: .venv/installed ## run the notebooks' cells without comparing their outputs
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --timing --n-workers $(JOBS)
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
