# Plain `make` lists the targets. The first one that needs the library installs it into .venv, once.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-newest tutorial check bench docs fix setup

SHELL := bash
.SHELLFLAGS := -o pipefail -c
BIN := .venv/bin
# Wheels only: what the index serves as source alone would need a compiler and build tools that a new machine may not have.
PIP := $(BIN)/python -m pip install --only-binary :all: --progress-bar off --no-input --disable-pip-version-check -c constraints.txt
JOBS ?= 2
# The first of these that is Python 3.11 or newer makes .venv.
PYTHON ?= python3 python3.13 python3.12 python3.11
# --dist worksteal gives each worker a half in the order of the files, so that what a file's tests share is mostly built
# once; who is done first takes of the other's rest.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# The newest releases of everything have an environment of their own, and so have the kits that want other versions.
NEWEST := .venv-newest/bin/python
NEWEST_PYTHON ?= $(lastword python3 $(shell command -v python3.13) $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python))

help:
	@echo "Targets (each sets .venv up first when it has to):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.ready ## ground real images on this machine, and show them
	@$(BIN)/vpp demo

test: .venv/.ready ## the tests, about 6 minutes on 2 cores (one file: make test ARGS=tests/test_boxes.py)
	@$(PYTEST) -m "not slow and not gpu" $(ARGS)

# Fuzzing alone takes 50 minutes of it, a minute for each reader; VPP_FUZZ_SECONDS=5 make test-all is sooner done.
test-all: .venv/.ready .venv-kits/.tried ## every test, the slow ones too, and the GPU ones where there is one
	@$(PYTEST) $(ARGS)

test-newest: .venv-kits/.tried ## the quick tests and the peers' on the newest releases of everything (Python 3.13; 7 GB)
	@[ -x $(NEWEST) ] || $(NEWEST_PYTHON) -m venv .venv-newest
	@echo "Bringing .venv-newest ($$($(NEWEST) --version)) to the newest releases that pip finds."
	@$(NEWEST) -m pip install -q --disable-pip-version-check --only-binary :all: hatchling editables
	@$(NEWEST) -m pip install -q --disable-pip-version-check --only-binary :all: --no-build-isolation --upgrade \
		--upgrade-strategy eager -e '.[all,dev]'
	@echo "What differs from constraints.txt:"
	@$(NEWEST) -m pip freeze --disable-pip-version-check | awk -F == ' \
		NR == FNR { pinned[tolower($$1)] = $$2; next } \
		tolower($$1) in pinned && pinned[tolower($$1)] != $$2 { \
			printf "  %-24s %s, pinned %s\n", $$1, $$2, pinned[tolower($$1)] }' constraints.txt -
	@$(NEWEST) -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu" $(ARGS)
	@$(NEWEST) -m pytest tests/ecosystem/peers

tutorial: .venv/.ready ## run every command of docs/tutorial.md, or of ARGS=docs/smollm2.md; --write brings the page up to date
	@$(BIN)/python -m examples.tutorial.run $(ARGS)

check: .venv/.ready ## lint, format, types, and which room imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/.ready ## measure again what the docs claim
	@$(BIN)/python -m benchmarks $(ARGS)

docs: .venv/.ready ## build the pages into site/; they open, and are searched, from the disk
	@$(BIN)/zensical build --clean --strict

fix: .venv/.ready ## format, fix what the linter can, and bring the code on the pages up to date
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix
	@$(BIN)/python docs/include.py

setup: .venv/.ready ## only install

# Rerun when a dependency changes. The build backend goes in first and this project is built with it, so that with
# everything in place nothing is downloaded. pip's words go to a file; what is said here is what is fetched and how far.
.venv/.ready: pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		for python in $(PYTHON) none; do \
			$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		done; \
		if [ $$python = none ]; then \
			echo "vpp-plugins needs Python 3.11 or newer, and none of these is one: $(PYTHON)" \
				"(python3 here: $$(python3 --version 2>&1 | tail -n 1)). Install one, then run make again."; \
			exit 1; \
		fi; \
		$$python -m venv .venv || { \
			rm -rf .venv; \
			echo "$$python could not make .venv (above: why). Debian and Ubuntu keep that part in the package python3-venv."; \
			exit 1; \
		}; \
	fi
	@echo "Setting up .venv with $$($(BIN)/python --version): once, some minutes; fetches about 2.1 GB and takes 6.1 GB of disk."
	@if { $(PIP) hatchling editables && $(PIP) --no-build-isolation -e '.[all,dev]'; } 2>&1 | tee .venv/pip.log | $(SHOW_PIP); then \
		touch $@; \
	elif $(BIN)/python -c 'import torch, torchvision, transformers, timm, typer, pytest; \
			from importlib.metadata import version; version("vpp-plugins")' 2>/dev/null; then \
		echo "Could not bring .venv up to date: $$(grep -m 1 ^ERROR .venv/pip.log). What it already holds will do; going on."; \
	else \
		echo "Set-up failed: $$(grep -m 1 ^ERROR .venv/pip.log || tail -n 1 .venv/pip.log)"; \
		echo "All that pip said is in .venv/pip.log. Run make again once the cause is gone; finished downloads are kept."; \
		exit 1; \
	fi

# Kits may ask for older versions than ours, and be built from source. What they share with .venv is found there; one that
# cannot be installed has its tests skipped, with pip's reason.
.venv-kits/.tried: .venv/.ready
	@echo "Setting up .venv-kits with lmms-eval and supervision, whose own commands the slow tests run."
	@$(BIN)/python -m venv .venv-kits
	@for folder in .venv-kits/lib/python3.*/site-packages; do \
		$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$folder/zz_project.pth; done
	@for kit in lmms-eval supervision; do \
		.venv-kits/bin/python -m pip install -q --disable-pip-version-check $$kit >>.venv-kits/pip.log 2>&1 || \
			echo "  $$kit cannot be installed: $$(grep -m 1 ^ERROR .venv-kits/pip.log)"; done
	@touch $@

# One line for each large file and each 20 small ones, with the sum so far; pip writes sizes in kB, MB or GB. Debian's awk,
# mawk, would wait for 4 kB of pip's words before it says the last of them, and be silent while pip unpacks.
define SHOW_PIP
awk $$(awk -W version 2>&1 </dev/null | grep -q ^mawk && echo -W interactive) \
'/^ *(Downloading|Using cached|Processing) .*\.whl/ && !/\.metadata/ { \
	name = $$2 == "cached" ? $$3 : $$2; sub(/.*\//, "", name); split(name, part, "-"); count++; size = 0; \
	if (match($$0, /\([0-9.]+ [kMG]B\)/)) { \
		split(substr($$0, RSTART + 1, RLENGTH - 2), word, " "); \
		size = word[1] * (word[2] == "kB" ? 0.001 : word[2] == "GB" ? 1000 : 1) } \
	sum += size; \
	if (size > 20 || count % 20 == 0) { \
		printf "  %4d MB, %3d packages: %s %s\n", sum, count, part[1], part[2]; fflush() } } \
	/^Installing collected/ { printf "  unpacking and installing %d packages, some minutes\n", split($$0, all, ","); fflush() } \
	/^Successfully installed/ { print "  done"; fflush() } \
	/^(ERROR|WARNING: Retrying)/ { print "  " $$0; fflush() }'
endef
