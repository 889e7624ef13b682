//! The file behind `/etc/resolv.conf`: read, and written so that nothing else about it changes.
//!
//! A symbolic link stays a link, also a dangling one. A file is replaced as a whole, with its
//! owner, mode and extended attributes (such as a security label), so that no program reads half of
//! it. If that is impossible, as for a file that is mounted by itself or has several names, it is
//! rewritten in place. On a full disk the write fails and the old text stays.

use super::text::{Block, Parsed, parse, render};
use nix::fcntl::{Flock, FlockArg};
use std::{
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// How many bytes a list of name servers has at most.
const MAX_BYTES: u64 = 16 << 20;
/// How many links are followed, as by the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The lock by which this machine's daemons take turns to change the file.
const LOCK: &str = "/run/p2pvm/names.lock";

/// Where a path's links lead, whether a file is there or not.
///
/// # Errors
/// A link cannot be read, or there are too many.
pub fn behind_links(path: &Path) -> io::Result<PathBuf> {
    links_of(path).map(|mut passed| passed.pop().unwrap_or_else(|| path.to_owned()))
}

/// A path and the targets of its links, in order; the last is no link.
///
/// # Errors
/// A link cannot be read, or there are too many.
pub fn links_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut passed = vec![path.to_owned()];
    for _ in 0..MAX_LINKS {
        let last = passed.last().expect("it begins with one");
        match fs::read_link(last) {
            // A relative one is relative to its directory.
            Ok(to) => {
                let next = last.parent().unwrap_or(Path::new("/")).join(to);
                passed.push(next);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(passed);
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(nix::libc::ELOOP))
}

/// The text of a file; `None` if it is missing.
///
/// # Errors
/// The kernel's error; it is no regular file, or a huge one.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    if !about.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 16 MiB",
        ));
    }
    Ok(Some(text))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".p2pvm");
    path.with_file_name(name)
}

/// Copies the extended attributes that can be copied.
fn copy_attributes(from: &File, to: &File) {
    let mut names = vec![0u8; 4096];
    // SAFETY: the buffer is ours and as long as said.
    let length =
        unsafe { nix::libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        return;
    };
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let Ok(name) = CString::new(name) else {
            continue;
        };
        let mut value = vec![0u8; 4096];
        // SAFETY: the name ends with a zero, and the buffer is ours and as long as said.
        let length = unsafe {
            nix::libc::fgetxattr(
                from.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let Ok(length) = usize::try_from(length) else {
            continue;
        };
        // SAFETY: as above. If it fails, the new file has the directory's default.
        unsafe {
            nix::libc::fsetxattr(
                to.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                length,
                0,
            )
        };
    }
}

/// Replaces the file by a new one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    let _ = fs::remove_file(&temporary);
    let made = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)?;
        file.write_all(text)?;
        match File::open(path).and_then(|old| Ok((old.metadata()?, old))) {
            Ok((about, old)) => {
                std::os::unix::fs::fchown(&file, Some(about.uid()), Some(about.gid()))?;
                file.set_permissions(fs::Permissions::from_mode(about.mode() & 0o7777))?;
                copy_attributes(&old, &file);
            }
            // For any umask: every program reads this file.
            Err(_) => file.set_permissions(fs::Permissions::from_mode(0o644))?,
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    made().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Rewrites the file in place. A program that reads it meanwhile sees at most empty lines at its
/// end.
fn rewrite(path: &Path, old: &[u8], text: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let put = |text: &[u8], over: usize| -> io::Result<()> {
        let mut padded = text.to_vec();
        padded.resize(text.len().max(over), b'\n');
        file.write_all_at(&padded, 0)?;
        file.set_len(text.len() as u64)
    };
    put(text, old.len()).inspect_err(|_| drop(put(old, text.len())))
}

/// Replaces the text `old` of the file at `path`, which is no link.
///
/// # Errors
/// The kernel's error at the last way tried; the old text stays.
pub fn write(path: &Path, old: Option<&[u8]>, text: &[u8]) -> io::Result<()> {
    let Some(old) = old else {
        return replace(path, text);
    };
    if fs::metadata(path)?.nlink() > 1 {
        return rewrite(path, old, text);
    }
    match replace(path, text) {
        Ok(()) => Ok(()),
        // A full disk refuses both ways; any other error may concern only the directory.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            Err(e)
        }
        Err(_) => rewrite(path, old, text),
    }
}

