# make demo    install into .venv and run the main jobs
# make test    install into .venv and run the quick tests
# make check   lint, format and types
# `make help` lists the rest.

PYTHONS := python3.11 python3.12 python3.13 python3
# The first that starts (a name alone may be a stand-in that does not) and is new enough.
PYTHON ?= $(shell for name in $(PYTHONS); do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# Each set of packages has those before it.
HAS_demo := demo
HAS_test := demo test
HAS_dev := demo test dev
WEB := examples/web/node_modules/.installed
INSTALL := -m pip install --quiet --disable-pip-version-check

# By files, so that what a file's tests share is made once. A browser leaves no core to a second one.
PARALLEL := -n 2 --dist loadfile --durations 15
PYTEST := $(BIN)/python -m pytest $(PARALLEL)
# What is neither quick nor needs to be alone, each test in one of the three.
SLOW := -m "slow and not (processes or browser or machine)"
PROCESSES := -m "processes and not (browser or machine)"
BROWSER := -m "browser"
MACHINE := -m "machine" -n 0
# The tests whose numbers come closest to what rounding can change.
EXACT := tests/pyramid/test_exactness.py tests/detection tests/cpu
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
OLD_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: help demo demo-full test test-slow test-processes test-browser test-machine test-all test-isas test-oldest \
	coverage coverage-all check format web readme cards verify benchmark browser-tools

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo.installed  ## train, save, load and draw a classifier, a segmenter and a detector: the main jobs
	$(BIN)/python examples/demo_classification.py
	$(BIN)/python examples/demo_segmentation.py
	$(BIN)/python examples/demo_detection.py

demo-full: $(VENV)/demo.installed  ## the same with larger scenes and models, trained for longer: out/demo-full
	$(BIN)/python examples/demo_classification.py --full --output_dir out/demo-full
	$(BIN)/python examples/demo_segmentation.py --full --output_dir out/demo-full
	$(BIN)/python examples/demo_detection.py --full --output_dir out/demo-full

test: $(VENV)/test.installed  ## the quick tests: no process, no browser, the same on every processor
	$(PYTEST)

test-slow: $(VENV)/test.installed  ## published weights, float64 gradients, exporters, compilers, trainings
	$(PYTEST) $(SLOW)

test-processes: $(VENV)/test.installed  ## launches of two processes, kills, the commands of the documents
	$(PYTEST) $(PROCESSES)

test-browser: browser-tools $(VENV)/test.installed $(WEB)  ## the two pages in Chromium
	$(PYTEST) $(BROWSER)

test-machine: $(VENV)/test.installed  ## bounds of time and memory; leave the machine idle
	$(PYTEST) $(MACHINE)

test-all: browser-tools  ## the main jobs and every test
	$(MAKE) demo test test-slow test-processes test-browser test-machine

test-isas: $(VENV)/test.installed  ## the quick tests as other processors would run them, and in other orders
	$(PYTEST)
	$(AVX2) $(PYTEST)
	$(OLD_CPU) $(PYTEST)
	OMP_NUM_THREADS=1 $(PYTEST)
	$(PYTEST) --random-order --random-order-seed 1
	$(PYTEST) --random-order --random-order-seed 2
	$(PYTEST) --random-order --random-order-seed 3
	$(PYTEST) $(SLOW) $(EXACT)
	$(AVX2) $(PYTEST) $(SLOW) $(EXACT)

test-oldest: $(OLDEST)/test.installed  ## the quick tests with the oldest supported Transformers and PyTorch
	$(OLDEST)/bin/python -m pytest $(PARALLEL)

coverage: $(VENV)/test.installed  ## lines of src/ that the quick tests run
	$(PYTEST) --cov hf_pvt

coverage-all: browser-tools $(VENV)/test.installed $(WEB)  ## lines of src/ that all tests run
	$(PYTEST) -m "not machine" --cov hf_pvt

check: $(VENV)/dev.installed  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.installed  ## repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

web: $(WEB)  ## the packages of the page in examples/web

readme: $(VENV)/test.installed  ## render the tables of the README from the variants and the benchmarks' results
	$(BIN)/python -m benchmarks.readme

cards: $(VENV)/test.installed  ## render the model cards from their template and the variants
	$(BIN)/python conversion/card.py

verify: $(VENV)/test.installed  ## convert all 68 published checkpoints, there and back, and write the table
	$(BIN)/python tests/tools/verify_conversions.py

benchmark: $(VENV)/test.installed  ## time forwards and training steps against the peers, and the detectors; leave the machine idle
	$(BIN)/python -m benchmarks.onnx_exports
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.detection

# Says which Python it is, and of a machine without a GPU how not to load one's libraries.
define environment
@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: none of $(PYTHONS) starts and is; install one, or name \
it: make PYTHON=/path/to/python3." >&2; exit 1; }
@test -x $(1)/bin/python || { echo "$(1) is made with $$($(PYTHON) --version) ($(PYTHON))."; $(PYTHON) -m venv $(1); }
@test -e /dev/nvidia0 || $(1)/bin/python -c "import torch" 2> /dev/null || echo "There is no NVIDIA GPU here: to save \
2.5 GB of its libraries, stop, install the CPU build of torch and torchvision into $(1) with the command of \
pytorch.org/get-started, and start again."
endef

$(VENV)/demo.installed $(VENV)/test.installed $(VENV)/dev.installed: $(VENV)/%.installed: pyproject.toml
	$(call environment,$(VENV))
	$(BIN)/python $(INSTALL) --editable ".[$*]"
	@touch $(addprefix $(VENV)/,$(addsuffix .installed,$(HAS_$*)))

$(OLDEST)/test.installed: pyproject.toml
	$(call environment,$(OLDEST))
	$(OLDEST)/bin/python $(INSTALL) --editable ".[test]" transformers==5.17.0 torch==2.8.0 torchvision==0.23.0
	@touch $@

browser-tools:
	@for tool in npm chromium; do command -v $$tool > /dev/null || missing="$$missing $$tool"; done; \
	test -z "$$missing" || { echo "The tests of the pages need$$missing; install with: apt-get install chromium nodejs \
npm." >&2; exit 1; }

$(WEB): examples/web/package-lock.json
	npm --prefix examples/web ci --silent
	@touch $@
