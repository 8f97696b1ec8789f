#!/usr/bin/env bash
# Builds the wheel with each other CPython from 3.10 on that this machine has and runs the scheduler in it.
# torch is left out: its build for one Python is enough for the tests, and the scheduler needs none.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
smoke=$PWD/tools/smoke.py
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for minor in 10 11 12 13 14; do
  [ "3.$minor" = "$here" ] && continue
  python=""
  for candidate in "python3.$minor" "$HOME"/.pyenv/versions/3."$minor".*/bin/python; do
    if "$candidate" -c 'import venv' 2> /dev/null; then python=$candidate; break; fi
  done
  if [ -z "$python" ]; then echo "Python 3.$minor: not found here, skipped"; continue; fi
  bin=$work/$minor/bin
  "$python" -m venv "$work/$minor"
  "$bin/python" -m pip install -q --upgrade pip
  "$bin/python" -m pip install -q -c constraints.txt numpy scikit-build-core pybind11 cmake ninja
  CMAKE_BUILD_PARALLEL_LEVEL=2 STOKER_CUDA=OFF PATH="$bin:$PATH" "$bin/python" -m pip install -q --no-deps \
    --no-build-isolation -C build-dir="$work/build-$minor" .
  (cd "$work" && "$bin/python" "$smoke" --scheduler-only)
done
