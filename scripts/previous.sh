#!/usr/bin/env bash
# Builds the p2pvm of the previous release for the tests that have both in one network, and prints
# its path. Idempotent: a program that is built is kept in target/previous. The first time takes
# about ten minutes on two processors; what the build leaves is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"

# The last commit before the work on authority began. Reason: nothing of that work is in it, and it
# has all that members of that time sent each other (docs/decisions/0056-versions.md).
PREVIOUS=fb30547fcfcbd98b0cf09165fb33c27138d4a3f5

place=target/previous/$PREVIOUS
program=$PWD/$place/p2pvm
mkdir -p "$place"
# One at a time: a second one waits for the program.
exec 9>"$place/lock"
flock 9
if [ ! -x "$program" ]; then
  if ! git cat-file -e "$PREVIOUS^{commit}" 2>/dev/null; then
    echo "previous.sh: this clone lacks commit $PREVIOUS, the previous release: fetch the whole" \
      "history with 'git fetch --unshallow' and run it again" >&2
    exit 3
  fi
  tree=$place/tree build=$place/build
  trap 'rm -rf "$tree" "$build"' EXIT
  echo "previous.sh: builds the previous release, which takes about ten minutes once" >&2
  rm -rf "$tree"
  mkdir -p "$tree"
  git archive "$PREVIOUS" | tar -x -C "$tree"
  # Without the dashboard's page, which no test of it opens; without debug information, which takes
  # most of the disk.
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 cargo build --quiet --locked \
    --manifest-path "$tree/Cargo.toml" --target-dir "$build" -p p2pvm --bin p2pvm >&2
  install -m 0755 "$build/debug/p2pvm" "$program.new"
  mv "$program.new" "$program"
  # Those of other commits, which were the previous release once.
  find target/previous -mindepth 1 -maxdepth 1 ! -name "$PREVIOUS" -exec rm -rf {} +
fi
echo "$program"
