# make lab     set up everything and open the course in JupyterLab
# make test    set up everything and run all tests, notebooks included
# make course  execute every notebook and write pages to be read in a browser: build/course/index.html
# make store   execute every notebook and store its outputs in it and in its translations, to be committed
# make bench   run all benchmarks and write one table: build/benchmarks.md; BENCH=--quick, or names, for a part of them
# make lint    format and lint only

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: lab test course store bench lint clean

lab: $(READY)
	$(BIN)/sdnb lab

test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

course: $(READY)
	$(BIN)/sdnb course

store: $(READY)
	$(BIN)/sdnb course --store
	$(BIN)/sdnb editions

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sdnb needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lab,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build
