#!/bin/sh
# Builds the bootable appliance: one hybrid ISO that boots on BIOS and UEFI, from CD and from a USB
# stick, into a member. Everything except p2pvm and its guest image comes from Debian packages. Run
# as root.
#
#   appliance-image/build.sh --binary P2PVM --guest IMAGE [--base TAR] [-o OUTPUT]
#
# --binary  the p2pvm program (without its symbols)
# --guest   the guest image made by guest-image/build.sh
# --base    the Debian tree as a tar; it is made if it does not exist, and otherwise used unchanged
# -o        the ISO; default: target/appliance-image/p2pvm.iso (CARGO_TARGET_DIR applies)
#
# The same inputs give the same bytes: all times are SOURCE_DATE_EPOCH (default: the last commit's),
# names are sorted, ids are derived from the content. docs/appliance.md has the reasons.
set -eu
umask 022
export LC_ALL=C TZ=UTC PATH="$PATH:/usr/sbin:/sbin"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
fail() { echo "appliance-image: $*" >&2; exit 1; }
binary='' guest='' base='' out=${CARGO_TARGET_DIR:-$here/../target}/appliance-image/p2pvm.iso
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 needs a value; see the head of $0"
    case $1 in
        --binary) binary=$2 ;;
        --guest) guest=$2 ;;
        --base) base=$2 ;;
        -o) out=$2 ;;
        *) fail "unknown argument $1; see the head of $0" ;;
    esac
    shift 2
done
[ -x "$binary" ] ||
    fail "--binary '$binary' is not a program: build it with cargo build --release -p p2pvm"
[ -s "$guest" ] || fail "--guest '$guest' does not exist: make it with guest-image/build.sh"
[ "$(id -u)" = 0 ] || fail "run as root: the tree's files belong to root"
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the appliance is built on amd64 machines only"
for need in mmdebstrap mksquashfs:squashfs-tools xorriso grub-mkimage:grub-common \
    mkfs.vfat:dosfstools mcopy:mtools strip:binutils zstd cpio:cpio depmod:kmod xz:xz-utils; do
    command -v "${need%:*}" >/dev/null ||
        fail "${need%:*} is not installed: apt-get install ${need#*:}"
done
for platform in i386-pc:grub-pc-bin x86_64-efi:grub-efi-amd64-bin; do
    [ -d "/usr/lib/grub/${platform%:*}" ] ||
        fail "GRUB for ${platform%:*} is not installed: apt-get install ${platform#*:}"
done
: "${SOURCE_DATE_EPOCH:=$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 1767225600)}"
export SOURCE_DATE_EPOCH

mkdir -p "$(dirname -- "$out")"
work=$(mktemp -d "$(dirname -- "$out")/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
root=$work/root
mkdir "$root"

# --- Debian ---------------------------------------------------------------------------------------
# Debian 13 on any build host: its QEMU is the 10.0 whose machine types p2pvm names, and its libc is
# new enough for a p2pvm that was built on Debian 12 or 13. The kernel is the full one: the cloud
# kernel has neither ATA nor CD-ROM.
suite=trixie
packages=linux-image-amd64,systemd-sysv,udev,kmod,dbus,systemd-resolved,systemd-timesyncd,iproute2,iputils-ping,nftables
packages=$packages,e2fsprogs,qemu-system-x86,qemu-utils,seabios,busybox-static
[ -n "$base" ] || base=$work/base.tar
if [ ! -s "$base" ]; then
    # The mirror that this machine uses also has the newer suite.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/$') ||
        fail "apt knows no mirror of Debian here: run apt-get update, or give a Debian tree with --base"
    echo "appliance-image: Debian $suite from $mirror" >&2
    mmdebstrap --quiet --mode=root --format=tar --variant=essential --skip=check/empty --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$base.new" "$mirror" >&2
    mv "$base.new" "$base"
fi
tar -C "$root" -xf "$base" --numeric-owner
kernel=$(cd "$root/usr/lib/modules" && echo *)
case $kernel in *' '* | '*') fail "the tree must have one kernel, but has '$kernel'" ;; esac

