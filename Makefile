# Two commands matter: `make demo` and `make test`. Both install what they need, say so, and take seconds to do
# nothing the second time. Everything goes into .venv, Apache Kafka's jars into the user's cache directory.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Else each of hundreds of processes would compile the product anew.
unexport PYTHONDONTWRITEBYTECODE

# Arguments for cpis-broker demo, such as --once, for the benchmarks, and for pytest, such as tests/unit or --soak.
ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
COMPILE_LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
ALL := demo test bench engines lint format lock clean help
PYTEST := $(BIN)/python -m pytest
SHARE := --dist loadscope --no-loadscope-reorder
# What computes a lot and minds no clock.
PLAIN := $(addprefix tests/integration/test_,shuffles.py interleavings.py near_twins.py) tests/house tests/unit

.PHONY: $(ALL) test-waits test-plain

# ---- Run

demo: .venv/.runtime $(if $(findstring --kafka,$(ARGS)),engines) ## play an evening (ARGS=--once: unpaced; --kafka)
	@$(BIN)/cpis-broker demo $(ARGS)

# ---- Check

test: ## run every test, after installing what tests need (PYTEST_ARGS="tests/unit -k word", --soak)
	@$(MAKE) --no-print-directory engines
ifeq ($(strip $(PYTEST_ARGS)),)
	@failed=0; \
	echo "What mostly waits, and beside it ruff, mypy and what minds no clock (three minutes)"; \
	$(MAKE) --no-print-directory --keep-going -j2 --output-sync=target test-waits test-plain || failed=1; \
	echo "What needs the machine for itself (three minutes)"; \
	$(PYTEST) -m alone tests/e2e || failed=1; \
	echo "All others, in three processes"; \
	$(PYTEST) -m "not alone and not waits" $(PLAIN:%=--ignore=%) -n 3 $(SHARE) --one-kafka || failed=1; \
	exit $$failed
else
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) $(PYTEST_ARGS)
endif

# The halves of what is first played side by side. Whatever can yield does: the other half is against the clock.
test-waits: .venv/.tools
	@$(PYTEST) -m waits tests/e2e

test-plain: .venv/.tools
	@nice $(MAKE) --no-print-directory lint
	@nice $(PYTEST) $(PLAIN) -n 2 $(SHARE)

bench: engines ## measure the broker beside its peers, for half an hour (ARGS="--quick --json FILE": a few minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

engines: .venv/.tools ## install what only tests need: Java, Maven, Chromium, Kafka, MESH, where missing
	@tests/install_engines.sh
	@$(BIN)/python -m tests.engines

lint: .venv/.tools ## ruff and mypy --strict
	@echo "ruff check"; $(BIN)/ruff check --quiet .
	@echo "ruff format --check"; $(BIN)/ruff format --quiet --check .
	@echo "mypy"; $(BIN)/mypy

format: .venv/.tools ## put the code into ruff's form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# ---- Install

# The two locks agree on every package they share, so the second adds to what the first installed.
.venv/.runtime: requirements.lock pyproject.toml
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		for candidate in python3.11 python3.12 python3.13 python3.14 python3; do \
			if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				python=$$candidate; break; \
			fi; \
		done; \
		if [ -z "$${python:-}" ]; then \
			echo "error: no Python 3.11 or later with venv on PATH: install python3 and python3-venv" >&2; exit 1; \
		fi; \
		echo "Making .venv with $$python ($$($$python --version)) ..."; \
		$$python -m venv --clear .venv; \
	fi
	@echo "Installing what cpis-broker needs (requirements.lock; about half a minute the first time) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

.venv/.tools: requirements-dev.lock .venv/.runtime
	@echo "Installing what tests need (requirements-dev.lock; about half a minute the first time) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# ---- Maintain

lock: ## choose the newest allowed versions and write both lock files (needs uv)
	@command -v uv >/dev/null || { echo "error: uv is not on PATH: pip install uv" >&2; exit 1; }
	$(COMPILE_LOCK) --upgrade pyproject.toml --extra mesh -o requirements.lock
	$(COMPILE_LOCK) --upgrade pyproject.toml --extra mesh --group dev -c requirements.lock -o requirements-dev.lock

clean: ## remove .venv and caches; never var, which holds data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | expand --tabs=10
