#!/usr/bin/env bash
# Runs every fuzz target for some seconds each (default 60). Needs cargo-fuzz (cargo install cargo-fuzz).
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
# The instrumentation is an unstable flag of a stable compiler.
export RUSTC_BOOTSTRAP=1
failed=0
for target in $(cargo fuzz list --fuzz-dir tests/fuzz); do
  log=$(mktemp)
  if cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" -- -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=1024 >"$log" 2>&1; then
    echo "$target: $(grep -oE 'stat::number_of_executed_units: *[0-9]+|DONE .*|Done [0-9]+ runs.*' "$log" | tail -1)"
  else
    failed=1
    echo "$target: FAILED"
    tail -30 "$log"
  fi
  rm -f "$log"
done
exit "$failed"
