# Every target sets up what it needs: a virtual environment in .venv with the packages of pyproject.toml.
# Only Python 3.11 or newer has to be there.

export PATH := $(or $(PATH),/usr/local/bin:/usr/bin:/bin)

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)
TESTS  ?=
# Processes that run tests side by side, each with a server of its own; 0: none beside this one, as --pdb wants it.
JOBS   ?= 2
# One that crashes ends the run: pytest-xdist would wait for ever for the tests of its file.
XDIST  := -n $(JOBS) --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: help demo test faults pooled soak check bench freeze docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: $(STAMP)  ## watch orders being processed, with faults, for about 20 seconds
	@$(BIN)/pgqueue demo

test: $(STAMP)  ## run the tests (TESTS='-k enqueue -x' passes options on to pytest)
	@echo "==> tests"
	@$(BIN)/python -m pytest $(XDIST) --dist loadfile --no-loadscope-reorder $(TESTS)

faults: $(STAMP)  ## inject every fault of the matrix into real workers, for some minutes
	@echo "==> faults"
	@FAULTS=all $(BIN)/python -m pytest $(XDIST) --dist loadgroup tests/faults $(TESTS)

# Behind PgBouncer (Debian's package) in transaction mode, which nobody is told of; what is about sessions says so and is left out.
POOLED := tests/conformance $(addprefix tests/worker/test_,$(addsuffix .py,claiming outcomes transactional results cancelling \
	stopping settling uniqueness batches steps progress schedule_sync keeping_time retention timeouts pooled))

pooled: $(STAMP)  ## run the core of the tests behind PgBouncer, for some minutes
	@echo "==> pooled"
	@PGQUEUE_TEST_POOLER=pgbouncer $(BIN)/python -m pytest $(XDIST) --dist loadfile --no-loadscope-reorder $(POOLED) $(TESTS)

soak: $(STAMP)  ## inject faults at random at the default times (SOAK_SECONDS=600, SOAK_SEED)
	@echo "==> soak"
	@FAULTS=none SOAK_SECONDS=$${SOAK_SECONDS:-600} $(BIN)/python -m pytest -s tests/faults/test_soak.py tests/faults/test_disk.py $(TESTS)

check: $(STAMP)  ## ruff, mypy --strict, import-linter, the SQL's syntax
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check --diff .
	@echo "==> mypy"
	@$(BIN)/mypy --strict
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo
	@echo "==> SQL"
	@$(BIN)/python -m tests.check_sql

bench: $(STAMP)  ## measure this machine
	@$(BIN)/pgqueue bench

freeze: $(STAMP)  ## write the newest migration's frozen SQL from sql/
	@$(BIN)/python migrations/freeze.py

docs: $(STAMP)  ## write the reference pages from docstrings and SQL comments
	@$(BIN)/python -m docs.build

clean:  ## remove what the other targets made
	@rm -rf $(VENV) build dist .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again when pyproject.toml changes; the stamp is written last, so that a broken run starts over.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer (with venv) is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "==> virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> packages (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
