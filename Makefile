# The commands of the README and of development. Each target is sufficient by itself on a fresh machine that has
# Python >= 3.10, its venv module and a C++20 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h')
# A C++ compile takes up to a gigabyte; two at a time suit the smallest machines.
JOBS ?= 2

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

# --- what a user of the README runs -------------------------------------------------------------------------------

.PHONY: demo
demo: build  ## build, then serve a batch of requests with the embedded model and show them running
	$(BIN)/stoker demo

.PHONY: test
test: build  ## build, then run every test in its short form
	$(BIN)/python -m pytest

# `make sanitize VENV=folder`: an environment that is there and was named on the command line is taken as it is.
VENV_GIVEN = $(and $(filter command,$(origin VENV)),$(wildcard $(BIN)/python))

# --- what developers run --------------------------------------------------------------------------------------------

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt --group build
	$(BIN)/python -m pip install -q -c constraints.txt --group runtime --group test --group clients --group dev
	touch $@

.PHONY: venv
venv: $(if $(VENV_GIVEN),,$(VENV)/.ready)  ## make .venv with everything that development needs, at pinned versions

.PHONY: build
build: venv  ## build the native core and install stoker into .venv, editable
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) STOKER_WERROR=ON $(BIN)/python -m pip install -q --no-build-isolation --no-deps \
	  -C build-dir=build/editable -e .

.PHONY: prove
prove: build  ## the long forms: many workloads, planted bugs, sanitizers, soaks (hours); results to benchmarks/results
	PYTHON=$(BIN)/python tools/prove.sh

.PHONY: bench
bench: build  ## the benchmarks that this machine can run: scheduler, CPU ops, the engine beside transformers
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only
	$(BIN)/python benchmarks/engine_cpu.py

.PHONY: sanitize
sanitize: venv  ## the core under AddressSanitizer and UBSan, the loop under ThreadSanitizer
	PATH=$(abspath $(BIN)):$$PATH tools/sanitize.sh

.PHONY: fuzz
fuzz: venv  ## any bytes as an event log, for ten minutes (needs clang with libFuzzer)
	PATH=$(abspath $(BIN)):$$PATH tools/fuzz.sh

.PHONY: lint
lint: build  ## formatting, types, stubs against the modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest stoker._core --mypy-config-file pyproject.toml --allowlist tests/stubtest_allowlist.txt

.PHONY: format
format: venv  ## format everything in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

.PHONY: wheel
wheel: venv  ## build dist/stoker-*.whl
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) STOKER_WERROR=ON $(BIN)/python -m pip wheel -q --no-build-isolation --no-deps \
	  -C build-dir=build/editable -w dist .

# Builds the modules straight into python/stoker, for work with PYTHONPATH=python and without an install.
BUILD ?= build/dev
NATIVE_PYTHON ?= $(if $(wildcard $(BIN)/python),$(abspath $(BIN))/python,$(PYTHON))
CMAKE_ARGS ?= -DSTOKER_CUDA=OFF -DSTOKER_WERROR=ON
CCACHE := $(shell command -v ccache)

.PHONY: native
native:  ## build the native modules into python/stoker (needs cmake, ninja, pybind11 for NATIVE_PYTHON)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$$(command -v $(NATIVE_PYTHON)) \
	  $(if $(CCACHE),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache) $(CMAKE_ARGS)
	cmake --build $(BUILD) -j$(JOBS)
	cmake --install $(BUILD) --prefix python --component python

.PHONY: clean
clean:  ## remove builds and the virtual environment
	rm -rf build dist $(VENV) python/stoker/*.so
