# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint compile bench gpu docs clean

# open_clip is compared with by its loss file alone; its own dependencies (torchvision) are not needed for that.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch
	touch $@

demo: $(VENV)/.installed  ## train a small CLIP on icons and their names, test it on 1,000 others
	$(BIN)/mmkernels train clip --out runs/clip
	$(BIN)/mmkernels bench
	@echo "What held-out icons and names retrieve: runs/clip/retrieval.png"

test: $(VENV)/.installed  ## tiles, then the Triton kernels in the interpreter
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops tests/test_nn.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compile: $(VENV)/.installed  ## every kernel for every chip, no GPU needed
	$(BIN)/mmkernels compile

bench: $(VENV)/.installed  ## every op against its peers on this machine: bench/results, docs/benchmarks.md
	$(BIN)/python -m pytest bench/ops -vv \
		--benchmark-json bench/results/$$($(BIN)/python -c 'from bench import machine; print(machine.name())').json
	$(BIN)/python -m bench report

gpu:  ## on a GPU, in the Python that PYTHON names: check, test, measure and tune, results in OUT, in nine minutes
	PYTHON=$(PYTHON) bench/gpu.sh $(or $(OUT),runs/gpu) $(WHEELS)

docs: $(VENV)/.installed  ## the documentation site, in site/; `mkdocs serve` shows it while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
