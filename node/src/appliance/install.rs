//! `p2pvm install DISK`: installs the appliance on a disk, which then boots by itself on BIOS and
//! UEFI and has a partition for the state.
//!
//! The ISO has the layout of a disk with boot records for both, so it is copied unchanged, with an
//! invite written into it. A third partition, ext4 with the label P2PVM-STATE, takes the rest of
//! the disk. No boot loader has to be configured.

use super::{customize::VOLUME, mbr, prepare::STATE_LABEL, volumes};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How many bytes at the beginning and at the end of an empty disk must be zeros. Reason: boot
/// records, partition tables and their copies and the signatures of file systems and RAIDs are
/// there.
const LOOKED_AT: u64 = 1 << 20;
/// How long the kernel and udev may take to show a new partition.
const PARTITION_LIMIT: Duration = Duration::from_secs(30);

/// Where the running appliance has its medium mounted.
const MEDIUM: &str = "/run/p2pvm/medium";

/// Installs on `disk` from `from`, by default from the medium this machine was booted from. Returns
/// the partition for state.
///
/// # Errors
/// [`Kind::Refused`] if the disk is in use or, without `force`, not empty.
pub fn install(disk: &Path, from: Option<&Path>, force: bool) -> Outcome<PathBuf> {
    let name = whole_disk(disk)?;
    let source = match from {
        Some(file) => file.to_owned(),
        None => medium()?,
    };
    if fs::canonicalize(&source).ok() == fs::canonicalize(disk).ok() {
        return Err(Failure::refused(format!(
            "this machine was booted from {}: choose another disk",
            disk.display()
        )));
    }
    in_use(&name)?;
    let mut target = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk)
        .doing(format_args!("cannot write to {}", disk.display()))?;
    let bytes = target
        .seek(SeekFrom::End(0))
        .doing("asking for the disk's size")?;
    if !force && !is_empty(&mut target, bytes).doing(format_args!("reading {}", disk.display()))? {
        return Err(Failure::refused(format!(
            "{} is not empty: see 'lsblk -f {}', and use --force to lose its data",
            disk.display(),
            disk.display()
        )));
    }
    let mut iso = File::open(&source).doing(format_args!("cannot read {}", source.display()))?;
    let (length, record) = layout(&mut iso, bytes, &source, disk)?;
    copy(&mut iso, &mut target, length, &record)
        .doing(format_args!("writing to {}", disk.display()))?;
    drop(target);
    run("blockdev", &["--rereadpt", &disk.to_string_lossy()])?;
    let partition = third(&name)?;
    run(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-m",
            "1",
            "-L",
            STATE_LABEL,
            &partition.to_string_lossy(),
        ],
    )?;
    Ok(partition)
}

/// How much of the ISO is copied, and the disk's boot record.
fn layout(iso: &mut File, bytes: u64, source: &Path, disk: &Path) -> Outcome<(u64, [u8; 512])> {
    let mut record = [0; 512];
    iso.rewind()
        .and_then(|()| iso.read_exact(&mut record))
        .doing(format_args!("reading {}", source.display()))?;
    let named = super::iso9660::find(iso, &["P2PVM", "INVITE"])
        .doing(format_args!("reading {}", source.display()))?;
    let end = mbr::end(&cleared(&record));
    let (Some((volume, _)), Some(end)) = (named, end) else {
        return Err(Failure::usage(format!(
            "{} is not an ISO of the p2pvm appliance",
            source.display()
        )));
    };
    if volume != VOLUME {
        return Err(Failure::usage(format!(
            "{} is not an ISO of the p2pvm appliance: its volume is named '{volume}'",
            source.display()
        )));
    }
    let made = mbr::with_third(&cleared(&record), bytes / mbr::SECTOR).ok_or_else(|| {
        Failure::refused(format!(
            "{} is too small: it has {}, and the appliance needs 256 MiB besides its own size",
            disk.display(),
            size(bytes)
        ))
    })?;
    Ok((end * mbr::SECTOR, made))
}

/// The ISO's boot record. If the source is an installed disk, its third partition, which is its
/// own, is removed.
fn cleared(record: &[u8; 512]) -> [u8; 512] {
    let mut plain = *record;
    plain[478..510].fill(0);
    plain
}

fn size(bytes: u64) -> impl std::fmt::Display {
    indicatif::HumanBytes(bytes)
}

/// Copies the ISO; writes the boot record last, so that a half-written disk does not boot.
fn copy(iso: &mut File, target: &mut File, length: u64, record: &[u8; 512]) -> io::Result<()> {
    target.rewind()?;
    target.write_all(&[0; 512])?;
    iso.seek(SeekFrom::Start(512))?;
    let copied = io::copy(&mut iso.take(length - 512), target)?;
    if copied != length - 512 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the ISO is truncated",
        ));
    }
    target.sync_all()?;
    target.rewind()?;
    target.write_all(record)?;
    target.sync_all()
}

/// The kernel's name of a whole disk.
fn whole_disk(disk: &Path) -> Outcome<String> {
    let real = fs::canonicalize(disk).map_err(|e| {
        Failure::not_found(format!(
            "{}: {}; 'lsblk' lists disks",
            disk.display(),
            p2pvm_host::chain(&e)
        ))
    })?;
    let is_block = fs::metadata(&real).is_ok_and(|m| m.file_type().is_block_device());
    let name = real
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let known = Path::new("/sys/class/block").join(&name);
    if !is_block || !known.exists() {
        return Err(Failure::usage(format!(
            "{} is not a disk; 'lsblk' lists disks",
            disk.display()
        )));
    }
    if known.join("partition").exists() {
        return Err(Failure::usage(format!(
            "{} is a partition: give the whole disk",
            disk.display()
        )));
    }
    Ok(name)
}

