# make demo    install into .venv and run the main jobs
# make test    the same, then the tests
# make check   lint, format and types
# `make help` lists the rest.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# Each set of packages has those before it.
HAS_demo := demo
HAS_test := demo test
HAS_dev := demo test dev
WEB := examples/web/node_modules/.installed
# By files, so that what a file's tests share is made once.
PARALLEL := -n 2 --dist loadfile
INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-oldest check format web readme cards verify benchmark

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo.installed  ## train, save, load and draw a classifier, a segmenter and a detector: the main jobs
	$(BIN)/python examples/demo_classification.py
	$(BIN)/python examples/demo_segmentation.py
	$(BIN)/python examples/demo_detection.py

test: $(VENV)/test.installed $(WEB) demo  ## the main jobs and the tests
	$(BIN)/python -m pytest $(PARALLEL)

test-oldest: $(OLDEST)/test.installed  ## the tests with the oldest supported Transformers and PyTorch
	$(OLDEST)/bin/python -m pytest $(PARALLEL)

check: $(VENV)/dev.installed  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.installed  ## repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

web: $(WEB)  ## the packages of the page in examples/web

readme: $(VENV)/test.installed  ## render the tables of the README from the variants and the benchmarks' results
	$(BIN)/python -m benchmarks.readme

cards: $(VENV)/test.installed  ## render the model cards from their template and the variants
	$(BIN)/python conversion/card.py

verify: $(VENV)/test.installed  ## convert all 68 published checkpoints, there and back, and write the table
	$(BIN)/python tests/verify_conversions.py

benchmark: $(VENV)/test.installed  ## time forwards and training steps against the peers, and the detectors; leave the machine idle
	$(BIN)/python -m benchmarks.onnx_exports
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.detection

$(VENV)/demo.installed $(VENV)/test.installed $(VENV)/dev.installed: $(VENV)/%.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --editable ".[$*]"
	@touch $(addprefix $(VENV)/,$(addsuffix .installed,$(HAS_$*)))

$(OLDEST)/test.installed: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --editable ".[test]" transformers==5.17.0 torch==2.8.0 torchvision==0.23.0
	@touch $@

$(WEB): examples/web/package-lock.json
	npm --prefix examples/web ci --silent
	@touch $@
