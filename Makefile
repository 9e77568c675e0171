# make lab     set up everything and open the course in JupyterLab
# make test    set up everything and run all tests, notebooks included
# make course  execute every notebook; the executed copies are left under build/course/
# make store   execute every notebook and store its outputs in it and its translations, to be committed
# make bench   run every benchmark but the doctor's, which needs a checkout of sd-scripts
# make lint    format and lint only

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: lab test course store bench lint clean

lab: $(READY)
	$(BIN)/sdnb lab

test: lint
	$(BIN)/python -m pytest

course: $(READY)
	$(BIN)/sdnb course --out build/course

store: $(READY)
	$(BIN)/sdnb course --out notebooks
	$(BIN)/sdnb editions

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	for name in tiny_sd training_loop live_plot checkpointing adafactor clipping planner doctor_speed; do $(BIN)/python -m benchmarks.$$name --json build/benchmarks/$$name.json || exit 1; done

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
