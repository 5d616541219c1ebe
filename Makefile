# `make demo` trains a small Deformable VisTR for half the steps of the default run (a second one goes
# on from the first), `make test` runs every test. Both need python3, make and g++ and set up a virtual
# environment in .venv; versions are those of .ci/constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP := $(SOURCES) $(shell find benchmarks tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# Older versions of pip read the first for build requirements too, newer ones the second.
export PIP_CONSTRAINT := .ci/constraints.txt
export PIP_BUILD_CONSTRAINT := .ci/constraints.txt

.PHONY: demo test install-matrix lint format build docs gpu-check clean

demo: $(VENV)/with-examples
	$(BIN)/python examples/train_defvis.py --set steps=2000 --out runs/demo --resume

# Two processes, a file of tests to each at a time; most of what they run has two threads itself.
# A crash is a failure and ends its process for good: a replacement may get no work, and never end.
test: $(VENV)/with-examples,test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

# Every way to install, with every compiler, for the oldest and the newest Python and PyTorch here.
# Both PyTorch are downloaded once and kept: see tests/package/install_matrix/parts.py.
install-matrix: $(VENV)/with-test
	$(BIN)/python -m pytest --numprocesses 2 --maxschedchunk 1 --verbose \
		--override-ini tmp_path_retention_policy=failed tests/package/install_matrix

lint: $(VENV)/with-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/with-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

build: $(VENV)/with-test
	$(BIN)/python -m build

docs: $(VENV)/with-docs
	$(BIN)/pdoc --docformat google --output-directory build/docs stdeform

# On a machine with a GPU and no network: takes the python3 that has torch, pytest and hypothesis.
# Four commands of nine minutes; gpu-check-alive is the first one, or see docs/internals/cuda-kernels.md.
gpu-check:
	$(PYTHON) -m benchmarks gpu-check alive tune tests full

gpu-check-%:
	$(PYTHON) -m benchmarks gpu-check $*

clean:  # back to a fresh clone, except data/ and runs/
	rm -rf $(VENV) build dist stdeform.egg-info stdeform/_C*.so stdeform/_build.json
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# An install with the extras named by the target. It may not end up without the native core in
# silence: a demo or a test run on the slow reference would show nothing.
$(VENV)/with-%: $(VENV)/pyvenv.cfg pyproject.toml setup.py .ci/constraints.txt $(SOURCES)
	STDEFORM_NATIVE=1 $(BIN)/pip install --editable '.[$*]'
	touch $@
