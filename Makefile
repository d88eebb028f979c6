# make app: from nothing to a cat/dog app in a browser.  make test: all tests.  make help: the rest.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.PHONY: help app site lab test test-notebooks test-python bench readme clean browser

help: ## this list
	@grep -hE '^[a-zA-Z._-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([^:]+):.*## /\1\t/' | expand -t 18

.venv: .venv/installed ## the environment alone
.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'catdog needs Python 3.10 or later: make PYTHON=/path/to/python3.11'; exit 2; }
	@echo 'Making .venv: about 3 minutes and 6 GB on Linux, where torch brings CUDA along.'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

app: .venv/installed ## build a model if there is none, then serve the app and print its address
	@ls models/*/model.onnx >/dev/null 2>&1 || $(BIN)/catdog-build cat dog
	@$(BIN)/catdog-app

site: .venv/installed ## the app as a page without a server, written to site/ and served on localhost
	@$(BIN)/catdog-site
	@$(BIN)/python -m http.server -b 127.0.0.1 -d site

lab: .venv/installed ## JupyterLab on the notebooks; one message may have 64 MB, as in the app
	$(BIN)/jupyter lab nbs --ServerApp.tornado_settings='{"websocket_max_message_size": 67108864}'

test: test-notebooks test-python ## the notebooks' cells, then pytest; installs what they need, a browser included
test-notebooks: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --timing
test-python: .venv/installed browser
	$(BIN)/pytest

browser: .venv/installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/get_browser && tests/get_nginx

bench: .venv/installed ## every measurement of bench/, one after the other (long)
	for file in bench/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

readme: .venv/installed ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --log-level ERROR --RegexRemovePreprocessor.patterns='#\| hide' --output-dir . --output README nbs/index.ipynb

clean: ## remove what the tests and builds leave; never your data or models
	rm -rf build dist *.egg-info .pytest_cache; find catdog tests -name __pycache__ -prune -exec rm -rf {} +
