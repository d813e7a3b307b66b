# quantry: from a fresh clone with Python >= 3.11 and a C++ toolchain.
#
#   make demo    build, install, serve two small models on QUANTRY_PORT and talk to them
#   make test    build, install, lint, type-check, check import rules, run the tests
#   make help    everything else

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILDER := $(wildcard scripts/*.py scripts/pins.toml scripts/llama_build/* scripts/llama_build/probes/*)

# The installed quantry starts children with `python -m`; none of them may take modules from the caller's environment.
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(STAMPS)/runtime ## Imports and quantizes two small models, serves them on QUANTRY_PORT, shows a conversation
	@$(SMOLLM2) $(BIN)/quantry demo

.PHONY: setup
setup: $(STAMPS)/dev ## Installs quantry and what its tests need into .venv

.PHONY: test
test: setup ## Installs everything, then `make check`
	@$(MAKE) --no-print-directory check

.PHONY: check
check: lint ## Lint, types, import rules and tests, on what is installed already
ifeq ($(strip $(PYTEST_ARGS)),)
	@$(call say,pytest: what needs no process$(comma) on every core)
	@$(SMOLLM2) $(BIN)/python -m pytest tests/unit --numprocesses logical --dist loadfile
	@$(call say,pytest: what has processes and clocks of its own$(comma) one at a time)
	@$(TEST_MODELS) $(BIN)/python -m pytest tests/integration tests/dialects
else
	@$(call say,pytest)
	@$(TEST_MODELS) $(BIN)/python -m pytest $(PYTEST_ARGS)
endif

.PHONY: lint
lint: $(STAMPS)/dev ## Formatting, lint, types and import rules
	@$(call say,ruff format)
	@$(BIN)/ruff format --check --quiet . || { echo "run '$(BIN)/ruff format .'" >&2; exit 1; }
	@$(call say,ruff check)
	@$(BIN)/ruff check --quiet .
	@$(call say,mypy)
	@$(BIN)/mypy
	@$(call say,lint-imports)
	@$(BIN)/lint-imports --no-cache

.PHONY: format
format: $(STAMPS)/dev ## Formats and fixes what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: wheel
wheel: $(STAMPS)/venv ## Finds (or builds) the llama-cpp-python wheel for this machine and prints its path
	@$(BIN)/python scripts/build_llama.py

.PHONY: lock
lock: $(STAMPS)/venv ## Resolves every dependency again and writes constraints.txt
	@$(BIN)/python scripts/lock.py

.PHONY: clean
clean: ## Removes .venv and every cache in the clone; wheels and models kept outside stay
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets above stand on; a stamp holds the answer of its step, so a second run takes seconds ---

# Finds the test models or fetches them, every time: nothing that needs it is skipped because it is not there.
SMOLLM2 = model="$$($(BIN)/python scripts/fetch_smollm2.py)"; QUANTRY_SMOLLM2="$$model"
TEST_MODELS = checkpoint="$$($(BIN)/python scripts/fetch_minilm.py)"; $(SMOLLM2) QUANTRY_TEST_MINILM="$$checkpoint"
comma := ,
say = printf '\n== %s\n' '$(1)'

# python3 may be a shim for a version that is not there: the first one that runs and is new enough is taken.
$(STAMPS)/venv:
	@for python in $${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then echo "quantry needs Python 3.11 or newer on PATH (or PYTHON=/path/to/it)" >&2; exit 1; fi; \
	rm -rf $(VENV); \
	"$$found" -m venv $(VENV) || { echo "the venv module is missing (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; \
	$(PIP_INSTALL) pip setuptools wheel
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/wheel: $(STAMPS)/venv constraints.txt $(BUILDER)
	@path="$$($(BIN)/python scripts/build_llama.py)"; echo "$$path" > $@

$(STAMPS)/runtime: $(STAMPS)/wheel pyproject.toml constraints.txt
	@$(call say,installing quantry)
	@# Forced: another build of the same version may be installed.
	@$(PIP_INSTALL) --force-reinstall --no-deps "$$(cat $(STAMPS)/wheel)"
	@$(PIP_INSTALL) --no-build-isolation --editable '.[demo]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/runtime
	@$(call say,installing what the tests need)
	@$(PIP_INSTALL) --no-build-isolation --editable '.[demo,dev]'
	@touch $@
