# Every target does its own set-up in $(VENV): git, make and Python 3.11 or newer are enough.
#
#   make demo            the main job on real sockets: a stand-in for LinkedIn refuses, tokenkeeper recovers
#   make test            all tests, with the branch coverage of the package (at least 95 %)
#   make check           ruff, mypy --strict, and the checks of documents and requirements
#   make docs            writes the pages that are made: docs/providers.md from the catalogue, docs/cli.md from --help
#   make faults          the trials: real processes killed, stopped, cut off; a short round (make soak: the long one)
#   make fuzz            10 million hostile answers to the parsers (FUZZ=100000 for a short run): an hour or two
#   make mutants         breaks the renewal's path by hand, a line at a time: does a test notice each?
#   make interop         against oidc-provider (needs Node 20 and npm) and django-oauth-toolkit
#   make bench           the benchmarks, with peers side by side (BENCH=--quick for a short run)
#   make wheel           builds the wheel and runs the tests against it, away from this checkout
#   make requirements    resolves requirements/*.txt anew from pyproject.toml
#   make clean           removes what these targets made
#
# Another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13, or make wheel WHEEL_PYTHON=python3.13.
# More for pytest: make test PYTEST="-x -k claim"; processes that share the tests: JOBS=4, or JOBS=0 for one alone
# (three by default: tests wait a third of their time for disks, sockets and other processes).

VENV ?= .venv
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
WHEEL_PYTHON ?= $(BIN)/python
JOBS ?= 3
PYTEST ?=
MUTANTS ?=
BENCH ?=
FUZZ ?= 10000000
DEMO ?=
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet \
    --no-emit-index-url --no-emit-find-links $(UPGRADE)
OIDC_PROVIDER := tests/interop/oidc-provider
TRIALS ?= 1
SHARED := -n $(JOBS) --dist worksteal

.PHONY: demo test faults soak fuzz mutants interop check docs format bench wheel requirements clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	@$(BIN)/tokenkeeper demo $(DEMO)

test: $(VENV)/.dev
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(SHARED) $(PYTEST)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m campaign -n $(TRIALS) --dist worksteal $(PYTEST)

soak: $(VENV)/.dev
	TOKENKEEPER_CAMPAIGN=long $(BIN)/python -m pytest -m campaign -n $(TRIALS) --dist worksteal $(PYTEST)

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_run.py $(FUZZ)

interop: $(VENV)/.interop $(OIDC_PROVIDER)/node_modules/.package-lock.json
	$(BIN)/python -m pytest -m interop tests/interop $(PYTEST)

mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py --jobs $(JOBS) $(MUTANTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check.py

docs: $(VENV)/.dev
	$(BIN)/python tools/catalogue.py
	$(BIN)/python tests/cli/test_cli_reference.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.peers
	@$(BIN)/python benchmarks/run.py $(BENCH)

wheel: $(VENV)/.dev
	@tools/test_wheel.sh $(VENV) $(WHEEL_PYTHON) $(SHARED) $(PYTEST)

requirements: $(VENV)/.dev
	$(COMPILE) --group bootstrap --output-file requirements/uv.txt
	$(COMPILE) pyproject.toml --extra cli --group build --output-file requirements/run.txt
	$(COMPILE) pyproject.toml --all-extras --group build --group dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --all-extras --group peers --constraint requirements/dev.txt --output-file requirements/peers.txt
	$(COMPILE) --group interop --constraint requirements/dev.txt --output-file requirements/interop.txt
	$(BIN)/python tools/check.py

clean:
	rm -rf $(OIDC_PROVIDER)/node_modules
	rm -rf $(VENV) dist build htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tokenkeeper needs Python 3.11 or newer: none found; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/python
	@tools/install.sh $(VENV) requirements/run.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@tools/install.sh $(VENV) requirements/dev.txt
	@touch $@

$(VENV)/.interop: requirements/interop.txt $(VENV)/.dev
	@tools/install.sh $(VENV) requirements/interop.txt
	@touch $@

# Without npm nothing is installed; the tests say what was left out.
$(OIDC_PROVIDER)/node_modules/.package-lock.json: $(OIDC_PROVIDER)/package-lock.json
	@command -v npm >/dev/null || exit 0; \
	npm ci --prefix $(OIDC_PROVIDER) --ignore-scripts --no-audit --no-fund --loglevel=error && touch $@

$(VENV)/.peers: requirements/peers.txt $(VENV)/.dev
	@tools/install.sh $(VENV) requirements/peers.txt
	@touch $@
