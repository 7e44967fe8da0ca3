# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check format lean clean

demo: $(STAMP)
	$(BIN)/flawscope demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest tests

# Static checks read a tree of links, because none of them follows the mapping of folders to packages.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/linktree.py
	$(BIN)/mypy
	cd build/typing && ../../$(BIN)/lint-imports --config ../../pyproject.toml

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lean install: one backend, no training, no reports. Proves size, import time and equal scores.
lean: $(STAMP)
	$(BIN)/python tools/lean_install.py

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flawscope needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $(STAMP)

clean:
	rm -rf build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
