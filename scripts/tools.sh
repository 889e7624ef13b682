#!/usr/bin/env bash
# Installs the named cargo tools that are missing here, into ~/.cargo/bin as `cargo install` does.
# Idempotent: if all are installed, of whatever version, it prints nothing and changes nothing.
#   scripts/tools.sh nextest|deny|deb|fmt|clippy...
#
# nextest and deny come as built programs if there is pip and a package for this processor, which
# takes seconds: Astral builds them from the tagged sources, and the sums below name the files.
# Otherwise cargo builds them, which takes minutes.
set -euo pipefail
bin=${CARGO_HOME:-$HOME/.cargo}/bin
export PATH="$bin:$PATH"

have() { cargo "$1" --version >/dev/null 2>&1; }

# $1 a crate, $2 its version, $3 the SHA-256 sum of the built package for x86_64
install() {
  if [ "$(uname -m)" = x86_64 ] && [ -n "${3:-}" ] && built "$1" "$2" "$3"; then return; fi
  echo "tools: cargo builds $1 $2, which takes some minutes"
  cargo install --locked --version "$2" "$1"
}

# Installs the built program; fails if there is none for this machine.
built() {
  python3 -m pip --version >/dev/null 2>&1 || return 1
  local dir
  dir=$(mktemp -d)
  echo "astral-dev-toolchain-$1==$2 --hash=sha256:$3" >"$dir/wanted"
  if python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    --no-deps --only-binary :all: --require-hashes --target "$dir/of" -r "$dir/wanted" \
    >"$dir/log" 2>&1; then
    mkdir -p "$bin" && mv "$dir/of/bin/$1" "$bin/$1" && rm -r "$dir"
  else
    echo "tools: pip has no $1 $2 for this machine: $(tail -1 "$dir/log")" >&2
    rm -r "$dir"
    return 1
  fi
}

# $1 rustup's name of a part of the compiler's release, $2 Debian's
component() {
  if command -v rustup >/dev/null; then
    rustup component add "$1"
  elif [ "$(command -v cargo)" = /usr/bin/cargo ]; then
    if [ "$(id -u)" -eq 0 ]; then
      apt-get install -y -qq "$2"
    else
      sudo apt-get install -y -qq "$2"
    fi
  fi
}

for tool; do
  have "$tool" && continue
  case $tool in
    nextest) install cargo-nextest 0.9.148 \
      76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 ;;
    deny) install cargo-deny 0.20.2 \
      ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee ;;
    deb) install cargo-deb 3.8.0 ;;
    fmt) component rustfmt rustfmt ;;
    clippy) component clippy rust-clippy ;;
    *) echo "tools: unknown tool '$tool'" >&2; exit 2 ;;
  esac || true
  have "$tool" && continue
  echo "tools: 'cargo $tool' is missing and could not be installed: see CONTRIBUTING.md" >&2
  exit 1
done
