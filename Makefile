# Two commands: `make quickstart` and `make test`. Both set up .venv first. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FILES ?= 2
QUICKSTART := jobs/configs/quickstart.yaml
REQUIREMENTS := requirements/cpu.txt
SECONDS ?= 60
export UV_COMPILE_BYTECODE := 1
export UV_BUILD_CONSTRAINT := requirements/build.txt
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-emit-index-url --generate-hashes
INSTALL := $(BIN)/uv pip install --quiet --require-hashes --python
AUDIT := .cache/audit

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test faults clusters check format fuzz requirements audit sbom clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Create .venv with the pinned requirements (about a minute, 7 GB).

$(VENV)/.ready: $(REQUIREMENTS) requirements/uv.txt requirements/build.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(INSTALL) $(BIN)/python -r $(REQUIREMENTS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

quickstart: setup ## Run the whole method on satellite chips. FULL=1 tunes the synthesizer first.
ifeq ($(FULL),1)
	$(BIN)/adamllm pocket seed runs/seed --images 4000
	$(BIN)/adamllm run jobs/configs/quickstart_tuned.yaml
else
	$(BIN)/adamllm run $(QUICKSTART)
endif

test: setup ## Run the test suite, real vLLM, DeepSpeed and Ray included, FILES=2 files at a time.
	$(BIN)/pytest --numprocesses $(FILES) --dist loadfile --no-loadscope-reorder

faults: setup ## Many deaths of drivers in a row, and a soak of three minutes: what make test leaves out.
	$(BIN)/pytest -m faults tests/faults
	$(BIN)/python -m benchmarks.soak --minutes 3

clusters: setup ## Submit jobs to real Ray clusters with tokens, and kill under them: what make test leaves out.
	$(BIN)/pytest -m clusters

check: setup ## Format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Rewrite files the way `make check` wants them.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: setup ## Fuzz the readers of foreign bytes, guided by coverage, SECONDS=60 each.
	$(BIN)/python -m benchmarks.fuzz_guided --seconds $(SECONDS)

requirements: setup ## Pin the dependencies of pyproject.toml anew, with hashes.
	$(COMPILE) pyproject.toml --extra cpu --extra quickstart --extra dev --output-file requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --extra quickstart --output-file requirements/gpu.txt
	for group in uv build audit; do $(COMPILE) --group $$group --output-file requirements/$$group.txt || exit 1; done

$(AUDIT)/.ready: requirements/audit.txt | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(AUDIT)
	$(INSTALL) $(AUDIT)/bin/python -r requirements/audit.txt
	@touch $@

audit: $(AUDIT)/.ready ## Look every pin up in the advisory database (PyPI's); fails on a known vulnerability.
	for lock in requirements/*.txt; do $(AUDIT)/bin/pip-audit --strict --require-hashes --disable-pip -r $$lock || failed=1; done; exit $${failed:-0}

sbom: $(AUDIT)/.ready ## Write the bills of materials (CycloneDX) of both environments to dist/.
	@mkdir -p dist
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --output-file dist/adamllm-ray-cpu.cdx.json
	$(AUDIT)/bin/cyclonedx-py requirements requirements/gpu.txt --pyproject pyproject.toml --output-reproducible --output-file dist/adamllm-ray-gpu.cdx.json

clean: ## Remove .venv and the runs.
	rm -rf $(VENV) runs
