#!/usr/bin/env bash
# Builds the Debian package: the program, its units, settings, manual pages and completions.
#   deb.sh [--profile release|debug] [--version V] [--out DIR]
# Builds the program with that profile unless P2PVM_BIN names an existing one. Needs cargo-deb.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"
profile=release version= out=target/debian
while [ $# -gt 0 ]; do
  case $1 in
    --profile) profile=$2 ;;
    --version) version=$2 ;;
    --out) out=$2 ;;
    *) echo "deb.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
if ! cargo deb --version >/dev/null 2>&1; then
  echo "deb.sh: cargo-deb is not installed: scripts/tools.sh deb" >&2
  exit 3
fi
flag=--$profile
[ "$profile" = debug ] && flag=
target=${CARGO_TARGET_DIR:-target}
if [ -z "${P2PVM_BIN:-}" ]; then
  # shellcheck disable=SC2086
  cargo build --locked $flag -p p2pvm
  P2PVM_BIN=$target/$profile/p2pvm
fi
# A directory of its own, so that nothing of a previous build gets into the package. cargo-deb reads
# its paths from node/Cargo.toml.
stage=target/package
rm -rf "$stage"
mkdir -p "$stage" "$out"
# shellcheck disable=SC2086
cargo run --locked -q $flag -p p2pvm --example shell-files -- "$stage"
gzip -9n "$stage"/man/*.1
install -m 0755 "$P2PVM_BIN" "$stage/p2pvm"
strip "$stage/p2pvm"
cargo deb --no-build --no-strip --no-dbgsym -p p2pvm ${version:+--deb-version "$version"} -o "$out/"
