# One command for each chore; `make help` lists them. Needs git, make and Python 3.11 or newer, and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Python 3.11 if there is one by that name, else whatever `python3` is (its version is checked below).
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := requirements/install.sh $(BIN)/python
DEMO_READY := $(VENV)/.ready-demo
DEV_READY := $(VENV)/.ready-dev
# An environment of its own: some rivals hold pandas at an older version.
BENCH := .venv-bench
BENCH_READY := $(BENCH)/.ready
ARGS ?=

# Compiled modules are kept: the libraries behind training take many seconds to compile at each start otherwise.
unexport PYTHONDONTWRITEBYTECODE
# Small matrices: threads of the linear algebra library would only get into each other's way, and the workers'.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test test-lowest lint format types proto lock bench bench-forecasts build clean

help: ## List the chores
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(DEMO_READY) ## The whole loop on a year of real flights; writes demo-output/
	$(BIN)/nhm-sched demo $(ARGS)

test: lint ## Lint, types, import layers, then every test
	$(BIN)/python -m pytest $(ARGS)

test-lowest: $(DEV_READY) ## The tests with the lowest supported version of every dependency
	$(BIN)/python -m tox run -e lowest $(if $(ARGS),-- $(ARGS))

lint: $(DEV_READY) types ## Style, formatting, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV_READY) ## Type check
	$(BIN)/mypy

format: $(DEV_READY) ## Format the code and put right what can be put right by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(DEV_READY) ## Regenerate nhm_sched_plugin/pb from proto/
	$(BIN)/python proto/generate.py

lock: $(DEV_READY) ## Compile requirements/*.txt from pyproject.toml; `make lock ARGS=--upgrade` for the newest versions
	requirements/lock.sh $(ARGS)

bench: $(DEV_READY) ## Every benchmark, each printing its table
	for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename "$$file" .py); done

bench-forecasts: $(BENCH_READY) ## The forecasts beside every rival; ARGS="--data FOLDER" for your own load
	$(BENCH)/bin/python -m benchmarks.forecasts $(ARGS)

build: $(DEV_READY) ## The sdist and the wheel, in dist/
	$(BIN)/python -m build --no-isolation

clean: ## Remove everything made here, the environment too
	rm -rf $(VENV) $(BENCH) .tox dist build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments: made once, again only when a lock file or pyproject.toml changes

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON)' cannot make virtual environments (on Debian and Ubuntu: install python3-venv)." >&2; exit 1; }

$(DEMO_READY): requirements/demo.txt requirements/install.sh pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs into $(VENV) (once)"
	@$(INSTALL) --quiet --requirement requirements/demo.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_READY): requirements/dev.txt requirements/install.sh pyproject.toml | $(BIN)/python
	@echo "Installing what development needs into $(VENV) (once)"
	@$(INSTALL) --quiet --requirement requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@ $(DEMO_READY)

$(BENCH_READY): requirements/bench.txt requirements/install.sh pyproject.toml | $(BIN)/python
	@echo "Installing the rivals into $(BENCH) (once)"
	@$(BIN)/python -m venv $(BENCH)
	@requirements/install.sh $(BENCH)/bin/python --quiet --requirement requirements/bench.txt
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
