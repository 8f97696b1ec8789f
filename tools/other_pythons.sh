#!/usr/bin/env bash
# Builds _core for each other CPython from 3.10 on that this machine has, and runs the scheduler in it.
# One build tree serves all: what knows no Python is compiled once. torch is left out: the scheduler needs none.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
tools=$PWD/.venv/bin
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
  env=$work/$minor
  "$python" -m venv "$env"
  "$env/bin/python" -m pip install -q -c constraints.txt numpy pybind11
  # -O1: this build is run for a second.
  "$tools/cmake" -S . -B "$work/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$tools/ninja" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 \
    -DSTOKER_CUDA=OFF -DPython_EXECUTABLE="$env/bin/python" -DPython_ROOT_DIR="$env" -UPython_INCLUDE_DIR -U_Python_* -Upybind11_* \
    > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  "$tools/cmake" --build "$work/build" -j2 > "$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
  cp -r python "$env/site"
  rm -f "$env"/site/stoker/*.so
  "$tools/cmake" --install "$work/build" --prefix "$env/site" --component python > /dev/null
  (cd "$env" && PYTHONPATH=$env/site "$env/bin/python" "$smoke" --scheduler-only)
done
