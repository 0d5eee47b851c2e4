# Two commands on a fresh machine: `make demo` and `make test`. They need python3 and the package
# index; everything is installed into .venv.
VENV   ?= .venv
BIN    := $(VENV)/bin
# `make test EXTRAS=test,clients,llama` also installs llama-cpp-python (builds from source where
# PIP_FIND_LINKS names no wheel).
EXTRAS ?= test,clients

.PHONY: demo test lint bench faults clean

demo: $(VENV)/.demo
	$(BIN)/moetool demo

# One thread each: small products gain nothing by more, and wait for each other where cores are few.
# In memory where there is room: half of the time went to waiting for the disk's word on each sync.
SHM_KB = $(shell df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
SCRATCH = $(shell [ "0$(SHM_KB)" -gt 8000000 ] && echo /dev/shm || echo "$${TMPDIR:-/tmp}")
test: $(VENV)/.test
	scratch=$$(mktemp -d "$(SCRATCH)/moetool-tests.XXXXXX") && trap 'rm -rf "$$scratch"' EXIT && \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal --basetemp="$$scratch/t"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/inspect_remote.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/verify.py
	$(BIN)/python benchmarks/fetch.py

# Kills, failing calls, full disks, power cuts, flipped bits: the long form; the tests have a short one.
faults: $(VENV)/.test
	MOETOOL_FAULTS=long $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/faults tests/proof/test_bit_rot.py tests/model/parallel tests/release/test_resume.py

clean:
	rm -rf $(VENV) dist build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	python3 -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@ $(VENV)/.demo
