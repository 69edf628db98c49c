# `make` alone prints the words. PYTHON=... picks the interpreter, VENV=... the environment, T=... one test,
# JOBS=... how many processes share the tests, ONLY=... one figure.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
LOCK    = $(BIN)/uv pip compile pyproject.toml build.in --universal --python-version 3.11 --generate-hashes \
          --no-emit-index-url --no-header --no-annotate --quiet

.DEFAULT_GOAL := help
.PHONY: help setup lock demo up kafka unit real test lint fix docs bench check clean

help: ## print these words
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  \033[1m%-7s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment and install the locked dependencies, once

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	@echo "setup: installing the locked dependencies into $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: $(STAMP) ## resolve the dependencies anew into the two hashed lock files
	@echo 'setuptools>=80' > build.in && trap 'rm -f build.in' EXIT && $(LOCK) --upgrade -o requirements.lock && \
	  $(LOCK) --upgrade --extra dev -c requirements.lock -o requirements-dev.lock && git --no-pager diff --stat -- '*.lock'

demo: $(STAMP) ## play the whole marketplace loop on real data against an embedded service
	@$(BIN)/soma demo

up: $(STAMP) ## start the service with everything embedded
	@$(BIN)/soma up

kafka: $(STAMP) ## start a real Kafka broker on loopback (Java and Maven); Ctrl-C stops it
	@$(BIN)/python -m tests.kafka.broker

unit: $(STAMP) ## tests without sockets, in seconds; T=tests/unit/log for a part
	@$(BIN)/pytest $(or $(T),tests/unit)

real: $(STAMP) ## tests against a real PostgreSQL and a real ClickHouse engine (T=tests/kafka for Kafka)
	@$(BIN)/pytest $(or $(T),tests/real)

test: $(STAMP) ## unit, real, and Kafka where there are Java and Maven
	@echo "test: unit tests and real servers, in $(JOBS) processes; about twenty minutes on two cores"
	@$(BIN)/pytest -n $(JOBS) --dist loadfile tests/unit tests/real tests/kafka

lint: $(STAMP) ## formatting, style, imports and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports && $(BIN)/mypy

fix: $(STAMP) ## format, and mend what can be mended without thought
	@$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

docs: $(STAMP) ## print the references (errors, events, settings, OpenAPI) from the code
	@$(BIN)/soma docs

bench: $(STAMP) ## measure every figure against its baseline; ONLY=log.commands_64 for one
	@echo "bench: name value unit baseline ratio; the same as JSON under var/bench/"
	@$(BIN)/python -m tests.bench.run $(ONLY)

check: lint test ## what CI runs

clean: ## remove the virtual environment, caches and builds; var/ is data and stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
