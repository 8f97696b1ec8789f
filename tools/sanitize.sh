#!/bin/bash
# Builds the native tests under sanitizers and runs them: scheduler, loop and scripted executor with random workloads under
# AddressSanitizer and UBSan, the loop with its inbox and hand-over under ThreadSanitizer.
# STOKER_WORKLOADS: random workloads for ASan/UBSan (200 by default).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-2}
workloads=${STOKER_WORKLOADS:-200}
launcher=$(command -v ccache || true)

build() {  # name, sanitizers
  cmake -S . -B "build/sanitize-$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSTOKER_CUDA=OFF -DSTOKER_WERROR=ON \
    -DSTOKER_TESTS=ON -DSTOKER_SANITIZE="$2" -DPython_EXECUTABLE="$(command -v python3)" \
    ${launcher:+-DCMAKE_CXX_COMPILER_LAUNCHER="$launcher"} >/dev/null
  cmake --build "build/sanitize-$1" -j"$jobs" --target native_tests
}

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

build address address,undefined
build/sanitize-address/tests/random_workloads --count "$workloads"
build/sanitize-address/tests/loop_threads
build/sanitize-address/tests/scripted_checks

build thread thread
# Address layout randomisation with many bits upsets older ThreadSanitizers.
run="$(command -v setarch >/dev/null && setarch "$(uname -m)" -R true 2>/dev/null && echo "setarch $(uname -m) -R" || true)"
$run build/sanitize-thread/tests/loop_threads
$run build/sanitize-thread/tests/random_workloads --count $((workloads / 10 + 1)) --threads

echo "sanitizers: clean"
