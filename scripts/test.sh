#!/usr/bin/env bash
# Runs all tests, also the end-to-end tests on the emulated wide area. They make their own network
# namespaces and need root. The output ends with the runner's summary line.
set -euo pipefail
if [ "$(id -u)" -ne 0 ]; then
  # The user builds; only the tests run as root.
  cargo test --locked --workspace --no-run
  exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME "$0" "$@"
fi
echo "test: not included: the appliance's ISO: make test-iso (about 20 minutes); the package: make test-deb (2 to 4 minutes, and more the first time);"
echo "test: also not included: slow tests, such as most kinds of hosts, booted machines with other programs, paths that heal and the long chaos run: make test-slow (about 25 minutes)"
export P2PVM_TEST_IMAGE="$PWD/target/guest-image/guest.qcow2"
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --locked --workspace --no-fail-fast "$@"
fi
exec cargo test --locked --workspace --no-fail-fast "$@" -- --test-threads=2
