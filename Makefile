PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-unit lint chaos deploy s3 s3-stop report sweep clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(INSTALLED)  ## install into .venv

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[s3,dev]'
	@touch $@

demo: $(INSTALLED)  ## run the whole chain on a tiny model, here and now
	@$(BIN)/python -m infra.run demo

test: test-unit lint  ## run every test (at most 15 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m slow

test-unit: $(INSTALLED)  ## run the quick tests (under a minute)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow'

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SEED ?= 1
chaos: $(INSTALLED)  ## the long form of tests/chaos: kills, faults, full disks, another machine (about an hour, 25 GB)
	$(BIN)/python -m tests.chaos --seed $(SEED) --output chaos.json

deploy: $(INSTALLED)  ## bring the Prefect server to what pipelines.yaml says
	@$(BIN)/python -m infra.deploy

s3: $(INSTALLED)  ## start the local S3 server in the background
	@$(BIN)/python -m infra.local_s3 start

s3-stop: $(INSTALLED)  ## stop the local S3 server; its data stay
	@$(BIN)/python -m infra.local_s3 stop

report: $(INSTALLED)  ## open the page of the last run
	@$(BIN)/python -m infra.on_store tasks.report

sweep: $(INSTALLED)  ## show what no finished run needs of the store; deletes nothing
	@$(BIN)/python -m infra.on_store tasks.sweep

clean:  ## remove what runs left in this folder: artifacts, servers' data, figures
	rm -rf .local demo
