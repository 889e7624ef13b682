//! Tells a disk image from everything else that a person may hand over in its place, before a byte
//! of it is stored.
//!
//! Recognized by content, never by name: qcow2 by its magic number, raw by the boot signature that
//! BIOS and UEFI look for in its first sector. What is no disk image is refused with what it is and
//! what to do with it.

use crate::{Error, ImageSource, error::io_at};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};
use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// A disk's first sector, which ends with the boot signature.
const SECTOR: usize = 512;
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Where ISO 9660 has its first volume descriptor, and what that begins with (ECMA-119 §8.1).
const ISO_AT: u64 = 0x8001;
const ISO_MAGIC: &[u8] = b"CD001";
/// Where tar has its magic (POSIX.1-2001, ustar).
const TAR_AT: usize = 257;

const GIVE: &str = "give the path of a qcow2 or raw image";
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

/// A regular file that an image is made of.
pub(crate) struct ImageFile {
    /// Where it is read.
    path: PathBuf,
    /// How the request named it.
    named: PathBuf,
    /// Held open, so that the file that was checked is the one that is read.
    _found: Option<OwnedFd>,
}

impl ImageFile {
    /// The file that a source names; `None` for an image that is stored already.
    ///
    /// # Errors
    /// [`Error::Refused`] for what is no regular file, or may not be named by another member.
    pub(crate) fn of(source: &ImageSource) -> Result<Option<Self>, Error> {
        match source {
            ImageSource::Stored(_) => Ok(None),
            ImageSource::File(path) => {
                is_regular(&open_path(path)?, path)?;
                Ok(Some(Self {
                    path: path.clone(),
                    named: path.clone(),
                    _found: None,
                }))
            }
            ImageSource::Below { dirs, path } => Self::below(dirs, path).map(Some),
        }
    }

    /// A file below one of the directories, by a path without a link and without a way out. The
    /// directories themselves may be links: the host's owner named them.
    fn below(dirs: &[PathBuf], path: &Path) -> Result<Self, Error> {
        let inside = dirs
            .iter()
            .find_map(|dir| Some((dir, path.strip_prefix(dir).ok()?)));
        let Some((dir, inside)) = inside else {
            return Err(not_allowed(path, dirs, "is not below one of them"));
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let found = match openat2(open_path(dir)?, inside, how) {
            Ok(found) => found,
            Err(Errno::EXDEV | Errno::ELOOP) => {
                return Err(not_allowed(path, dirs, "leads out of it, or over a link"));
            }
            Err(e) => return Err(io_at("open the disk image", path)(e.into())),
        };
        is_regular(&found, path)?;
        Ok(Self {
            // Not `self`: qemu-img reads it too.
            path: format!("/proc/{}/fd/{}", std::process::id(), found.as_raw_fd()).into(),
            named: path.to_owned(),
            _found: Some(found),
        })
    }

    /// Where it is read, as long as this lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same error, with the name that the request used.
    pub(crate) fn named(&self, error: Error) -> Error {
        let (read, named) = (
            self.path.display().to_string(),
            self.named.display().to_string(),
        );
        match error {
            Error::Refused(said) => Error::Refused(said.replace(&read, &named)),
            Error::Hypervisor { step, detail } => Error::Hypervisor {
                step,
                detail: detail.replace(&read, &named),
            },
            other => other,
        }
    }
}

/// Names a file without opening it: no FIFO waits for its other end, no device begins to work.
fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map(OwnedFd::from)
        .map_err(io_at("open the disk image", path))
}

fn is_regular(found: &OwnedFd, path: &Path) -> Result<(), Error> {
    let kind = found
        .try_clone()
        .and_then(|found| File::from(found).metadata())
        .map_err(io_at("open the disk image", path))?
        .file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a pipe, socket or device"
    };
    Err(refusal(path, what, GIVE))
}

/// Why another member may not name the file, and what it may name.
fn not_allowed(path: &Path, dirs: &[PathBuf], why: &str) -> Error {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Error::Refused(format!(
        "other members may name an image's id here, or a file below {}: {} {why}; this host's \
            owner allows more directories in node.toml, [offer] images = [\"/srv/images\"]",
        dirs.join(", "),
        path.display()
    ))
}

