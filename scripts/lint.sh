#!/usr/bin/env bash
# Checks formatting, the dependency rules and, without --fast, clippy's lints, which compiles. If a
# tool is missing, it says which check it leaves out; with --strict, and in continuous integration (CI
# is set), it installs the tool or fails.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
strict=${CI:-} fast=
for option in "$@"; do
  case $option in
    --strict) strict=1 ;;
    --fast) fast=1 ;;
    *) echo "usage: scripts/lint.sh [--strict] [--fast]" >&2; exit 2 ;;
  esac
done

# Whether the tool $1 is installed; if it is not, says that $2 is not checked.
have() {
  if [ -n "$strict" ]; then
    scripts/tools.sh "$1" || exit 1
  elif ! cargo "$1" --version >/dev/null 2>&1; then
    echo "lint: cargo $1 is not installed here (scripts/tools.sh $1): $2 not checked"
    return 1
  fi
}

if have fmt "formatting"; then cargo fmt --all --check; fi
if have deny "dependency rules (deny.toml)"; then
  # cargo-deny runs offline, on the crates of the lock file that cargo fetched.
  cargo fetch --locked --target x86_64-unknown-linux-gnu
  cargo deny --offline check licenses bans sources
fi
if [ -z "$fast" ] && have clippy "lints"; then
  cargo clippy --locked --workspace --all-targets -- -D warnings
fi
