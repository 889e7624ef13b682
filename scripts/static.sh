#!/usr/bin/env bash
# Builds one file that needs no library of the machine it runs on, linked statically with glibc
# (docs/decisions/0027-static-program.md).
#   static.sh build FILE   builds it without debugging information, in the time of a release build
#   static.sh check FILE   starts it as a lone member in an empty root. Needs root
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"
fail() { echo "static.sh: $*" >&2; exit 1; }

build() {
  local target
  target=$(rustc -vV | sed -n 's/^host: //p')
  # With --target the flag does not apply to build scripts and macros, which the compiler loads.
  RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --locked --release -p p2pvm --target "$target"
  install -D -m 0755 "${CARGO_TARGET_DIR:-target}/$target/release/p2pvm" "$1"
  strip "$1"
}

# Runs the program in the empty root $1. `check` gives it namespaces of its own, so that a failure
# leaves only the directory behind.
alone() {
  local root=$1 p2pvm
  p2pvm=(chroot "$root" /p2pvm)
  "${p2pvm[@]}" --version
  ip link set lo up
  mkdir "$root/dev" "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t proc proc "$root/proc"
  export P2PVM_DIR=/state
  # Without QEMU, name server and clock daemon the doctor reports failures, but ends its checks.
  "${p2pvm[@]}" doctor >"$root/doctor" || [ $? -eq 1 ] \
    || fail "'p2pvm doctor' did not end with exit code 0 or 1"
  grep -q '^tun ' "$root/doctor" \
    || fail "'p2pvm doctor' has no line about TUN: $(cat "$root/doctor")"
  "${p2pvm[@]}" init --network empty --name alone >/dev/null
  "${p2pvm[@]}" up --detach
  "${p2pvm[@]}" --json status >"$root/status"
  ping -c 1 -W 5 "$(sed -n 's/^ *"address": "\(.*\)",*$/\1/p' "$root/status")" >/dev/null \
    || fail "its address does not answer"
  "${p2pvm[@]}" down
}

check() {
  [ -x "$1" ] || fail "$1 is not a program: build it with 'make static'"
  if readelf -lW "$1" | grep -q INTERP || readelf -dW "$1" | grep -q NEEDED; then
    fail "$1 is not static: \
$(readelf -dW "$1" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | paste -sd' ')"
  fi
  [ "$(id -u)" -eq 0 ] || fail "the empty root, namespaces and TUN need root: run it with sudo"
  root=$(mktemp -d)
  trap 'rm -rf --one-file-system "$root"' EXIT
  cp "$1" "$root/p2pvm"
  unshare --mount --net --pid --fork --kill-child scripts/static.sh alone "$root" \
    || fail "$1 does not run in an empty root (see above)"
  echo "static.sh: $1 ($(du -h --apparent-size "$1" | cut -f1)) runs in an empty root"
}

case "${1:-} $#" in
  "build 2" | "check 2" | "alone 2") "$@" ;;
  *) echo "usage: static.sh build FILE | check FILE" >&2; exit 2 ;;
esac
