#!/usr/bin/env bash
# Compiles stoker._cuda where nvcc is found, GPU or not, and imports it.
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null || true)
if [ -z "$nvcc" ]; then echo "nvcc: not found here, stoker._cuda not compiled"; exit 0; fi
bin=$PWD/.venv/bin
start=$SECONDS
mkdir -p build
PATH="$bin:$PATH" cmake -S . -B build/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DSTOKER_CUDA=ON -DSTOKER_WERROR=ON \
  -DCMAKE_CUDA_COMPILER="$nvcc" -DPython_EXECUTABLE="$bin/python" > build/cuda-configure.log 2>&1 ||
  { cat build/cuda-configure.log; exit 1; }
PATH="$bin:$PATH" cmake --build build/cuda -j2 --target _cuda > build/cuda-build.log 2>&1 ||
  { tail -n 60 build/cuda-build.log; exit 1; }
echo "stoker._cuda compiled in $((SECONDS - start)) s"
"$bin/python" - build/cuda/csrc/bind/_cuda.*.so << 'PY'
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("stoker._cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("stoker._cuda imports without a GPU:", module.__doc__)
PY
