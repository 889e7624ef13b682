#!/usr/bin/env bash
# All tests, the end-to-end ones on the emulated wide area included. They make their own network
# namespaces and need root. Ends with the runner's own summary line.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
# Which tests run here, beside which others and for how long is said in .config/nextest.toml, which
# `cargo test` does not read: there is no running them without.
scripts/tools.sh nextest
if [ "$(id -u)" -ne 0 ]; then
  # One build as the user; only the running is root's.
  cargo nextest run --locked --workspace --no-run
  exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME "$0" "$@"
fi
cat <<'EOF'
test: booting the appliance's ISO is not part of this: make test-iso (about 20 minutes);
test: nor is the package: make test-deb (2 to 4, and more the first time);
test: nor is what takes minutes each, such as most kinds of hosts, booted machines with other
test: programs, paths that heal and the long chaos run: make test-slow (about 25)
EOF
export P2PVM_TEST_IMAGE="$PWD/target/guest-image/guest.qcow2"
exec cargo nextest run --locked --workspace --no-fail-fast "$@"
