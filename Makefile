# `make help` lists what there is. Everything runs in virtual environments that make builds itself;
# all it needs is a CPython from 3.11 up.
#
#   PYTHON=/path/to/python   the interpreter to make the environment with (else .ci/pythons finds one)
#   ARGS="..."               handed on to the program that the target runs

VENV ?= .venv
PYTHON ?=
ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all coverage lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.package ## run the main example: checksums of a folder tree, on every core
	@$(BIN)/python examples/checksum_tree.py $(ARGS)

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Each version has an environment of its own, .venv-3.12 and so on. All are tried, then it is said
# which failed.
test-all: ## run the tests on every CPython from 3.11 up that this machine has
	@pythons=$$(.ci/pythons); \
	test -n "$$pythons" || { echo "no CPython from 3.11 up was found" >&2; exit 1; }; \
	echo "found:"; echo "$$pythons" | sed 's/^/  /'; \
	passed=; failed=; \
	for version in $$(echo "$$pythons" | cut -d ' ' -f 1); do \
		path=$$(echo "$$pythons" | sed -n "s/^$$version //p"); \
		echo; echo "== Python $$version ($$path)"; \
		if $(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON="$$path"; \
		then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo; echo "passed:$${passed:- none}; failed:$${failed:- none}"; \
	test -z "$$failed"

coverage: $(VENV)/.test ## run the tests and show which lines they do not reach
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run -m pytest $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

lint: $(VENV)/.dev ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes asyncipc --ignoreexternal

format: $(VENV)/.dev ## format the code and mend what can be mended by itself
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(VENV)/.bench ## run the benchmarks, against other libraries
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove everything that make and the tools have made
	rm -rf .venv .venv-* .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# An environment is installed into again only when pyproject.toml has changed: the stamps tell.

$(BIN)/python:
	@python="$(PYTHON)"; \
	test -n "$$python" || python=$$(.ci/pythons 2>/dev/null | sed -n '1s/^[^ ]* //p'); \
	test -n "$$python" || { \
		.ci/pythons; \
		echo "no CPython from 3.11 up was found; name one with PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "making $(VENV) with $$python"; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# The package itself is installed as a link to the sources. pip 25.1 was the first to know
# dependency groups; those that come with Python may be older.
$(VENV)/.package: pyproject.toml | $(BIN)/python
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: $(VENV)/.package
	@$(PIP) install --quiet --group $*
	@touch $@
