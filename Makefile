# Pauca. `make` alone lists the targets.

# Where the environment lives, and the Python that makes it (empty: the first 3.11 or 3.12 that runs).
VENV ?= .venv
PYTHON ?=
# The wheel index for torch. The default has CPU builds for Linux and macOS; for an NVIDIA GPU take
# another one, e.g. `export TORCH_INDEX=https://download.pytorch.org/whl/cu130` before any target.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
# The name of the stamp says what was installed, so a change of any of it rebuilds the environment.
FINGERPRINT := $(shell (cat pyproject.toml constraints.txt; echo '$(TORCH_INDEX)') | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(FINGERPRINT)
PROBE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.PHONY: help quickstart test lint processes nightly clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo '  Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH_INDEX=$(TORCH_INDEX)'

quickstart: $(STAMP)  ## make a corpus, pretrain five small backbones on it, draw accuracy against cost
	$(BIN)/python -m train.study experiment=quickstart

test: lint  ## lint, check types and run the tests (under 10 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)  ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

processes: $(STAMP)  ## run what CI adds: a sweep of runs of two processes, shards read by two and four
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly --timeout 600 \
	  tests/train/test_launch.py::test_a_sweep_of_four_runs_of_two_processes_leaves_four_folders \
	  tests/train/test_sharded_checkpoints.py::test_others_go_on_from_two_shards

nightly: $(STAMP)  ## run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly --timeout 3600

clean:  ## remove the environment and the caches; runs/ and corpora/ stay
	@if [ -e '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find models data train eval configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first, by itself and from its own index, so that nothing else brings a CUDA build along.
$(STAMP):
	@for candidate in $(or $(PYTHON),python3.11 python3.12 python3 python); do \
	  if "$$candidate" -c '$(PROBE)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'Pauca needs Python 3.11 or 3.12 with venv, and found none that runs$(if $(PYTHON), as $(PYTHON)): install one, or name it with make PYTHON=/path/to/python3.11' >&2; \
	  exit 1; \
	fi; \
	echo "Making the environment in $(VENV) with $$found (about 1.6 GB, a few minutes)"; \
	"$$found" -m venv --clear '$(VENV)'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) --constraint constraints.txt torch
	@echo 'Installing the other packages'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
