#!/bin/bash
# Builds, tests and measures the GPU path, section by section, each with a time limit.
#   benchmarks/gpu.sh [-o OUT] [SECTION ...]        without sections: build test ops linear decode prefill
#   build      stoker with its CUDA module for this machine's GPU (ARCHITECTURES), into python/stoker
#   test       tests/gpu
#   ptx        the sm_80 path on a newer GPU: a build that has PTX for sm_80 only, under the kernels' tests
#   sanitize   compute-sanitizer: memcheck over every kernel, racecheck where shared memory is shared
#   step parts e2e overcommit    the engine: host and idle time of a step, what its parts cost, workloads A to D, KV for half of the demand
#   kernels    stoker bench kernels, and the same under pytest-benchmark
#   wheel      a wheel built, installed in a new environment and used there
#   ops linear decode prefill    kernels beside their floors and peers (python/stoker must hold a build)
# Results go to OUT (build/gpu-results). One H100 or H200 and 16 cores: build a minute, the others half a minute to three each.
set -o pipefail
cd "$(dirname "$0")/.." || exit 1
out=$PWD/build/gpu-results
if [ "$1" = -o ]; then out=$2; shift 2; fi
mkdir -p "$out"
python=$(command -v python3)
export PYTHONPATH=${PYTHONPATH:-$PWD/python} PYTHONUNBUFFERED=1

compile() { # compile FOLDER ARCHITECTURES PREFIX
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSTOKER_CUDA=ON -DSTOKER_CUDA_ARCHITECTURES="$2" \
    -DPython_EXECUTABLE="$python" > "$1.log" 2>&1 &&
    cmake --build "$1" -j"$(nproc)" >> "$1.log" 2>&1 &&
    cmake --install "$1" --prefix "$3" --component python >> "$1.log" 2>&1 || { tail -n 40 "$1.log"; return 1; }
}

section_build() { mkdir -p build && compile build/gpu "${ARCHITECTURES:-90a-real}" python; }

section_test() { timeout 300 "$python" -m pytest -q -o addopts="" -p no:cacheprovider --tb=short tests/gpu; }

# The driver compiles a module's PTX when it is first needed: the files run side by side.
section_ptx() {
  local tree=build/ptx pids=() failed=0
  mkdir -p $tree && cp -r python $tree/ && { [ -n "$PTX_BUILT" ] || compile build/gpu-ptx 80-virtual $tree/python; } || return 1
  [ -z "$PTX_BUILT" ] || cp "$PTX_BUILT" $tree/python/stoker/
  for name in linear decode_attention prefill_attention elementwise sample; do
    PYTHONPATH=$PWD/$tree/python CUDA_CACHE_DISABLE=1 timeout 240 "$python" -m pytest -q -o addopts="" -p no:cacheprovider \
      --tb=line -k "not float32_tokens" tests/gpu/test_$name.py > "$out/ptx_$name.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  tail -n 1 "$out"/ptx_*.log
  return $failed
}

