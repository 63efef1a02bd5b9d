# make demo   train a GEBM on real digits, sample it, compare it with its base (BACKEND=pyro for Pyro)
# make demo-images   samples of the shipped Fashion-MNIST model against those of its generator: table and pictures, no training
# make test   tests and doctests of all packages (PACKAGE=pyro or PACKAGE=numpyro: in an environment without the other host)
# make test-gpu   what an accelerator could change, on the GPU that PyTorch and JAX find
# CONSTRAINTS=oldest.txt takes the oldest versions that pyproject.toml allows, CONSTRAINTS= the newest that there are
PYTHON ?= python3
BACKEND ?= numpyro
PACKAGE ?=
CONSTRAINTS ?= constraints.txt
VENV := .venv$(PACKAGE:%=-%)
EXTRAS := $(if $(PACKAGE),$(PACKAGE),pyro,numpyro),arviz,zarr,examples,dev
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-images test test-slow test-gpu test-versions lint clean

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Expected Python 3.11 to 3.13; got $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) \
	  --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(READY)
	$(BIN)/python examples/digits.py --backend $(BACKEND) --out out

demo-images: $(READY)
	$(BIN)/python examples/images.py evaluate --backend $(BACKEND) --draws 2000 --out out

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow tests

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu tests

test-versions:  # in environments of its own
	$(PYTHON) tests/versions.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typing/check.py

clean:
	rm -rf .venv .venv-* out build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +
