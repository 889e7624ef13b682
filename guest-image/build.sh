#!/bin/sh
# Builds the small guest that the demo and the tests run: Debian's cloud kernel, a busybox userland
# and syslinux on one qcow2 disk. Everything comes out of Debian packages that are downloaded and
# unpacked, never installed, so neither root nor mounts are needed.
#
#   guest-image/build.sh [OUTPUT]
#
# OUTPUT is target/guest-image/guest.qcow2 by default (CARGO_TARGET_DIR applies).
#
# Prints the image's path on stdout. A second run with the same packages and the same files of this
# directory builds nothing. Needs: apt with package lists, dpkg-deb, qemu-img.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-${CARGO_TARGET_DIR:-$here/../target}/guest-image/guest.qcow2}
mkdir -p "$(dirname -- "$out")"
dir=$(CDPATH='' cd -- "$(dirname -- "$out")" && pwd)
out=$dir/$(basename -- "$out")
cache=$dir/packages

fail() { echo "guest-image: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is not installed: apt-get install $2"; }
need apt-get apt
need dpkg-deb dpkg
need qemu-img qemu-utils
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the guest is built for amd64 hosts only"

# One builder at a time: tests that run in parallel may need the image at once.
mkdir -p "$cache"
exec 9>"$dir/lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi

# --- which packages, in which version -------------------------------------------------------------
version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p'; }
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
recipe=$(cat "$here/build.sh" $(find "$here/files" -type f | sort) | sha256sum | cut -c1-16)
if [ -z "$kernel" ]; then
    # No package lists: an image that this recipe has built is used as it is.
    case $(cat "$out.stamp" 2>/dev/null) in "$recipe "*) [ -s "$out" ] && { echo "$out"; exit 0; } ;; esac
    fail "apt knows no linux-image-cloud-amd64: run apt-get update"
fi
packages="$kernel busybox-static syslinux syslinux-common mtools"
stamp=$recipe
for package in $packages; do
    v=$(version "$package")
    case $v in '' | '(none)') fail "apt knows no package $package: run apt-get update" ;; esac
    stamp="$stamp $package=$v"
done
if [ -s "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ]; then echo "$out"; exit 0; fi

# --- download and unpack --------------------------------------------------------------------------
work=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/tree" "$work/root"
for package in $packages; do
    v=$(version "$package")
    deb=$(find "$cache" -name "${package}_$(echo "$v" | sed 's/:/%3a/')_*.deb" | head -n 1)
    if [ -z "$deb" ]; then
        (cd "$work" && apt-get -q -q -o APT::Sandbox::User="$(id -un)" download "$package=$v") || fail "cannot download $package $v"
        mv "$work"/*.deb "$cache/"
        deb=$(find "$cache" -name "${package}_$(echo "$v" | sed 's/:/%3a/')_*.deb" | head -n 1)
        [ -n "$deb" ] || fail "$package $v was downloaded under an unexpected name"
    fi
    dpkg-deb -x "$deb" "$work/tree"
done
tree=$work/tree
busybox=$tree/bin/busybox
[ -x "$busybox" ] || busybox=$tree/usr/bin/busybox
[ -x "$busybox" ] || fail "busybox-static contains no busybox"
PATH=$tree/usr/bin:$PATH # for mtools, which syslinux calls too
export MTOOLS_SKIP_CHECK=1

# --- the guest's files, all in the initramfs ------------------------------------------------------
root=$work/root
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/data" "$root/lib/modules"
cp -R "$here/files/." "$root/"
chmod 755 "$root/init" "$root"/bin/* "$root"/etc/rc "$root"/etc/dhcp "$root"/etc/acpi/*/* "$root"/www/cgi-bin/*
cp "$busybox" "$root/bin/busybox"
modules=$(find "$tree" -type d -path '*/lib/modules/*/kernel' | head -n 1)
[ -n "$modules" ] || fail "$kernel contains no modules"
# In the order in which /init loads them (virtio needs virtio_ring). A module that is built into
# this kernel has no file.
order=0
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
    failover net_failover virtio_net rng-core virtio-rng button evdev; do
    file=$(find "$modules" -name "$module.ko*" | head -n 1)
    [ -n "$file" ] || continue
    order=$((order + 1))
    case $file in
        *.xz) "$busybox" xzcat "$file" ;;
        *) cat "$file" ;;
    esac >"$root/lib/modules/$(printf %02d $order)-$module.ko"
done
(cd "$root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"
cat >"$work/syslinux.cfg" <<'CFG'
DEFAULT guest
PROMPT 0
TIMEOUT 0
LABEL guest
  LINUX vmlinuz
  INITRD initrd
  APPEND console=ttyS0,115200 quiet panic=10 mitigations=off no_timer_check random.trust_cpu=on
CFG

# --- the disk: MBR, a FAT partition to boot from, an ext2 partition for data ----------------------
start=2048 boot=65536 data=32768 # sectors of 512 bytes
le32() { printf "\\$(printf %o $(($1 & 255)))\\$(printf %o $(($1 >> 8 & 255)))\\$(printf %o $(($1 >> 16 & 255)))\\$(printf %o $(($1 >> 24 & 255)))"; }
# entry FLAG TYPE FIRST-SECTOR SECTORS: a partition in the MBR; its CHS addresses are unused.
entry() { printf "\\$1\\376\\377\\377\\$2\\376\\377\\377"; le32 "$3"; le32 "$4"; }
dd if=/dev/zero of="$work/boot" bs=512 count=0 seek=$boot 2>/dev/null
mformat -i "$work/boot" -v P2PVM -T $boot -h 64 -s 32 -H $start ::
mcopy -i "$work/boot" "$(find "$tree/boot" -name 'vmlinuz-*' | head -n 1)" ::vmlinuz
mcopy -i "$work/boot" "$work/initrd" ::initrd
mcopy -i "$work/boot" "$work/syslinux.cfg" ::syslinux.cfg
syslinux --install "$work/boot" || fail "syslinux could not be put on the boot partition"
dd if=/dev/zero of="$work/data" bs=512 count=0 seek=$data 2>/dev/null
"$busybox" mke2fs -F -L data -m 0 "$work/data" >/dev/null
disk=$work/disk
dd if="$tree/usr/lib/syslinux/mbr/mbr.bin" of="$disk" bs=440 count=1 conv=notrunc 2>/dev/null
{ entry 200 016 $start $boot; entry 000 203 $((start + boot)) $data; } | dd of="$disk" bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of="$disk" bs=1 seek=510 conv=notrunc 2>/dev/null
dd if="$work/boot" of="$disk" bs=1M seek=1 conv=notrunc,sparse 2>/dev/null
dd if="$work/data" of="$disk" bs=512 seek=$((start + boot)) conv=notrunc,sparse 2>/dev/null
dd if=/dev/zero of="$disk" bs=512 count=0 seek=$((start + boot + data)) 2>/dev/null
qemu-img convert -f raw -O qcow2 "$disk" "$work/guest.qcow2"
rm -f "$out.stamp"
mv "$work/guest.qcow2" "$out"
printf %s "$stamp" >"$out.stamp"
echo "$out"
