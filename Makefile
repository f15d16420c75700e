# make quickstart   one sweep on the embedded model, from nothing to a report
# make test         the tests
# make check        lint and types
#
# PYTHON=python3.12 make quickstart   uses that interpreter for a new .venv

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check
.DELETE_ON_ERROR:

quickstart: .venv/.installed
	@$(BIN)/harness run sweeps/quickstart.yaml

test: .venv/.installed-test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

# A stamp is newer than what it was made from, so that a second make installs nothing.
.venv/.installed: pyproject.toml constraints.txt .venv/.made
	@echo "Installing into .venv (about 5 GB the first time, some minutes) ..."
	@$(PIP) --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	@$(PIP) --editable '.[test]'
	@touch $@
