# The commands of the README and of development. Each target is sufficient by itself on a fresh machine that has
# Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where `make native` builds; other trees (sanitizers, CUDA) live beside it.
BUILD ?= build/dev
NATIVE_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CMAKE_ARGS ?= -DSTOKER_CUDA=OFF -DSTOKER_WERROR=ON
CCACHE := $(shell command -v ccache)

.PHONY: native
native:  ## build _core into python/stoker/ (development; needs cmake, ninja and pybind11 for NATIVE_PYTHON)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$$(command -v $(NATIVE_PYTHON)) \
	  $(if $(CCACHE),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache) $(CMAKE_ARGS)
	cmake --build $(BUILD) -j2
	cmake --install $(BUILD) --prefix python --component python
