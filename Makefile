# One command per chore; each sets itself up on a fresh machine with Python >= 3.11.
#
#   PYTHON            the interpreter that the environment is made from (default: python3)
#   TORCH_INDEX_URL   pip index for torch, where the default one would bring CUDA builds of several gigabytes:
#                     make test TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
#   WORKERS           how many tests run at once (default: 2); more disturb those that watch the clock
#   EXTRA, ENGINE     make image: cpu or gpu; what builds it (docker, podman or buildah)

PYTHON ?= python3
TORCH_INDEX_URL ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
TORCH := torch==2.13.0
EXTRA ?= cpu
ENGINE ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LOCK = $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock'

.PHONY: help setup demo test lint types format fuzz chaos power soak bench gpu-check models protos image lock clean

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

demo: $(VENV)/.setup  ## text, forecast, sensor, accents, film and translation through a live server, in the terminal
	$(BIN)/python -m examples.demo

test: $(VENV)/.dev  ## all tests
	$(BIN)/eddy data fetch silero-vad || echo "tests with a model of others will be skipped"
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(VENV)/.dev  ## formatter, linter, lint of protos and Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev  ## rewrite files as the formatter wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write protos

types: $(VENV)/.dev  ## strict type check
	$(BIN)/mypy

fuzz: $(VENV)/.dev  ## damaged requests against a real server, MINUTES=10, SEED=1
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

chaos: $(VENV)/.dev  ## servers killed under load, every output compared: STORE=sqlite|redis|both, KILLS=200, STEPS=1000000, SEED=1
	$(BIN)/python -m tests.chaos --store $(or $(STORE),both) --kills $(or $(KILLS),200) --steps $(or $(STEPS),1000000) \
		--seed $(or $(SEED),1)

power: $(VENV)/.dev  ## the SQLite store after losses of power: HISTORIES=300, POINTS=40, SEED=1; needs Linux and cc
	$(BIN)/python -m tests.power --histories $(or $(HISTORIES),300) --points $(or $(POINTS),40) --seed $(or $(SEED),1)

soak: $(VENV)/.dev  ## ten million steps and a million sessions: what memory does, STORE=memory|sqlite
	$(BIN)/python -m tests.soak --store $(or $(STORE),memory)

bench: $(VENV)/.dev  ## speed figures; JSON=file writes them down
	$(BIN)/python -m benchmarks $(if $(JSON),--json $(JSON))

gpu-check: $(VENV)/.dev  ## laws and benchmarks on a GPU; says so where there is none
	$(BIN)/python -m benchmarks.gpu_check

models: $(VENV)/.dev  ## train and export the shipped models again
	$(BIN)/eddy data fetch
	$(BIN)/eddy train --shipped

protos: $(VENV)/.dev  ## generated code beside the .proto files
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. eddy/v1/*.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=. \
		eddy/v1/inference.proto eddy/v1/generation.proto eddy/v1/sessions.proto eddy/v1/models.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. inference/grpc_service.proto
	sed -i.bak 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' protos/inference/grpc_service_pb2.py
	rm protos/inference/grpc_service_pb2.py.bak

# Docker's format: the OCI one has no health check. Only Docker knows no --format.
image:  ## container image eddy:VERSION-EXTRA; EXTRA=gpu for NVIDIA GPUs
	$(ENGINE) build $(if $(filter docker,$(ENGINE)),,--format docker) --tag eddy:$(VERSION)-$(EXTRA) \
		--build-arg EXTRA=$(EXTRA) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse --verify --quiet HEAD) \
		--build-arg CREATED=$(shell date -u +%Y-%m-%dT%H:%M:%SZ) .

lock: $(VENV)/.dev  ## newer versions and their hashes for the image, within the bounds of pyproject.toml
	$(LOCK) pyproject.toml --extra cpu --extra redis --output-file deploy/requirements-cpu.txt
	$(LOCK) pyproject.toml --extra gpu --extra redis --output-file deploy/requirements-gpu.txt
	echo setuptools | $(LOCK) --no-annotate - --output-file deploy/requirements-build.txt

clean:  ## remove what was generated
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
