# Thin on purpose: each target calls Python scripts, so that Windows and editors can call the same ones.
#   PYTHON=python3.12        the Python that creates .venv
#   SECONDS=3600             how long `make soak` reads mutated files
#   TORCH_INDEX=URL          install torch from this index into a new .venv (pytorch.org lists one with CPU builds)
PYTHON ?= python3
TORCH_INDEX ?=
SECONDS ?= 600

MAKE_ENVIRONMENT := $(PYTHON) scripts/environment.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
RUN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts/python,.venv/bin/python)

.PHONY: environment demo test check train-demo benchmark soak clean help

environment:  ## create .venv with everything needed for development
	$(MAKE_ENVIRONMENT)

demo:  ## caption and inspect the photos in docs/photos
	$(MAKE_ENVIRONMENT) --extras ""
	$(RUN) scripts/demo.py

test: environment  ## everything CI runs: format, lint, types, layers, the demo, all tests
	$(RUN) scripts/check.py format lint types layers demo tests

check:  ## the same without setting up .venv, the demo and the slow tests
	$(RUN) scripts/check.py

train-demo:  ## draw a tiny data set, train a captioner on it, caption its images
	$(MAKE_ENVIRONMENT) --extras ""
	$(RUN) scripts/draw_shapes.py --output data/shapes
	rm -rf runs/shapes
	$(RUN) scripts/train.py --config shapes
	$(RUN) scripts/caption.py 'data/shapes/images/*[05].png' --model runs/shapes/model

benchmark:  ## measure speed and memory against the machine's limits and other libraries
	$(MAKE_ENVIRONMENT) --extras benchmark
	$(RUN) -m benchmarks

soak: environment  ## read mutated files for SECONDS; kill training at random steps, and compare with uninterrupted runs
	$(RUN) -m tests.fuzz --seconds $(SECONDS)
	$(RUN) scripts/draw_shapes.py --output data/shapes
	$(RUN) scripts/soak.py --data data/shapes

clean:  ## remove caches and builds; keep .venv, data and runs
	rm -rf build dist *.egg-info htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile
