#!/usr/bin/env bash
# Runs every fuzz target for some seconds each and prints a row of figures for each.
#   tests/fuzz/run.sh [SECONDS [TARGET...]]   60 seconds and all targets by default
# With P2PVM_FIGURES=docs/figures the figures go there too, for docs/hostile.md. Needs Rust and a
# C++ compiler (apt-get install build-essential); installs cargo-fuzz if it is missing. Inputs on
# which a target fails are kept below tests/fuzz/artifacts, its corpus below tests/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
if ! command -v c++ >/dev/null; then
  echo "fuzz: a C++ compiler is needed: apt-get install build-essential" >&2
  exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: installing cargo-fuzz" >&2
  cargo install --locked cargo-fuzz
fi
# The instrumentation is an unstable flag of a stable compiler. No address sanitizer: it needs a
# nightly compiler, and none of these decoders has unsafe code.
export RUSTC_BOOTSTRAP=1
options=(--fuzz-dir tests/fuzz --sanitizer none --target-dir "${CARGO_TARGET_DIR:-target}/fuzz")
cargo fuzz build "${options[@]}"
failed=0
echo "| target | executions | a second | edges reached | findings |"
echo "|---|---|---|---|---|"
figures=$(mktemp)
if [ $# -gt 0 ]; then
  targets=("$@")
else
  mapfile -t targets < <(cargo fuzz list --fuzz-dir tests/fuzz)
fi
for target in "${targets[@]}"; do
  log=$(mktemp)
  found=0
  cargo fuzz run "${options[@]}" "$target" -- -max_total_time="$seconds" -max_len=4096 \
    -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 >"$log" 2>&1 || found=1
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  edges=$(grep -oE 'cov: [0-9]+' "$log" | tail -1 | cut -d' ' -f2 || true)
  echo "| \`$target\` | $(stat number_of_executed_units) | $(stat average_exec_per_sec)" \
    "| ${edges:-?} | $found |"
  printf '%s\t%s\t%s\t\t%s\n' executions "$target" executions "$(stat number_of_executed_units)" \
    edges "$target" "edges reached" "${edges:-unknown}" findings "$target" findings "$found" >>"$figures"
  if [ "$found" = 1 ]; then
    failed=1
    tail -40 "$log" >&2
  fi
  rm -f "$log"
done
if [ -n "${P2PVM_FIGURES:-}" ]; then
  cargo run --quiet --locked -p p2pvm-figures -- record fuzz "tests/fuzz/run.sh $seconds" <"$figures"
fi
rm -f "$figures"
exit "$failed"
