# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint compile bench clean

# open_clip is compared with by its loss file alone; its own dependencies (torchvision) are not needed for that.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch
	touch $@

demo: $(VENV)/.installed  ## train a small CLIP on icons and their names, test it on 1,000 others
	$(BIN)/mmkernels train clip --out runs/clip

test: $(VENV)/.installed  ## tiles, then the Triton kernels in the interpreter
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops tests/test_nn.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compile: $(VENV)/.installed  ## every kernel for every chip, no GPU needed
	$(BIN)/mmkernels compile

bench: $(VENV)/.installed  ## this machine's CPU against the dense formula
	$(BIN)/python -m bench.info_nce

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
