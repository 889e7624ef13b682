#!/usr/bin/env bash
# Checks formatting, lints and the dependency rules. If a tool is missing, it says which check it leaves out.
set -euo pipefail
have() { cargo "$1" --version >/dev/null 2>&1; }

if have fmt; then cargo fmt --all --check; else echo "lint: cargo fmt is not installed here: formatting not checked"; fi
if have clippy; then cargo clippy --locked --workspace --all-targets -- -D warnings; else echo "lint: clippy is not installed here: lints not checked"; fi
if have deny; then cargo deny --offline check licenses bans sources; else echo "lint: cargo-deny is not installed here: dependency rules (deny.toml) not checked"; fi