/// The refusal of a file that is no image.
fn refusal(path: &Path, what: &str, advice: &str) -> Error {
    Error::Refused(format!(
        "{} is {what}, no disk image: {advice}",
        path.display()
    ))
}

/// Refuses what cannot be a disk image of a VM.
///
/// # Errors
/// [`Error::Refused`] with what it is instead, or what the file system says.
pub(crate) fn recognize(path: &Path) -> Result<(), Error> {
    let refuse = |what: &str, advice: &str| Err(refusal(path, what, advice));
    is_regular(&open_path(path)?, path)?;
    let file = File::open(path).map_err(io_at("open the disk image", path))?;
    let mut start = Vec::with_capacity(SECTOR);
    (&file)
        .take(SECTOR as u64)
        .read_to_end(&mut start)
        .map_err(io_at("read the disk image", path))?;
    if start.is_empty() {
        return refuse("empty", GIVE);
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
        return refuse("neither qcow2 nor a raw disk with a boot sector", GIVE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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

    /// A directory that others may name files of, with a link, a pipe and an image in it, and a
    /// secret beside it.
    fn offered() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir_all(images.join("linux")).unwrap();
        fs::write(dir.path().join("secret"), b"the secret").unwrap();
        fs::write(images.join("linux/web.img"), b"QFI\xfb").unwrap();
        std::os::unix::fs::symlink("../secret", images.join("link")).unwrap();
        std::os::unix::fs::symlink("..", images.join("up")).unwrap();
        nix::unistd::mkfifo(&images.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        (dir, images)
    }

    #[test]
    fn another_member_names_files_of_the_offered_directories_and_no_others() {
        let (dir, images) = offered();
        let open = |path: PathBuf| {
            let dirs = vec!["/usr/lib/nowhere".into(), images.clone()];
            ImageFile::of(&ImageSource::Below { dirs, path }).map(Option::unwrap)
        };
        let image = open(images.join("linux/web.img")).unwrap();
        assert_eq!(fs::read(image.path()).unwrap(), b"QFI\xfb");
        let secret = dir.path().join("secret");
        for path in [
            secret.clone(),
            images.join("../secret"),
            images.join("linux/../../secret"),
            images.join("link"),
            images.join("up/secret"),
            PathBuf::from("secret"),
            PathBuf::from("/etc/passwd"),
        ] {
            let Err(Error::Refused(said)) = open(path.clone()) else {
                panic!("{}", path.display());
            };
            assert!(
                said.contains("[offer] images") && said.contains(images.to_str().unwrap()),
                "{said}"
            );
        }
        let missing = open(images.join("none")).err().unwrap();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    #[test]
    fn the_file_that_was_checked_is_read_though_its_name_was_replaced() {
        let (dir, images) = offered();
        let path = images.join("linux/web.img");
        let image = ImageFile::below(std::slice::from_ref(&images), &path).unwrap();
        fs::rename(dir.path().join("secret"), &path).unwrap();
        assert_eq!(fs::read(image.path()).unwrap(), b"QFI\xfb");
        let said = image.named(
            recognize(image.path())
                .err()
                .unwrap_or_else(|| Error::Refused(format!("{} is odd", image.path().display()))),
        );
        assert!(said.to_string().contains("web.img"), "{said}");
    }

    #[test]
    fn nobody_names_a_pipe_or_a_device() {
        let (_dir, images) = offered();
        let sources = [
            ImageSource::File(images.join("pipe")),
            ImageSource::File("/dev/zero".into()),
            ImageSource::Below {
                dirs: vec![images.clone()],
                path: images.join("pipe"),
            },
            ImageSource::Below {
                dirs: vec!["/dev".into()],
                path: "/dev/zero".into(),
            },
        ];
        for source in sources {
            let Err(Error::Refused(said)) = ImageFile::of(&source) else {
                panic!("{source:?}");
            };
            assert!(said.contains("a pipe, socket or device"), "{said}");
        }
    }
}