/// Makes the missing directories above a file. Returns how many.
fn make_parents(path: &Path) -> io::Result<u8> {
    let Some(parent) = path.parent() else {
        return Ok(0);
    };
    let missing = parent
        .ancestors()
        .take_while(|directory| !directory.exists())
        .count();
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder.recursive(true).create(parent)?;
    Ok(u8::try_from(missing).unwrap_or(u8::MAX))
}

/// The result of a change of a list of name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEdit {
    /// The file.
    pub path: PathBuf,
    /// What is in it now: our lines, and the text without them.
    pub parsed: Parsed,
    /// The whole text.
    pub text: Vec<u8>,
    /// Whether it had to be written.
    pub written: bool,
}

fn locked() -> Option<Flock<File>> {
    let _ = fs::create_dir_all(Path::new(LOCK).parent()?);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(LOCK)
        .ok()?;
    // Without the lock two daemons may have to write twice. It is held for milliseconds.
    Flock::lock(file, FlockArg::LockExclusive).ok()
}

/// Puts a block into the list of name servers at `path`, instead of an earlier one with the same
/// id. `before` is called with the file before it is changed.
///
/// # Errors
/// The kernel's error, or that of `before`.
pub fn put(
    path: &Path,
    block: &Block,
    alone: bool,
    before: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<ListEdit> {
    let _alone = locked();
    let path = behind_links(path)?;
    let old = read(&path)?;
    let mut parsed = parse(old.as_deref().unwrap_or_default());
    let was_there = parsed
        .blocks
        .iter()
        .find(|known| known.id == block.id)
        .cloned();
    let mut block = block.clone();
    // The first daemon makes the file, the last one removes it.
    block.made = parsed.blocks.iter().find_map(|known| known.made);
    parsed.blocks.retain(|known| known.id != block.id);
    if old.is_none() {
        before(&path)?;
        block.made = Some(make_parents(&path)?);
    }
    parsed.blocks.push(block);
    parsed.blocks.sort();
    let text = render(&parsed, alone);
    let written = old.as_deref() != Some(&text);
    if written {
        if old.is_some() && was_there.is_none() {
            before(&path)?;
        }
        write(&path, old.as_deref(), &text)?;
    }
    Ok(ListEdit {
        path,
        parsed,
        text,
        written,
    })
}

/// Removes a block from the list of name servers at `path`, and the lines of an earlier version. A
/// file that p2pvm had made is removed, unless another program has written into it.
///
/// # Errors
/// The kernel's error.
pub fn take_out(path: &Path, id: &str) -> io::Result<()> {
    let _alone = locked();
    let path = behind_links(path)?;
    let Some(old) = read(&path)? else {
        return Ok(());
    };
    let mut parsed = parse(&old);
    let made = parsed.blocks.iter().find_map(|known| known.made);
    parsed.blocks.retain(|known| known.id != id);
    let alone = super::text::name_servers(&old).len() <= parsed.blocks.len() + 1;
    let text = render(&parsed, alone);
    match made {
        Some(directories) if text.is_empty() => {
            fs::remove_file(&path)?;
            for directory in path.ancestors().skip(1).take(directories.into()) {
                if fs::remove_dir(directory).is_err() {
                    break;
                }
            }
            Ok(())
        }
        _ if text == old => Ok(()),
        _ => write(&path, Some(&old), &text),
    }
}

/// Whether a file has the attribute "immutable" (chattr(1)): a reason that the error of a write
/// does not tell.
pub fn is_immutable(path: &Path) -> bool {
    const FS_IMMUTABLE_FL: nix::libc::c_int = 0x10;
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut flags: nix::libc::c_int = 0;
    // SAFETY: the ioctl writes one int (ioctl_iflags(2)).
    let asked =
        unsafe { nix::libc::ioctl(file.as_raw_fd(), nix::libc::FS_IOC_GETFLAGS, &raw mut flags) };
    asked == 0 && flags & FS_IMMUTABLE_FL != 0
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