/// Rejects a disk with a mounted partition or one used as swap.
fn in_use(name: &str) -> Outcome<()> {
    for table in ["/proc/mounts", "/proc/swaps"] {
        let text = fs::read_to_string(table).doing(format_args!("reading {table}"))?;
        if let Some(used) = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|device| belongs(device, name))
        {
            return Err(Failure::refused(format!(
                "{used} is in use: unmount it first"
            )));
        }
    }
    Ok(())
}

/// Whether a device node is the disk `name` or a partition of it.
fn belongs(device: &str, name: &str) -> bool {
    device
        .strip_prefix("/dev/")
        .and_then(|d| d.strip_prefix(name))
        .is_some_and(|rest| {
            let number = rest.strip_prefix(separator(name));
            rest.is_empty()
                || number.is_some_and(|number| {
                    !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
                })
        })
}

/// The text between a disk's name and a partition's number: nvme0n1p3, but sda3.
fn separator(name: &str) -> &'static str {
    if name.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    }
}

/// The disk that holds the medium this machine was booted from.
fn medium() -> Outcome<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").doing("reading /proc/mounts")?;
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.next()?;
        (words.next() == Some(MEDIUM)).then_some(device)
    });
    let device = device.ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            "this machine was not booted from an appliance ISO: name one with --from p2pvm.iso"
                .to_owned(),
        )
    })?;
    let name = Path::new(device).file_name().unwrap_or_default();
    let class = Path::new("/sys/class/block").join(name);
    if !class.join("partition").exists() {
        return Ok(device.into());
    }
    // /sys/class/block/sda1 is a link to .../block/sda/sda1
    let parent = fs::canonicalize(&class).doing("finding the medium's disk")?;
    let parent = parent
        .parent()
        .and_then(Path::file_name)
        .unwrap_or_default();
    Ok(Path::new("/dev").join(parent))
}

/// Whether the first and the last MiB are zeros.
fn is_empty(disk: &mut File, bytes: u64) -> io::Result<bool> {
    for start in [0, bytes.saturating_sub(LOOKED_AT)] {
        disk.seek(SeekFrom::Start(start))?;
        let mut seen = Vec::new();
        disk.take(LOOKED_AT).read_to_end(&mut seen)?;
        if seen.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn run(program: &str, arguments: &[&str]) -> Outcome<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .doing(format_args!("running {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(
        Kind::Failed,
        format!("{program} {} failed: {}", arguments.join(" "), said.trim()),
    ))
}

/// The third partition's device node, when it has appeared.
fn third(name: &str) -> Outcome<PathBuf> {
    let node = PathBuf::from(format!("/dev/{name}{}3", separator(name)));
    let began = Instant::now();
    while !node.exists() {
        if began.elapsed() > PARTITION_LIMIT {
            return Err(Failure::timed_out(format!(
                "the new partition {} does not appear: restart and install again",
                node.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(node)
}

/// Whether `disk` has an installed appliance: one of its partitions is labelled P2PVM-STATE.
pub fn is_installed(disk: &Path) -> Outcome<bool> {
    let name = whole_disk(disk)?;
    Ok(volumes::labelled(&volumes::all()?, STATE_LABEL)
        .any(|volume| belongs(&volume.device, &name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_of_zeros_counts_as_empty() {
        let mut disk = tempfile::tempfile().unwrap();
        let bytes = 4 * LOOKED_AT;
        disk.set_len(bytes).unwrap();
        assert!(is_empty(&mut disk, bytes).unwrap());
        for at in [0, 1080, LOOKED_AT - 1, bytes - LOOKED_AT, bytes - 1] {
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&[1]).unwrap();
            assert!(!is_empty(&mut disk, bytes).unwrap(), "byte {at}");
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&[0]).unwrap();
        }
    }

    #[test]
    fn a_disks_partitions_are_its_own_and_no_others() {
        for (device, name, is) in [
            ("/dev/sda", "sda", true),
            ("/dev/sda12", "sda", true),
            ("/dev/sdaa", "sda", false),
            ("/dev/nvme0n1p2", "nvme0n1", true),
            ("/dev/nvme0n12", "nvme0n1", false),
            ("tmpfs", "sda", false),
        ] {
            assert_eq!(belongs(device, name), is, "{device} of {name}");
        }
    }

    #[test]
    fn what_is_no_whole_disk_or_no_appliance_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for target in [
            file.path(),
            Path::new("/dev/null"),
            Path::new("/dev/there-is-none"),
        ] {
            let failure = install(target, Some(file.path()), true).unwrap_err();
            assert!(failure.message.contains("lsblk"), "{failure}");
        }
        let mut iso = tempfile::tempfile().unwrap();
        iso.write_all(&[0; 64 << 10]).unwrap();
        let failure =
            layout(&mut iso, 1 << 40, Path::new("x.iso"), Path::new("/dev/x")).unwrap_err();
        assert!(failure.message.contains("not an ISO"), "{failure}");
    }
}
