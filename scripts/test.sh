#!/usr/bin/env bash
# Runs all tests, also the end-to-end tests on the emulated wide area. They make their own network
# namespaces and need root. The output ends with the runner's summary line.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
# There is no fallback on `cargo test`: it does not read .config/nextest.toml, which says which
# tests run, beside which others and for how long.
scripts/tools.sh nextest
if [ "$(id -u)" -ne 0 ]; then
  # The user builds; only the tests run as root.
  cargo nextest run --locked --workspace --no-run
  exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME "$0" "$@"
fi
cat <<'EOT'
test: not included: the appliance's ISO: make test-iso (about 20 minutes);
test: the package: make test-deb (2 to 4 minutes, and more the first time);
test: slow tests, such as most kinds of hosts, booted machines with other programs, paths that
test: heal and the long chaos run: make test-slow (about 25 minutes)
EOT
export P2PVM_TEST_IMAGE="$PWD/target/guest-image/guest.qcow2"
exec cargo nextest run --locked --workspace --no-fail-fast "$@"
