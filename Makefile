# `make` shows what there is. Everything works on a fresh clone: what a target needs, it sets up.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# Test files at a time. Half of the tests' time is waiting: for sessions to end, for brokers to start.
# In the order of their names, that is the long ones first: by number of tests, the one of six minutes would come last, alone.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test unit integration faults model images compose containers exercises reproduce bench peers lint format types docs lock clean manifests cluster node
.DELETE_ON_ERROR:

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install what is needed into .venv (a second time: nothing to do)

# Exactly the locked packages, checked by hash: the lock is complete, so nothing is resolved; then this project itself, without looking for anything.
$(READY): requirements.lock pyproject.toml
	@python=$$(scripts/prerequisites) && { [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup ## The whole system at work, until Ctrl-C; ONCE=1: ends by itself, non-zero unless all adds up
	@$(BIN)/mini-visa demo $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

up: setup ## The whole system, until Ctrl-C
	@$(BIN)/mini-visa up $(ARGS)

test: setup ## All tests (ARGS="-k expiry" for some; JOBS=1: one after the other)
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

unit: setup ## Tests without a broker
	$(BIN)/pytest tests/unit tests/property $(ARGS)

integration: setup ## Tests on a real broker
	$(BIN)/pytest tests/integration $(ARGS)

images: setup ## The container images
	@docker/build

compose: images ## The whole system in containers, until Ctrl-C
	@docker/machine compose -f docker/compose.yaml up $(ARGS)

containers: setup ## Tests on real containers; starts a Docker engine of its own where none runs
	$(BIN)/pytest tests/containers $(ARGS)

exercises: setup ## The deployment under faults, for minutes: containers killed and cut off, rights on Kafka (ARGS="-k container")
	$(BIN)/pytest -m exercise tests/containers tests/kubernetes $(ARGS)

reproduce: setup ## Build each image twice with nothing from a cache, and compare (ARGS=mini-visa for one)
	docker/reproduce $(ARGS)

model: setup ## Search the model of the kernel's protocol: every state of it (ARGS="--without fence")
	$(BIN)/python -m tests.model.protocol $(ARGS)

lint: setup ## Style and likely mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint docker/*Dockerfile

format: setup ## Bring the style in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup ## Static types, strictly
	$(BIN)/mypy

docs: setup ## Write docs/configuration.md from the settings
	$(BIN)/python scripts/configuration.py

faults: setup ## Faults at random under load, then the audit: MINUTES=60 SEED=n, reports/faults-SEED.md and .json
	$(BIN)/python -m tests.faults.harness --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) $(ARGS)

manifests: setup ## Write what of deploy/k8s follows from the program, and check all of it
	$(BIN)/python scripts/manifests.py
	$(BIN)/pytest tests/kubernetes $(ARGS)

cluster: setup ## A real Kubernetes API server takes every overlay; it is built once, which takes minutes
	scripts/cluster/build
	$(BIN)/pytest tests/kubernetes/test_api_server.py $(ARGS)

node: setup ## A real Kubernetes node: the local overlay applied, killed, scaled and upgraded under load (ARGS=--keep)
	scripts/cluster/node $(ARGS)

bench: setup ## Throughput and latency against the floors
	$(BIN)/python -m tests.bench $(ARGS)

peers: setup ## One workload on other systems beside ours: PEERS="mini-visa kstreams-eos faust-alo" N=300000 REPS=3 OUT=FILE
	$(BIN)/python -m tests.bench peers $(if $(PEERS),--peers "$(PEERS)") $(if $(N),--records $(N)) \
	    $(if $(REPS),--reps $(REPS)) $(if $(OUT),--out "$(OUT)") $(ARGS)

COMPILE := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header
lock: setup ## Resolve the dependencies anew into the locks (UPGRADE=1: to the newest)
	@command -v $(BIN)/uv >/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile $(COMPILE) $(if $(UPGRADE),--upgrade) --extra dev pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile $(COMPILE) --constraint requirements.lock pyproject.toml --output-file docker/requirements.lock
	echo setuptools | $(BIN)/uv pip compile $(COMPILE) --constraint requirements.lock - --output-file docker/build.lock

clean: ## Remove what was built here (the system's data in MINI_VISA_HOME stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	git clean -fdXq reports
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
