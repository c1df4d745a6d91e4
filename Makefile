# Two commands: `make quickstart` and `make test`. Both set up .venv first. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FILES ?= 2
QUICKSTART := jobs/configs/quickstart.yaml
REQUIREMENTS := requirements/cpu.txt
export UV_COMPILE_BYTECODE := 1
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test clusters check format requirements clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Create .venv with the pinned requirements (about a minute, 7 GB).

$(VENV)/.ready: $(REQUIREMENTS) pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(REQUIREMENTS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

quickstart: setup ## Run the whole method on satellite chips. FULL=1 tunes the synthesizer first.
ifeq ($(FULL),1)
	$(BIN)/adamllm pocket synthesizer runs/quickstart-synthesizer
	$(BIN)/adamllm run $(QUICKSTART) --set models.synthesizer=runs/quickstart-synthesizer --set run.output=runs/quickstart-full
else
	$(BIN)/adamllm run $(QUICKSTART)
endif

test: setup ## Run the test suite, real vLLM, DeepSpeed and Ray included, FILES=2 files at a time.
	$(BIN)/pytest --numprocesses $(FILES) --dist loadfile --no-loadscope-reorder

clusters: setup ## Submit jobs to real Ray clusters with tokens, and kill under them: what make test leaves out.
	$(BIN)/pytest -m clusters

check: setup ## Format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Rewrite files the way `make check` wants them.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

requirements: setup ## Pin the dependencies of pyproject.toml anew.
	$(COMPILE) --extra cpu --extra quickstart --extra dev --output-file requirements/cpu.txt
	$(COMPILE) --extra gpu --extra quickstart --output-file requirements/gpu.txt

clean: ## Remove .venv and the runs.
	rm -rf $(VENV) runs
