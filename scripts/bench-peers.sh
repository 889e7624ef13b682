#!/usr/bin/env bash
# Installs the programs with which `make bench-net` compares p2pvm. Idempotent. It names a program
# that it cannot install and leaves it out; the bench's table says so. Needs root for Debian's
# packages only.
#   BENCH_PEERS=DIR     where the programs from crates.io go (default target/bench-peers)
#   BENCH_EASYTIER=no   do not build EasyTier, which takes long
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive
root=${BENCH_PEERS:-target/bench-peers}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
has() { command -v "$1" >/dev/null || [ -x "$root/bin/$1" ]; }

updated=
apt_install() {
  [ -n "$updated" ] || { as_root apt-get update -qq; updated=1; }
  as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Each program and its Debian package. The guests of the bench use iperf3.
for pair in wg:wireguard-tools nebula:nebula tincd:tinc edge:n2n iperf3:iperf3; do
  has "${pair%%:*}" || apt_install "${pair##*:}" || echo "bench-peers: no ${pair##*:} here" >&2
done
# The package of bookworm-backports supports TSO and UDP GSO, bookworm's own does not.
if ! has wireguard-go; then
  apt_install -t bookworm-backports wireguard-go 2>/dev/null || apt_install wireguard-go \
    || echo "bench-peers: no wireguard-go here" >&2
fi

# Each program and its crate.
crates="gotatun:gotatun-cli boringtun-cli:boringtun-cli"
[ "${BENCH_EASYTIER:-yes}" = no ] || crates="$crates easytier-core:easytier"
for pair in $crates; do
  has "${pair%%:*}" \
    || cargo install --quiet --locked --root "$root" --target-dir "$root/build" "${pair##*:}" \
    || echo "bench-peers: ${pair##*:} could not be built" >&2
done
exit 0
