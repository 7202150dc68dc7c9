# Daily commands. Each sets up what it needs; all they ask of the machine is Python 3.11+, make and a C library.

PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.14,\
            $(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
ARGS   ?=

# The root is the package: what Python starts here must not find `ir` or `cli` as top-level modules.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint fix types bench wheel lock clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.core  ## optimise a convolutional network, verify it, write out/dqn.html
	@mkdir -p out
	$(BIN)/nestegg optimize zoo:dqn --report out/dqn.html

test: $(VENV)/.dev  ## the tests (ARGS="-k name" for some)
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

test-slow: $(VENV)/.dev  ## the tests marked slow, with Hypothesis' long profile
	$(BIN)/pytest -n $(WORKERS) -m slow --hypothesis-profile=long $(ARGS)

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .

fix: $(VENV)/.dev  ## what ruff can repair by itself
	$(BIN)/ruff check --fix .

types: $(VENV)/.dev  ## pyright
	$(BIN)/pyright

bench: $(VENV)/.bench  ## kernels against jax.jit, numpy, onnxruntime and the machine's peak
	$(BIN)/python benchmarks/kernels.py matmul --sizes 256,512,1024 --threads 1 $(ARGS)

wheel: $(VENV)/.dev  ## build the wheel in dist/, install it in a clean environment, check its contents
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	rm -rf build
	$(BIN)/python .ci/check_wheel.py dist/*.whl

setup: $(VENV)/.dev  ## only the environment, for editors

lock: ## resolve all dependencies anew and write constraints.txt
	$(PYTHON) .ci/lock.py

clean:  ## remove all that was made, the environment too
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment, in three layers; a stamp says which layer is there ----

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nestegg needs Python 3.11 or newer, and none was found (looked for python3 and\
	 python3.11 to python3.14). Install one, or say which: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "nestegg needs Python 3.11 or newer;\
	 '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not there'). Say which: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' has no venv or ensurepip module:\
	 install it (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# setuptools comes first, so that the package itself is built with the pinned one and not in an isolated environment.
define install
	@echo "setting up $(VENV) for nestegg$(EXTRAS) (the first time takes a minute)"
	$(PIP) install -qq -c constraints.txt 'setuptools>=77'
	$(PIP) install -qq -c constraints.txt --no-build-isolation -e '.$(EXTRAS)'
	@mkdir -p $(VENV)/house && ln -sfn ../.. $(VENV)/house/nestegg   # for pyright: the package under its name
	@touch $@
endef

$(VENV)/.core: EXTRAS :=
$(VENV)/.dev: EXTRAS := [dev]
$(VENV)/.bench: EXTRAS := [dev,bench]
$(VENV)/.core $(VENV)/.dev $(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	$(install)
