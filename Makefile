# Every target makes the environment it needs. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
SEED ?= 0
INSTALLED := $(VENV)/.installed

.PHONY: help install demo study figure4 test test-quick test-monai-label test-lowest lint audit bench bench-peers gpu-check gpu-wheels clean

help:  ## what can be made
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

install: $(INSTALLED)  ## the environment, in .venv

$(INSTALLED): requirements.txt tests/requirements.txt pyproject.toml
	@echo "Installing into $(VENV): about 7 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
	@echo "Installed. Next: . $(VENV)/bin/activate, then cdws -h, or make demo."

demo: $(INSTALLED)  ## train on the embedded data, evaluate, infer: 3 minutes on 2 CPU cores
	$(VENV)/bin/cdws demo --seed $(SEED)

study: $(INSTALLED)  ## all experiments of the paper at demo scale, with their report
	$(VENV)/bin/cdws study --demo --jobs 2
	@echo "report                              runs/study/report.html"

FIVE := --method cdws --overlay demo,five_stages --output_dir runs/five_stages --seed $(SEED)
figure4: $(INSTALLED)  ## why the paper trims VGG16: side outputs of all five stages, on the embedded data
	$(VENV)/bin/cdws train $(FIVE)
	$(VENV)/bin/cdws evaluate $(FIVE) --split test
	@echo "side outputs                        runs/five_stages/side_outputs.png"

# two processes, each with the memory of a small training
TESTS := -m pytest -n 2 --dist worksteal
test: lint  ## lint, then all tests: 15 minutes on 2 CPU cores
	$(VENV)/bin/python $(TESTS)

test-quick: lint  ## lint, then the tests that start no program and train nothing: 3 minutes
	$(VENV)/bin/python $(TESTS) -m "not slow"

MONAI_LABEL := .venv-monailabel
MONAI_LABEL_INSTALLED := $(MONAI_LABEL)/.installed
$(MONAI_LABEL_INSTALLED): tests/monailabel/requirements.txt tests/monailabel/requirements-no-deps.txt
	$(PYTHON) -m venv $(MONAI_LABEL)
	$(MONAI_LABEL)/bin/pip install --disable-pip-version-check -r tests/monailabel/requirements.txt
	$(MONAI_LABEL)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/monailabel/requirements-no-deps.txt
	@touch $@

test-monai-label: $(MONAI_LABEL_INSTALLED)  ## the bundle in a MONAI Label server, in an environment of its own (6 GB)
	$(MONAI_LABEL)/bin/python -m pytest tests/monailabel

lint: $(INSTALLED)  ## code style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# the oldest versions that requirements.txt admits; torch alone is several GB
LOWEST := .venv-lowest
test-lowest:  ## all tests with the lowest versions of requirements.txt, in .venv-lowest; needs the network
	$(PYTHON) -m venv $(LOWEST)
	cat requirements.txt tests/requirements.txt | sed -E 's/>=([0-9a-zA-Z.]+)(,.*)?$$/==\1/' > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/pip install --disable-pip-version-check -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python $(TESTS)

AUDIT := .venv-audit
audit: $(INSTALLED)  ## known weaknesses of the installed packages, by pip-audit; needs the network
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(AUDIT)/bin/pip-audit --path $$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')

bench: $(INSTALLED)  ## each speed as a ratio measured in one run, see docs/performance.md
	$(VENV)/bin/python tests/benchmarks/boundary.py
	$(VENV)/bin/python tests/benchmarks/loss.py
	$(VENV)/bin/python tests/benchmarks/training_step.py
	$(VENV)/bin/python tests/benchmarks/folding.py
	$(VENV)/bin/python tests/benchmarks/start.py
	$(VENV)/bin/python tests/benchmarks/options.py
	$(VENV)/bin/python tests/benchmarks/slide_inference.py
	$(VENV)/bin/python tests/benchmarks/memory.py
	$(VENV)/bin/python tests/benchmarks/full_batch.py

# other programs, with the packages of $(VENV) behind their own
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
PACKAGES = import site; print(site.getsitepackages()[0])
$(PEERS_INSTALLED): $(INSTALLED) tests/benchmarks/peers-requirements.txt tests/benchmarks/peers-requirements-no-deps.txt
	$(VENV)/bin/python -m venv $(PEERS)
	$(VENV)/bin/python -c '$(PACKAGES)' > $$($(PEERS)/bin/python -c '$(PACKAGES)')/shared.pth
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/benchmarks/peers-requirements-no-deps.txt
	$(PEERS)/bin/pip install --disable-pip-version-check -r tests/benchmarks/peers-requirements.txt
	@touch $@

bench-peers: $(PEERS_INSTALLED)  ## slides and boundaries side by side with TIAToolbox, MONAI, SciPy, in an environment of their own (1 GB)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python tests/benchmarks/peers.py $(ARGUMENTS)

WHEELS := .wheels
gpu-check:  ## what only a GPU can show, in 8 minutes, with PyTorch of PYTHON and the wheels in .wheels
	$(PYTHON) tests/benchmarks/gpu_check.py --wheels $(WHEELS) $(ARGUMENTS)

gpu-wheels:  ## what gpu-check needs beside what images of PyTorch have, into .wheels, for a machine without a network
	grep -E '^(monai|pytorch-ignite|nibabel|pynrrd|pydicom|openslide|imagecodecs|shapely|efficientnet|fire|psutil)' requirements.txt \
		| xargs $(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest $(WHEELS) $(ARGUMENTS) termcolor

clean:  ## remove the environment, and what the targets above have made
	rm -rf $(VENV) $(MONAI_LABEL) $(LOWEST) $(AUDIT) $(PEERS) $(WHEELS) runs/demo runs/five_stages runs/study runs/superpixels
