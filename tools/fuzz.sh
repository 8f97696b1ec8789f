#!/bin/bash
# Builds tests/fuzz with clang (libFuzzer, AddressSanitizer, UBSan) and runs it on event logs for STOKER_FUZZ_SECONDS (600 by default).
# What it learns stays in build/fuzz/corpus. Says so and ends well where there is no clang with libFuzzer.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${STOKER_FUZZ_SECONDS:-600}
jobs=${JOBS:-2}
launcher=$(command -v ccache || true)

clang=""
for candidate in "${CLANGXX:-clang++}" clang++-{20,19,18,17,16,15,14}; do
  if command -v "$candidate" >/dev/null && echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    "$candidate" -x c++ - -fsanitize=fuzzer,address,undefined -o /dev/null 2>/dev/null; then
    clang=$candidate
    break
  fi
done
if [ -z "$clang" ]; then
  echo "fuzz: skipped: no clang++ with libFuzzer and sanitizers here"
  exit 0
fi

cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$clang" -DSTOKER_CUDA=OFF \
  -DSTOKER_TESTS=ON -DSTOKER_FUZZ=ON -DSTOKER_SANITIZE="fuzzer-no-link,address,undefined" \
  -DPython_EXECUTABLE="$(command -v "${PYTHON:-python3}")" ${launcher:+-DCMAKE_CXX_COMPILER_LAUNCHER="$launcher"} >/dev/null
cmake --build build/fuzz -j"$jobs" --target event_log_fuzz
mkdir -p build/fuzz/corpus
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
build/fuzz/tests/event_log_fuzz --seeds build/fuzz/corpus
build/fuzz/tests/event_log_fuzz build/fuzz/corpus -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=20 \
  -artifact_prefix=build/fuzz/ -print_final_stats=1
echo "fuzz: $seconds s without a finding"
