# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types contract tests bench lock clean

demo: .venv/installed
	$(BIN)/pomona demo

test: lint types contract tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

contract: .venv/installed
	$(BIN)/lint-imports

tests: .venv/installed
	$(BIN)/pytest

bench: .venv/installed
	$(BIN)/python bench/spine.py

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Pomona needs Python 3.11 or newer, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# The lock is what a fresh environment resolved to from pyproject.toml, less Pomona itself.
lock:
	rm -rf .venv.lock
	$(PYTHON) -m venv .venv.lock
	.venv.lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	{ echo '# Exact versions of everything that `make demo` and `make test` install. Made by `make lock`.'; \
	  .venv.lock/bin/pip list --format=freeze --exclude pomona --exclude pip | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .venv.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
