//! Tells a disk image from everything else that a person may hand over in its place, before a byte
//! of it is stored.
//!
//! Recognized by content, never by name: qcow2 by its magic number, raw by the boot signature that
//! BIOS and UEFI look for in its first sector. What is no disk image is refused with what it is and
//! what to do with it.

use crate::{Error, error::io_at};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
};

/// A disk's first sector, which ends with the boot signature.
const SECTOR: usize = 512;
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Where ISO 9660 has its first volume descriptor, and what that begins with (ECMA-119 §8.1).
const ISO_AT: u64 = 0x8001;
const ISO_MAGIC: &[u8] = b"CD001";
/// Where tar has its magic (POSIX.1-2001, ustar).
const TAR_AT: usize = 257;

const CONVERT: &str = "convert it: qemu-img convert -O qcow2 FROM TO.qcow2";

/// What begins like this is no qcow2 or raw image: the bytes, what they are, what to do.
const OTHERS: [(&[u8], &str, &str); 13] = [
    (
        b"\x1f\x8b",
        "compressed with gzip",
        "unpack it: gunzip FILE",
    ),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it: unxz FILE"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "unpack it: unzstd FILE",
    ),
    (b"BZh", "compressed with bzip2", "unpack it: bunzip2 FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip FILE"),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a 7-Zip archive",
        "unpack it: 7z x FILE",
    ),
    (b"KDMV", "a VMDK image", CONVERT),
    (
        b"# Disk DescriptorFile",
        "the description of a VMDK image",
        CONVERT,
    ),
    (b"vhdxfile", "a VHDX image", CONVERT),
    (b"conectix", "a VHD image", CONVERT),
    (b"<<<", "a VDI image", CONVERT),
    (b"LUKS\xba\xbe", "encrypted with LUKS", "decrypt it first"),
    (b"\x7fELF", "a program", "give the path of a disk image"),
];

/// Refuses what cannot be a disk image of a VM.
///
/// # Errors
/// [`Error::Refused`] with what it is instead, or what the file system says.
pub(crate) fn recognize(path: &Path) -> Result<(), Error> {
    let refuse = |what: &str, advice: &str| {
        Err(Error::Refused(format!(
            "{} is {what}, no disk image: {advice}",
            path.display()
        )))
    };
    let give = "give the path of a qcow2 or raw image";
    let found = fs::metadata(path).map_err(io_at("open the disk image", path))?;
    let kind = found.file_type();
    // Before it is opened: opening a FIFO waits for its other end.
    if kind.is_dir() {
        return refuse("a directory", give);
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() {
        return refuse("a pipe, socket or device", give);
    }
    let file = File::open(path).map_err(io_at("open the disk image", path))?;
    let mut start = Vec::with_capacity(SECTOR);
    (&file)
        .take(SECTOR as u64)
        .read_to_end(&mut start)
        .map_err(io_at("read the disk image", path))?;
    if start.is_empty() {
        return refuse("empty", give);
    }
    if start.starts_with(b"QFI\xfb") {
        return Ok(());
    }
    if let Some((_, what, advice)) = OTHERS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return refuse(what, advice);
    }
    if start.get(TAR_AT..TAR_AT + 5) == Some(b"ustar") {
        return refuse("a tar archive", "unpack it: tar -xf FILE");
    }
    let mut iso = [0; ISO_MAGIC.len()];
    if file.read_exact_at(&mut iso, ISO_AT).is_ok() && iso == ISO_MAGIC {
        return refuse(
            "a CD image (ISO 9660)",
            "install from it elsewhere, or take a cloud image of the same system",
        );
    }
    let text = String::from_utf8_lossy(&start)
        .trim_start()
        .to_ascii_lowercase();
    if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") {
        return refuse(
            "a web page or XML",
            "the download probably failed: load the image itself",
        );
    }
    if start.len() < SECTOR || start[SECTOR - 2..] != BOOT_SIGNATURE {
        return refuse("neither qcow2 nor a raw disk with a boot sector", give);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &[u8]) -> Result<(), Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, content).unwrap();
        recognize(&path)
    }

    #[test]
    fn what_is_no_disk_image_is_refused_by_what_it_is() {
        let mut tar = vec![0; 1024];
        tar[TAR_AT..TAR_AT + 5].copy_from_slice(b"ustar");
        let mut iso = vec![0; 0x9000];
        iso[510..512].copy_from_slice(&BOOT_SIGNATURE);
        iso[ISO_AT as usize..][..5].copy_from_slice(ISO_MAGIC);
        let cases: [(&[u8], &str); 10] = [
            (b"", "empty"),
            (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
            (b"\x1f\x8b\x08aaaaaaa", "gunzip"),
            (b"\xfd7zXZ\0aaaa", "unxz"),
            (b"\x28\xb5\x2f\xfdaaaa", "unzstd"),
            (b"KDMVaaaa", "qemu-img convert"),
            (b"<<< Oracle VM VirtualBox Disk Image >>>", "VDI"),
            (&tar, "tar archive"),
            (&iso, "a CD image"),
            (&[0; 4096], "boot sector"),
        ];
        for (content, said) in cases {
            let refused = of(content).unwrap_err();
            assert!(
                matches!(refused, Error::Refused(_)) && refused.to_string().contains(said),
                "{said}: {refused}"
            );
        }
    }

    #[test]
    fn a_qcow2_and_a_raw_disk_with_a_boot_sector_are_taken() {
        let mut raw = vec![0; 1 << 16];
        raw[510..512].copy_from_slice(&BOOT_SIGNATURE);
        assert!(of(&raw).is_ok() && of(b"QFI\xfb\0\0\0\x03").is_ok());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), dir.path()] {
            assert!(
                matches!(recognize(path), Err(Error::Refused(_))),
                "{}",
                path.display()
            );
        }
    }
}
