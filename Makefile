# The commands of the house. `make demo` and `make test` need nothing but Python 3.11 or 3.12.
.PHONY: help setup demo test check format clean

help:            ## list these commands
	@sed -nE 's|^([a-z]+):.*## |\1\t|p' Makefile | expand -t 10

setup:           ## make .venv, or leave it alone when it is up to date
	@scripts/setup

demo: setup      ## the whole product on a sample portrait, about 6 minutes
	.venv/bin/omokage demo

test: setup      ## all tests, two files at a time
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup     ## style, types and import rules, without the tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup    ## put the code into the house's format
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean:           ## remove the environment and all caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
