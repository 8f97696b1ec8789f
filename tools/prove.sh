#!/usr/bin/env bash
# The long forms of the proofs: every test marked long, the sanitizers, the planted bugs. Takes hours on two cores.
# What was run and found goes to benchmarks/results/proof.md.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
report=benchmarks/results/proof.md
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
{
  echo "# What the long proofs found"
  echo
  echo "Written by \`make prove\` at commit $(git rev-parse --short HEAD), $(date -u +%F), on $(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)."
  echo
  echo "| what | command | outcome | seconds |"
  echo "| --- | --- | --- | --- |"
} > "$report"

step() {  # step NAME COMMAND...
  local name=$1 start=$SECONDS outcome
  shift
  printf '\n=== %s\n' "$name"
  if "$@" 2>&1 | tee "$log"; then outcome=$(tail -n 1 "$log" | sed 's/^=* *//; s/ *=*$//'); else outcome="FAILED: $(tail -n 1 "$log")"; failed=1; fi
  echo "| $name | \`$*\` | ${outcome//|/\\|} | $((SECONDS - start)) |" >> "$report"
}

step "every test, long forms" env STOKER_LONG=1 "$python" -m pytest -q --timeout 7200
step "sanitizers" make sanitize
step "fuzzing of event logs" make fuzz
echo
cat "$report"
exit $failed
