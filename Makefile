# Two commands from a fresh clone: `make demo` and `make test`. Each makes its own virtual environment
# from nothing and installs what it needs; a second call finds the stamp and goes straight to work.

PYTHON ?= python3
# Test processes at once.
JOBS ?= 2
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint docs clean
.DEFAULT_GOAL := demo

## demo: molecules, chairs, a piano and emoji from the shipped models, in out/
demo: .venv/.installed
	$(BIN)/diffkit generate molecule -n 16 --seed 7 --out out/
	$(BIN)/diffkit generate pointcloud "office chair" -n 4 --out out/chairs/
	$(BIN)/diffkit generate audio "bright electric piano, C4" -n 4 --out out/piano/
	$(BIN)/diffkit generate image "smiling cat" -n 8 --out out/cats/

## test: everything but the slow tests
test: .venv/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(JOBS)

## lint: style, format and types
lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

## docs: the site, in docs/_build/html; a warning is an error
docs: .venv/.installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --builder html docs docs/_build/html

clean:
	rm -rf .venv docs/_build docs/auto_gallery

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffkit needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The package is installed in place, so only a change of what it depends on calls for another install.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) .
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[dev]'
	touch $@ .venv/.installed

.venv/.installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[docs]'
	touch $@ .venv/.installed
