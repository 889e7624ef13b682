#!/usr/bin/env bash
# Installs the Debian packages that the build, the tests and the demo need and that this machine
# lacks. Idempotent: if all are installed, it prints nothing and changes nothing. Needs root only to
# install.
# `setup.sh iso` also installs what the appliance's ISO and its boot tests need, `setup.sh deb` what
# the package's test needs, `setup.sh web` a browser for the dashboard's tests, `setup.sh slow` what
# boots machines with other programs.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# Warns early: a build that fills the disk fails in many places without naming the cause.
needed=14
free=$(df --output=avail -BG "$(dirname "$0")/.." | tail -1 | tr -dc 0-9)
if [ $# -eq 0 ] && [ ! -d "${CARGO_TARGET_DIR:-target}/debug/deps" ] \
  && [ "$free" -lt "$needed" ]; then
  echo "setup: only $free GiB are free here; a build with all tests needs about $needed" >&2
fi

declare -A package=(
  [cc]=build-essential [ip]=iproute2 [nft]=nftables [ping]=iputils-ping [iperf3]=iperf3
  [busybox]=busybox-static [dpkg-deb]=dpkg [flock]=util-linux [miniupnpd]=miniupnpd-nftables [tmux]=tmux
  [dig]=bind9-dnsutils [curl]=curl [mmdebstrap]=mmdebstrap [musl-gcc]=musl-tools [iptables-legacy-save]=iptables
  [dbus-daemon]=dbus-daemon [faketime]=faketime [wg-quick]=wireguard-tools [wireguard-go]=wireguard-go
)
if [ "${1:-}" = iso ]; then
  package+=(
    [mksquashfs]=squashfs-tools [xorriso]=xorriso [grub-mkimage]=grub-common [mkfs.vfat]=dosfstools
    [mcopy]=mtools [zstd]=zstd [cpio]=cpio [depmod]=kmod [xz]=xz-utils
  )
fi
if [ "${1:-}" = web ]; then
  package+=([chromium]=chromium)
fi
if [ "${1:-}" = deb ] || [ "${1:-}" = slow ]; then
  package+=([systemd-nspawn]=systemd-container)
fi
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
if [ "${1:-}" = iso ]; then
  [ -d /usr/lib/grub/i386-pc ] || missing+=(grub-pc-bin)
  [ -d /usr/lib/grub/x86_64-efi ] || missing+=(grub-efi-amd64-bin)
  [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || missing+=(ovmf)
fi

qemu_major() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\)\..*/\1/p'; }
need_qemu=
if ! [ "$(qemu_major || true)" -ge 10 ] 2>/dev/null || ! command -v qemu-img >/dev/null \
  || ! command -v qemu-storage-daemon >/dev/null; then
  need_qemu=1
fi
# The guest image is made of Debian packages, so apt needs its package lists.
need_lists=
case $(apt-cache policy linux-image-cloud-amd64 2>/dev/null) in *"Candidate: "[0-9]*) ;; *) need_lists=1 ;; esac

[ ${#missing[@]} -eq 0 ] && [ -z "$need_qemu$need_lists" ] && exit 0

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
export DEBIAN_FRONTEND=noninteractive
echo "setup: apt-get update${missing:+; installing ${missing[*]}}${need_qemu:+; installing QEMU 10}"
as_root apt-get update -qq

if [ -n "$need_qemu" ]; then
  # Bookworm's own QEMU 7.2 lacks features that live migration uses; its backports have 10.
  # shellcheck disable=SC1091
  . /etc/os-release
  release=()
  if [ "${VERSION_CODENAME:-}" = bookworm ]; then
    case $(apt-cache policy) in *bookworm-backports*) ;; *)
      # The mirror this machine already uses also carries the backports.
      mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' |
        awk '$2 ~ /^bookworm/ && $1 !~ /security/ && $1 ~ /debian/ {print $1; exit}')
      if [ -z "$mirror" ]; then
        echo "setup: no Debian mirror is configured: add one to /etc/apt/sources.list" >&2
        exit 1
      fi
      echo "deb $mirror bookworm-backports main" |
        as_root tee /etc/apt/sources.list.d/p2pvm-backports.list >/dev/null
      as_root apt-get update -qq ;;
    esac
    release=(-t bookworm-backports)
  fi
  as_root apt-get install -y -qq --no-install-recommends "${release[@]}" qemu-system-x86 qemu-utils
fi
[ ${#missing[@]} -eq 0 ] || as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
