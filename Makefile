# lori_pl: `make help` lists what can be made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a test is one thread's work; who has none left takes some of another's
WORKERS := -n auto --maxprocesses 8 --dist worksteal
# a test that hangs says where, and fails
LIMIT := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint teacher sweep clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f'Python 3.10 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## Make the virtual environment .venv

quickstart: $(STAMP)  ## Run the main job on the embedded default: train, compare, export a student (7 to 11 minutes)
	$(BIN)/python -m lori_pl quickstart

test: $(STAMP)  ## Run the fast test suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(WORKERS) $(LIMIT) -m "not slow"

test-all: $(STAMP)  ## Run all tests, slow ones included
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(WORKERS)

lint: $(STAMP)  ## Check style, docstrings, annotations and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lori_pl

teacher: $(STAMP)  ## Make the shipped explicit-CoT teacher anew, into runs/teacher
	$(BIN)/python -m lori_pl fit --config configs/method/explicit_cot.yaml --config configs/model/tiny.yaml --config configs/data/synthetic.yaml --config configs/experiment/embedded/teacher.yaml --trainer.default_root_dir runs/teacher

sweep: $(STAMP)  ## Run the ablation sweep rank x seed (resumable; rows that stand in the repository are not made again); SWEEP=file for another
	$(BIN)/python -m lori_pl sweep $(or $(SWEEP),experiments/sweeps/rank.yaml)

clean:  ## Remove the environment, caches and build leftovers (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
