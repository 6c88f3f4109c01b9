# Everything runs in .venv, made from requirements.lock. `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint audit docs bench bench-gpu lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready ## make .venv with the locked versions

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "BTM needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv (PyTorch is large: this takes a minute or several)"
	@$(PYTHON) -m venv .venv
	@# The lock names everything: with dependencies, pip in hash mode would look at newer versions, and stop there.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/ready ## run BTM on digits-lt, ending with a table of every model
	@$(BIN)/btm run digits-lt

test: .venv/ready ## pass the tests
	@$(BIN)/python -m pytest

check: test lint audit ## all that CI runs

lint: .venv/ready ## style, types, architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: .venv/ready ## look for known vulnerabilities of the locked dependencies
	@$(BIN)/python .ci/audit.py

docs: .venv/ready ## write docs/reference/ anew from the code, and build the documentation into site/
	@$(BIN)/python docs/tools/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict # with --quiet it would not see warnings
	@echo "site/index.html"

bench: .venv/ready ## measure, and write benchmarks/results/cpu.json
	@$(BIN)/python -m benchmarks.run

bench-gpu: .venv/ready ## measure on one NVIDIA GPU, and write benchmarks/results/gpu.json
	@test -f .btm/cifar100-lt.safetensors || $(BIN)/python -m benchmarks.gpu --prepare .btm/cifar100-lt.safetensors
	@$(BIN)/python -m benchmarks.gpu --data .btm/cifar100-lt.safetensors

lock: ## write requirements.lock and docker/servers.lock anew (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet -o requirements.lock
	uv pip compile docker/servers.in --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet -o docker/servers.lock

clean: ## remove .venv and caches; runs under .btm stay
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