# --- remove what a host of virtual machines does not need -----------------------------------------
# The list of packages stays. The package manager's data go, because an appliance is replaced, not
# upgraded in place.
mkdir -p "$root/usr/share/doc/p2pvm" "$root/usr/lib/p2pvm"
chroot "$root" dpkg-query -W >"$root/usr/share/doc/p2pvm/packages"
modules=$root/usr/lib/modules/$kernel
(cd "$modules/kernel" && rm -rf sound drivers/media drivers/gpu drivers/iio drivers/infiniband drivers/staging \
    drivers/net/wireless net/wireless net/mac80211 net/bluetooth drivers/bluetooth drivers/isdn drivers/comedi)
depmod -b "$root" "$kernel"
install -m 644 "$root/boot/vmlinuz-$kernel" "$work/vmlinuz"
(cd "$root" && rm -rf boot/initrd* boot/System.map* boot/config* var/lib/dpkg var/lib/apt var/cache/* var/log/* \
    usr/share/man usr/share/locale usr/share/info usr/share/bash-completion usr/share/zsh usr/share/bug usr/share/lintian \
    usr/share/perl* usr/lib/x86_64-linux-gnu/perl* usr/share/alsa usr/share/i18n usr/lib/x86_64-linux-gnu/gconv \
    usr/lib/x86_64-linux-gnu/qemu usr/bin/qemu-system-i386 usr/bin/qemu-system-x86_64-microvm usr/bin/qemu-nbd usr/bin/qemu-io \
    etc/machine-id var/lib/dbus/machine-id var/lib/systemd/random-seed etc/*- etc/hostname etc/resolv.conf etc/ssh)
(cd "$root/usr/share/qemu" && rm -rf -- *.dtb *.lid hppa* npcm* openbios* palcode* s390* skiboot* slof* u-boot* vof* linux-user* trace-events-all *.bmp *.svg)

# --- add p2pvm and the appliance's files ----------------------------------------------------------
cp -R --no-preserve=ownership "$here/files/." "$root/"
install -m 755 "$binary" "$root/usr/bin/p2pvm"
strip --strip-all "$root/usr/bin/p2pvm"
for unit in p2pvm.service p2pvm-guests.service; do
  install -m 644 "$here/../packaging/$unit" "$root/usr/lib/systemd/system/$unit"
done
install -m 644 "$guest" "$root/usr/lib/p2pvm/guest.qcow2"
install -m 644 "$here/../docs/appliance.md" "$root/usr/share/doc/p2pvm/appliance.md"
: >"$root/etc/machine-id"
echo p2pvm >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 p2pvm\n' >"$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# /dev/console, tty1 and the serial port belong to p2pvm; nobody logs in (root has no password).
units() { chroot "$root" systemctl --quiet "$@" 2>/dev/null || fail "systemctl $* failed in the tree"; }
units enable systemd-networkd systemd-resolved systemd-timesyncd p2pvm p2pvm-prepare p2pvm-console@tty1 p2pvm-console@ttyS0
units mask getty@tty1 serial-getty@ttyS0 apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-firstboot.service ldconfig.service systemd-journal-catalog-update.service
rm -rf "$root/var/cache/ldconfig" "$root/var/log/"* "$root/run/"* "$root/tmp/"*

# --- the squashfs, named by its hash, so that the initramfs finds this version only ----------------
# mksquashfs fails if both SOURCE_DATE_EPOCH and its own options give the times.
env -u SOURCE_DATE_EPOCH mksquashfs "$root" "$work/squashfs" -quiet -no-progress -noappend \
    -comp zstd -Xcompression-level 19 -b 256K -no-exports -no-xattrs \
    -mkfs-time "$SOURCE_DATE_EPOCH" -all-time "$SOURCE_DATE_EPOCH" -processors 2 >&2
name=root-$(sha256sum "$work/squashfs" | cut -c1-16).squashfs

# --- the initramfs: busybox, one script, and the drivers of bootable media ------------------------
early=$work/early
mkdir -p "$early/bin" "$early/etc" "$early/lib/modules/$kernel"
install -m 755 "$root/usr/bin/busybox" "$early/bin/busybox"
install -m 755 "$here/init" "$early/init"
echo "$name" >"$early/etc/root-name"
(cd "$modules" && find kernel/drivers/ata kernel/drivers/nvme kernel/drivers/scsi kernel/drivers/usb/host kernel/drivers/usb/storage kernel/drivers/block \
    kernel/drivers/virtio kernel/drivers/cdrom kernel/drivers/mmc kernel/drivers/message kernel/drivers/hv kernel/drivers/hid \
    kernel/fs/isofs kernel/fs/squashfs kernel/fs/overlayfs -name '*.ko*' 2>/dev/null) | LC_ALL=C sort >"$work/wanted"
# With their dependencies, decompressed, because the initramfs is compressed as a whole.
awk -F '[: ]+' 'NR == FNR { wanted[$1]; next } $1 in wanted { for (i = 1; i <= NF; i++) if ($i) print $i }' "$work/wanted" "$modules/modules.dep" | sort -u |
    while read -r module; do
        mkdir -p "$early/lib/modules/$kernel/$(dirname "$module")"
        xz -dc "$modules/$module" >"$early/lib/modules/$kernel/${module%.xz}"
    done
cp "$modules/modules.order" "$modules/modules.builtin" "$modules/modules.builtin.modinfo" "$early/lib/modules/$kernel/"
depmod -b "$early" "$kernel"
rm -f "$early/lib/modules/$kernel/"*.bin
find "$early" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$early" && find . | sort | cpio --quiet --reproducible -o -H newc -R 0:0) | zstd -q -19 >"$work/initrd"

# --- GRUB for BIOS and UEFI, with all its modules -------------------------------------------------
common="normal linux configfile search search_label echo test serial terminal all_video iso9660 part_msdos part_gpt fat boot reboot halt minicmd ls cat"
printf 'search --no-floppy --set=root --file /live/%s\nset prefix=($root)/boot/grub\n' "$name" >"$work/early.cfg"
# shellcheck disable=SC2086
grub-mkimage -O i386-pc -o "$work/core.img" -p /boot/grub -c "$work/early.cfg" biosdisk vga_text $common
cat /usr/lib/grub/i386-pc/cdboot.img "$work/core.img" >"$work/eltorito.img"
# shellcheck disable=SC2086
grub-mkimage -O x86_64-efi -o "$work/bootx64.efi" -p /boot/grub -c "$work/early.cfg" efi_gop efi_uga $common
truncate -s 4M "$work/efi.img"
touch -d "@$SOURCE_DATE_EPOCH" "$work/bootx64.efi"
mkfs.vfat --invariant -n P2PVM-EFI "$work/efi.img" >/dev/null
MTOOLS_SKIP_CHECK=1 mmd -i "$work/efi.img" ::EFI ::EFI/BOOT
MTOOLS_SKIP_CHECK=1 mcopy -m -i "$work/efi.img" "$work/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI

# --- the ISO --------------------------------------------------------------------------------------
iso=$work/iso
mkdir -p "$iso/boot/grub" "$iso/live" "$iso/p2pvm"
mv "$work/squashfs" "$iso/live/$name"
mv "$work/vmlinuz" "$work/initrd" "$iso/boot/"
cp "$here/grub.cfg" "$iso/boot/grub/grub.cfg"
cp "$work/eltorito.img" "$iso/boot/grub/eltorito.img"
"$binary" appliance reserve >"$iso/p2pvm/invite"
find "$iso" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
stamp=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S00)
# Partition 1 shows the ISO again at an offset, so that a disk with it can be mounted by partition
# (docs/appliance.md).
xorriso -as mkisofs -quiet -iso-level 3 -r -J -V P2PVM-LIVE --modification-date="$stamp" --set_all_file_dates "$stamp" \
    --grub2-mbr /usr/lib/grub/i386-pc/boot_hybrid.img -partition_offset 16 -append_partition 2 0xef "$work/efi.img" \
    -b boot/grub/eltorito.img -no-emul-boot -boot-load-size 4 -boot-info-table --grub2-boot-info \
    -eltorito-alt-boot -e --interval:appended_partition_2:all:: -no-emul-boot \
    -o "$work/p2pvm.iso" "$iso" >&2
mv "$work/p2pvm.iso" "$out"
echo "$out"
