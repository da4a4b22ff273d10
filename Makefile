# One command per chore; each sets itself up on a fresh machine with Python >= 3.11.
#
#   PYTHON            the interpreter that the environment is made from (default: python3)
#   TORCH_INDEX_URL   pip index for torch, where the default one would bring CUDA builds of several gigabytes:
#                     make test TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
TORCH := torch==2.13.0

.PHONY: help setup demo test lint types format fuzz bench gpu-check models protos clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# The service and the client, without torch.
$(VENV)/.setup: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Eddy needs Python >= 3.11, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu]'
	touch $@

# torch first and alone: exactly this version, from the index that was chosen.
$(VENV)/.dev: $(VENV)/.setup
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) '$(TORCH)'
	$(PIP) --editable '.[cpu,train,test,dev]'
	touch $@

setup: $(VENV)/.setup  ## leave the environment in .venv, with .venv/bin/eddy

demo: $(VENV)/.setup  ## text and a time series through a live server, in the terminal
	$(BIN)/python -m examples.demo

test: $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## formatter, linter, proto lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos

format: $(VENV)/.dev  ## rewrite files as the formatter wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write protos

types: $(VENV)/.dev  ## strict type check
	$(BIN)/mypy

fuzz: $(VENV)/.dev  ## damaged requests against a real server, MINUTES=10, SEED=1
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

bench: $(VENV)/.dev  ## speed figures; JSON=file writes them down
	$(BIN)/python -m benchmarks $(if $(JSON),--json $(JSON))

gpu-check: $(VENV)/.dev  ## laws and benchmarks on a GPU; says so where there is none
	$(BIN)/python -m benchmarks.gpu_check

models: $(VENV)/.dev  ## train and export the shipped models again
	$(BIN)/eddy models

protos: $(VENV)/.dev  ## generated code beside the .proto files
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. eddy/v1/*.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=. \
		eddy/v1/inference.proto eddy/v1/generation.proto eddy/v1/sessions.proto eddy/v1/models.proto

clean:  ## remove what was generated
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
