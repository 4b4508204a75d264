PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test lint format typecheck reproduce clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## Create .venv with everything pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup  ## The bundled model reasons with compression on, then a table and an HTML report
	$(BIN)/lightthinker demo

test: setup lint typecheck  ## Lint, types, import arrows and the whole CPU test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not gpu"

lint: setup  ## ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: setup  ## mypy strict
	$(BIN)/mypy

format: setup  ## Format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

TARGETS ?= main_table budget_sweep long_reasoning
reproduce: setup  ## Run what the committed tables say and write them (TARGETS="main_table ..." ARGS="--checkpoint ...")
	$(BIN)/python scripts/reproduce.py $(TARGETS) $(ARGS)

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
