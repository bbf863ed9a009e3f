# Every command a developer or the CI needs. `make help` lists them.
#
# PYTHON          the interpreter .venv is made with (3.11 or newer)
# TEST_PROCESSES  how many processes the tests are spread over; a file's tests stay in one of them
# PYTEST          more arguments for pytest, for example: make test PYTEST="-k range -x"
# BENCH           arguments for the benchmark, for example: make bench BENCH="--quick --only cold"

PYTHON ?= python3
TEST_PROCESSES ?= 2
PYTEST ?=
BENCH ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TOO_OLD := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help env run demo test check format ci packages crash crash-transfers soak bench clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

env: $(INSTALLED) ## make .venv with contentapp (editable) and the development tools

run: env ## start the proxy with embedded defaults
	@$(BIN)/contentapp serve

demo: env ## show the main job without the internet
	@$(BIN)/contentapp demo

test: env ## run the tests; what needs a missing program is skipped, with the reason
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST)

check: env ## format, lint and types, over code, tests and benchmarks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env ## put the code in the format that check wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ci: packages ## what the CI runs: install the real clients and servers, check, test without any skip
	$(MAKE) env
	$(MAKE) check
	FORBID_SKIPS=1 $(MAKE) test

packages:
	@./.ci/install-packages

crash: env ## kill it at many random moments (POINTS=200)
	CONTENTAPP_CRASH_POINTS=$(or $(POINTS),200) $(BIN)/python -m pytest tests/scenarios/test_p5_crash.py -k random

crash-transfers: env ## kill it at many named steps of transfers (POINTS=200)
	CONTENTAPP_CRASH_POINTS=$(or $(POINTS),200) $(BIN)/python -m pytest tests/crash/test_transfers.py

soak: env ## random contents, faults, devices, kills and evictions for a long time (SECONDS=600 SEED=…)
	CONTENTAPP_SOAK_SECONDS=$(or $(SECONDS),600) CONTENTAPP_SEED=$(SEED) $(BIN)/python -m pytest -s tests/scenarios/test_random.py

bench: env ## measure the proxy beside nginx and docker-registry
	$(BIN)/python -m benchmarks $(BENCH)

clean: ## remove all that make made
	rm -rf $(VENV) build dist contentapp.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build backend is installed from the same pins, so that nothing is fetched unpinned in an isolated build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c '' 2>/dev/null \
		|| { echo "$(PYTHON) can't be run; name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(TOO_OLD)' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@{ $(BIN)/python -c '$(TOO_OLD)' && $(PIP) --version; } >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --constraint constraints.txt setuptools
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@
