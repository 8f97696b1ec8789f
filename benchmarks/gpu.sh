#!/bin/bash
# Builds stoker with its CUDA module for this machine, runs tests/gpu, and times every kernel beside its floor and the best
# peer. Usage: benchmarks/gpu.sh [OUT folder]; about three minutes on 16 cores and one H200.
set -eo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-results}
mkdir -p "$out"
cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DSTOKER_CUDA=ON \
  -DSTOKER_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a-real}" -DPython_EXECUTABLE="$(command -v python3)" >"$out/build.log"
cmake --build build/gpu -j"$(nproc)" >>"$out/build.log"
cmake --install build/gpu --prefix python --component python >>"$out/build.log"
export PYTHONPATH=$PWD/python
timeout 120 python3 -m pytest -q tests/gpu -o addopts="" -p no:cacheprovider
timeout 120 python3 benchmarks/gpu/ops.py "$out/gpu_ops.json"
timeout 200 python3 benchmarks/gpu/decode.py "$out/gpu_decode_full.json" --cells full --pool-gb 36 --seconds 180
