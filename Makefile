# Every target makes the environment it needs. PYTHON is any Python from 3.10 on.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m monai.bundle run
SEED ?= 0
DEMO := bundle/configs/demo.json
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint bench clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

install: $(INSTALLED)  ## the environment, in .venv

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(INSTALLED)  ## train on the embedded data, evaluate, infer: 5 minutes on 2 CPU cores
	$(RUN) training --config_file "['bundle/configs/train.json','$(DEMO)']" --seed $(SEED)
	$(RUN) evaluating --config_file "['bundle/configs/train.json','$(DEMO)','bundle/configs/evaluate.json']" --split test --seed $(SEED)
	$(RUN) inferring --config_file "['bundle/configs/inference.json','$(DEMO)']" --dataset_dir runs/demo/data-$(SEED)/images
	@echo
	@echo "masks, probability maps, overlays   runs/demo/predictions"
	@echo "TensorBoard log                     $(VENV)/bin/tensorboard --logdir runs/demo"
	@echo "metrics                             runs/demo/metrics.json"

test: lint  ## lint, then all tests
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)  ## code style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(INSTALLED)  ## time of the boundary metric against a plain version
	$(VENV)/bin/python tests/benchmarks/boundary.py

clean:  ## remove the environment and the demo's results
	rm -rf $(VENV) runs/demo
