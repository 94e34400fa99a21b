# Two commands do all on a fresh machine: `make demo` and `make test`. Both install into .venv with the tested versions.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= sample,microscopy,hdf5,volumes,tensorboard,pymaxflow,gco,annotate,browser,lightning,monai,triton,docs,dev
# One thread a process: two busy threads on two busy cores can be several times slower than one.
export OMP_NUM_THREADS ?= 1
# What the tests of plugins take along, so that both halves take as long.
PLUGIN_HALF := tests/plugins tests/attacks

INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint-and-plugins test-plugins test-core test-slow test-gpu lint format stub bench docs wheel clean

# What a newcomer runs says what it does: torch alone is several hundred megabytes.
.venv/.demo: pyproject.toml constraints.txt
	@echo "1. Installing regloss into .venv, with torch and what else it needs: some minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) --editable ".[sample]"
	@touch $@

.venv/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --quiet --editable ".[$(EXTRAS)]"
	touch $@

.venv/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --quiet --editable ".[sample,docs]"
	touch $@

demo: .venv/.demo
	@echo "2. Training three small networks on 11 images: some minutes on two cores."
	@$(BIN)/regloss demo --output runs/demo --overwrite

# Two halves of about the same length, a process each: one alone leaves the second core idle.
test: .venv/.dev
	$(MAKE) --jobs=2 --keep-going test-core lint-and-plugins

lint-and-plugins: lint
	$(MAKE) test-plugins

test-plugins: .venv/.dev
	$(BIN)/python -m pytest -m "not slow" $(PLUGIN_HALF)

test-core: .venv/.dev
	$(BIN)/python -m pytest -m "not slow" $(PLUGIN_HALF:%=--ignore=%)

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

# On the CPU, and on the GPU where there is one; elsewhere it says what it left out.
test-gpu: .venv/.dev
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/python -m pytest -k device tests/plugins/regularizers tests/plugins/solvers

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stub: .venv/.dev
	$(BIN)/python tests/public_stub.py
	$(BIN)/python tests/losses_stub.py
	$(BIN)/python tests/components_table.py

bench: .venv/.dev
	$(BIN)/python tests/benchmarks/training_step.py
	$(BIN)/python tests/benchmarks/potts.py
	$(BIN)/python tests/benchmarks/dense.py
	$(BIN)/python tests/benchmarks/layers.py
	$(BIN)/python tests/benchmarks/chan_vese.py
	$(BIN)/python tests/benchmarks/first_call.py

# The site, in build/site, and the notebooks of its first pages.
docs: .venv/.docs
	$(BIN)/python docs/notebooks/make.py
	$(BIN)/python docs/site/make.py

wheel: .venv/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build
