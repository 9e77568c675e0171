# make lab       set up everything and open your copy of the course, sdnb-course, in JupyterLab
# make test      set up everything and run all tests but the longest, notebooks included
# make test-all  those, too
# make fuzz      give the fuzzers in tests/fuzz/ many more inputs than make test does, and others each time; FUZZ=10000 for each
# make versions  try the package and every lesson on Colab's versions, the lowest and the newest; SETS="colab lowest" for a part
# make course    execute every notebook and write pages to be read in a browser: build/course/index.html
# make store     execute every notebook and store its outputs in it and in its translations, to be committed
# make bench     run all benchmarks and write one table: build/benchmarks.md; BENCH=--quick, or names, for a part of them
# make lint      look at format, style and types only

# the first of these that is Python 3.11 or newer
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do $$each -c $(RECENT) 2>/dev/null && echo $$each && break; done)
RECENT = 'import sys; sys.exit(sys.version_info < (3, 11))'
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

PROCESSES = --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: lab test test-all fuzz versions course store bench lint environment clean

lab: $(READY)
	$(BIN)/sdnb lab

test: lint
	$(BIN)/python -m pytest $(PROCESSES)

test-all: lint
	$(BIN)/python -m pytest $(PROCESSES) -m ""

FUZZ ?= 2000

fuzz: $(READY)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest $(PROCESSES) tests/fuzz

versions: $(READY)
	$(BIN)/python -m tests.versions $(SETS)

course: $(READY)
	$(BIN)/sdnb course

store: $(READY)
	$(BIN)/sdnb course --store
	$(BIN)/sdnb editions --execute

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip >/dev/null 2>&1 || $(MAKE) --no-print-directory environment
	@$(BIN)/python -c $(RECENT) || { echo "The Python in $(VENV) is older than 3.11: make clean, then make again"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lab,dev]"
	touch $(READY)

# never half made: what is there and gets no pip is made anew, and removed where that fails
environment:
	@test -n "$(PYTHON)" || { echo "sdnb needs Python 3.11 or newer, and none of python3, python3.13, python3.12, python3.11 is:" \
	  "install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c $(RECENT) || { echo "sdnb needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks what makes environments;" \
	  "on Debian and Ubuntu: sudo apt install $(notdir $(PYTHON))-venv"; exit 1; }
	@test ! -e $(VENV) -o -f $(VENV)/pyvenv.cfg || { echo "$(VENV) is there and is no environment: make VENV=another"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) build