section_sanitize() {
  local tool=(compute-sanitizer --error-exitcode 9 --target-processes all --print-limit 5)
  check() { # check NAME TOOL SECONDS ARGUMENTS...
    timeout "$3" "${tool[@]}" --tool "$2" "$python" -m pytest -q -o addopts="" -p no:cacheprovider "${@:4}" \
      > "$out/$2_$1.log" 2>&1 || { echo "$2 $1: FAILED or out of time"; }
    grep -h -E "ERROR SUMMARY|RACECHECK SUMMARY|passed|failed" "$out/$2_$1.log" | sed "s/^/$2 $1: /"
  }
  local jobs=()
  check linear memcheck 150 tests/gpu/test_linear.py -k "(dtype2 and (shape0 or shape3 or shape6)) or fp8 or 16-2048-dtype2 or 10560-136-dtype2" & jobs+=($!)
  check decode memcheck 150 tests/gpu/test_decode_attention.py -k "reference and 128 or fp8 or window or plain or 20000" & jobs+=($!)
  check prefill memcheck 150 tests/gpu/test_prefill_attention.py -k "reference and 128 or fp8 or mixed" & jobs+=($!)
  check small memcheck 150 tests/gpu/test_elementwise.py tests/gpu/test_sample.py -k "not 151936" & jobs+=($!)
  check linear racecheck 150 tests/gpu/test_linear.py -k "dtype2 and shape3 or 13-shape7-dtype2 or 16-2048-dtype2 or 3072-136-dtype2" & jobs+=($!)
  check decode racecheck 150 tests/gpu/test_decode_attention.py -k "reference and 128 and 4" & jobs+=($!)
  check prefill racecheck 150 tests/gpu/test_prefill_attention.py -k race & jobs+=($!)
  check sample racecheck 200 tests/gpu/test_sample.py -k "bad_rows or next_to_none or (masks and 0) or (same_tokens and 0-7)" & jobs+=($!)
  check small racecheck 150 tests/gpu/test_elementwise.py -k "(rope and 128) or (norms and 1024)" & jobs+=($!)
  for job in "${jobs[@]}"; do wait "$job"; done
  ! grep -L -E "ERROR SUMMARY: 0|RACECHECK SUMMARY: 0" "$out"/memcheck_*.log "$out"/racecheck_*.log | grep .
}

section_ops() { timeout 60 "$python" benchmarks/gpu/ops.py "$out/gpu_ops.json"; }
section_linear() { timeout 90 "$python" benchmarks/gpu/linear.py "$out/gpu_linear.json"; }
section_decode() {
  timeout 220 "$python" benchmarks/gpu/decode.py "$out/gpu_decode_full.json" --cells "${CELLS:-full}" --pool-gb 36 --seconds 180
}
section_prefill() { timeout 120 "$python" benchmarks/gpu/prefill.py "$out/gpu_prefill.json" --pool-gb 8; }

section_step() { timeout 60 "$python" benchmarks/gpu/step.py --out "$out/gpu_step.json"; }
section_parts() { timeout 60 "$python" benchmarks/gpu/parts.py --out "$out/gpu_parts.json"; }
section_overcommit() { timeout 130 "$python" benchmarks/gpu/overcommit.py --out "$out/gpu_overcommit.json"; }
section_e2e() {
  for model in qwen3-0.6b llama-3.1-8b; do
    timeout 170 "$python" benchmarks/gpu/e2e.py --model $model --workloads CADB --budget 140 --out "$out/gpu_e2e_$model.json" || return 1
  done
}
section_kernels() {
  timeout 60 "$python" -m stoker.cli bench kernels --json "$out/gpu_kernels.json" &&
    timeout 60 "$python" -m pytest -q benchmarks -k gpu --benchmark-enable -p no:cacheprovider
}
section_wheel() {
  STOKER_CUDA=ON CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) CMAKE_ARGS="-DSTOKER_CUDA_ARCHITECTURES=${ARCHITECTURES:-90a-real}" \
    "$python" -m pip wheel -q --no-build-isolation --no-deps -w build/wheel . > "$out/wheel.log" 2>&1 || { tail -n 40 "$out/wheel.log"; return 1; }
  # A new environment; torch and the rest come from the Python that is here, so that nothing is fetched.
  local venv=build/wheel-venv
  rm -rf $venv && "$python" -m venv --without-pip $venv &&
    "$python" -m pip --python $venv/bin/python install -q --no-index --no-deps build/wheel/stoker-*.whl &&
    "$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
      > "$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_is_there.pth" &&
    (cd build && env -u PYTHONPATH wheel-venv/bin/python ../tools/smoke.py)
}

status=0
for section in ${*:-build test ops linear decode prefill}; do
  echo "--- $section"
  began=$SECONDS
  "section_$section" || { status=1; echo "$section: FAILED"; }
  echo "$section took $((SECONDS - began)) s"
done
exit $status
