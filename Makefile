# Plain `make` lists the targets. The first one that needs the library installs it into .venv, once.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench docs fix setup

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
JOBS ?= 2
# --dist loadfile keeps a file on one worker, so what its tests share is built once.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

help:
	@echo "Targets (each sets .venv up first when it has to):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.ready ## ground real pictures on this machine, and show them
	@$(BIN)/vpp demo

test: .venv/.ready ## the tests, under 8 minutes on 2 cores (one file: make test ARGS=tests/test_boxes.py)
	@$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: .venv/.ready ## every test, the slow ones too, and the GPU ones where there is one
	@$(PYTEST) $(ARGS)

check: .venv/.ready ## lint, format, types, and which layer imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/.ready ## measure again what the docs claim
	@$(BIN)/python -m benchmarks $(ARGS)

docs: .venv/.ready ## build the pages into site/; they open from the disk, without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fix: .venv/.ready ## format, and mend what the linter can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

setup: .venv/.ready ## only install

# Rerun when a dependency changes. The build backend goes in first, so that with everything in place nothing is downloaded.
.venv/.ready: pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		for python in python3 python3.13 python3.12 python3.11 none; do \
			$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		done; \
		if [ $$python = none ]; then \
			echo "vpp-plugins needs Python 3.11 or newer, and neither python3 nor python3.11 to python3.13 is one" \
				"(python3 here: $$(python3 --version 2>&1 | tail -n 1)). Install one, then run make again."; \
			exit 1; \
		fi; \
		$$python -m venv .venv || { \
			rm -rf .venv; \
			echo "$$python could not make .venv (above: why). Debian and Ubuntu keep that part in the package python3-venv."; \
			exit 1; \
		}; \
	fi
	@echo "Setting up .venv: on a new machine about 5 GB and two minutes or more, once."
	@if $(PIP) torch torchvision hatchling editables && $(PIP) --no-build-isolation -e '.[all,dev]'; then \
		touch $@; \
	elif $(BIN)/python -c 'import torch, torchvision, transformers, timm, typer, pytest; \
			from importlib.metadata import version; version("vpp-plugins")' 2>/dev/null; then \
		echo "Could not bring .venv up to date (above: why). What it already holds will do; going on."; \
	else \
		echo "Set-up failed (above: why). It downloads from the Python package index: is the network there, and 8 GB of disk?" \
			"Run make again once it is; finished downloads are kept."; \
		exit 1; \
	fi
