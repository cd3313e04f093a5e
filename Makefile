# `make demo` and `make test` do all set-up on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Some machines set it; then every process compiles the libraries that it imports, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test lint quick unit slow mutants bench bench-check site wheel wheel-check clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/pri3d demo --out demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile
# Seconds of CPU that a test without the mark slow may take.
export PRI3D_TEST_SECONDS ?= 2

# Before each commit: style, layers, types, and each quick test once.
check: lint quick

quick: $(STAMP)
	$(PYTEST) -m quick

# All that a change needs.
test: lint unit

unit: $(STAMP)
	$(PYTEST) -m "not slow"

# The rest: kills, several processes, compilers, whole workflows, and the random tests at ten times their length.
slow: $(STAMP)
	PRI3D_FUZZ=10 PRI3D_TEST_SECONDS=inf $(PYTEST) -m "slow or fuzz"

# Faults that were put into the source on purpose: which of them do the tests find?
mutants: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,mutants]'
	$(BIN)/python -m benchmarks.mutants

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-check: $(STAMP)
	$(PYTEST) benchmarks

site: $(STAMP)
	$(BIN)/mkdocs build --strict

# Wheel and sdist in dist/; wheel-check looks what is in them, installs the wheel outside the tree and uses it there.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/uv build --no-build-isolation --python $(BIN)/python --out-dir dist

wheel-check: wheel
	PRI3D_DIST=$(CURDIR)/dist PRI3D_TEST_SECONDS=inf $(BIN)/python -m pytest tests/test_wheel.py

clean:
	rm -rf $(VENV) demo site build dist src/*.egg-info
