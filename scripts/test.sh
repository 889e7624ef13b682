#!/usr/bin/env bash
# All tests, the end-to-end ones on the emulated wide area included. They make their own network
# namespaces and need root. Ends with the runner's own summary line.
set -euo pipefail
if [ "$(id -u)" -ne 0 ]; then
  # One build as the user; only the running is root's.
  cargo test --locked --workspace --no-run
  exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME "$0" "$@"
fi
echo "test: booting the appliance's ISO is not part of this: make test-iso (about 20 minutes); nor is the package: make test-deb (2 to 4, and more the first time);"
echo "test: nor is what takes minutes each, such as most kinds of hosts, booted machines with other programs, paths that heal and the long chaos run: make test-slow (about 25)"
export P2PVM_TEST_IMAGE="$PWD/target/guest-image/guest.qcow2"
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --locked --workspace --no-fail-fast "$@"
fi
exec cargo test --locked --workspace --no-fail-fast "$@" -- --test-threads=2
