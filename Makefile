# make demo   train a GEBM on real digits, sample it, compare it with its base (BACKEND=pyro for Pyro)
# make test   tests and doctests of both packages
PYTHON ?= python3
BACKEND ?= numpyro
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Expected Python 3.11 to 3.13; got $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable ".[pyro,numpyro,arviz,examples,dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python examples/digits.py --backend $(BACKEND) --out out

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +
