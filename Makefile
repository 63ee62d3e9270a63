# One door: `make demo` and `make test` each do all their set-up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file stays in one process: its tests share what was made for them.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-fast check fix clean rollouts bench

help:            ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(READY)  ## virtual environment, dependencies and the embedded model

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "retrm needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version); call make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing torch and the rest without a word: a few minutes, once'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m retrm.backbone.embedded
	touch $(READY)

demo: setup      ## the main job on real answers: read once, fit five heads, compare, answer live
	$(BIN)/python recipes/demo/run.py

test: setup      ## the whole test suite
	@echo 'the whole suite, in two processes: some 12 minutes on two cores; make test-fast leaves out the slow tests'
	$(BIN)/python -m pytest $(IN_TWO)

test-fast: setup ## without the tests that need the real model or take long
	$(BIN)/python -m pytest $(IN_TWO) -m "not slow" tests/unit tests/contracts tests/properties

check: setup     ## format, lint, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

fix: setup       ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup     ## speed against peers, under a quarter of an hour on two free cores
	$(BIN)/python benchmarks/all.py

rollouts: setup  ## make the demo's committed answers again
	bash recipes/demo/make_rollouts.sh

clean:           ## remove the environment and everything that was made
	rm -rf $(VENV) runs build dist .pytest_cache .hypothesis .ruff_cache
