# Thin on purpose: every target is one Python script, so that Windows and editors can call the same.
#   PYTHON=python3.12        the Python to make .venv from
#   TORCH_INDEX=URL          fetch torch from this index (pytorch.org names one with CPU builds), for a new .venv
PYTHON ?= python3
TORCH_INDEX ?=

MAKE_ENVIRONMENT := $(PYTHON) scripts/environment.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
RUN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts/python,.venv/bin/python)

.PHONY: environment demo test check train-demo benchmark soak clean help

environment:  ## make .venv with everything to develop
	$(MAKE_ENVIRONMENT)

demo:  ## caption and inspect the photos in docs/photos
	$(MAKE_ENVIRONMENT) --extras ""
	$(RUN) scripts/demo.py

test: environment  ## all that CI runs: format, lint, types, layers, the demo, the tests
	$(RUN) scripts/check.py format lint types layers demo tests

check:  ## the same without making .venv, without the demo and the slow tests
	$(RUN) scripts/check.py

train-demo:  ## draw a tiny data set, train a captioner on it, caption with it
	$(MAKE_ENVIRONMENT) --extras ""
	$(RUN) scripts/draw_shapes.py --output data/shapes
	rm -rf runs/shapes
	$(RUN) scripts/train.py --config configs/shapes.yaml
	$(RUN) scripts/caption.py 'data/shapes/images/*[05].png' --model runs/shapes/model

benchmark:  ## measure speed and memory against the machine's limits and against peers
	$(MAKE_ENVIRONMENT) --extras benchmark
	$(RUN) -m benchmarks

soak: environment  ## kill training at many random steps and compare with runs that nobody killed
	$(RUN) scripts/draw_shapes.py --output data/shapes
	$(RUN) scripts/soak.py --data data/shapes

clean:  ## remove caches and builds; .venv, data and runs stay
	rm -rf build dist *.egg-info htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile
