//! Room for what has to be written on a full disk: a file that holds blocks of the file system and
//! frees them a piece at a time.
//!
//! Guests fill a disk to its last block. The node still has to write a voter's promise, a
//! definition, a lease. So the daemon keeps a file that holds room ([`keep`]); a write that finds
//! the disk full shortens it by a piece and retries at once ([`retrying`]), before a guest can take
//! the piece. When there is room again, the file grows back ([`refill`]).
//!
//! There is one reserve in a process: nearly every write that has to succeed goes through
//! [`crate::durable`].

use crate::lock;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

/// How many bytes the reserve holds.
/// Reason: records take kilobytes each, the record store's pieces half a mebibyte.
pub const RESERVE: u64 = 32 << 20;
/// The reserve holds at most one part in this many of the file system.
/// Reason: a small file system must not be all reserve.
const SHARE: u64 = 16;
/// How many bytes are freed for one write.
pub const PIECE: u64 = 1 << 20;

static KEPT: OnceLock<Reserve> = OnceLock::new();

/// What is free on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that programs may write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// What is free on the file system of `path`.
///
/// # Errors
/// The file system's error.
pub fn room(path: &Path) -> io::Result<Room> {
    let about = nix::sys::statvfs::statvfs(path)?;
    let unit = about.fragment_size();
    Ok(Room {
        free: about.blocks_available() * unit,
        size: about.blocks() * unit,
    })
}

/// Whether an error says that the disk, or this user's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The file that keeps room.
struct Reserve {
    path: PathBuf,
    device: u64,
    wanted: u64,
    /// Locked while the file is shortened or lengthened.
    turn: Mutex<()>,
}

impl Reserve {
    /// Opens or makes the reserve in `path`. It holds as much as before.
    fn at(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let wanted = RESERVE.min(room(path)?.size / SHARE);
        Ok(Self {
            path: path.to_owned(),
            device: file.metadata()?.dev(),
            wanted,
            turn: Mutex::default(),
        })
    }

    /// Takes what is missing if twice as much is free.
    /// Reason: the last room is not for the reserve alone.
    fn refill(&self) -> io::Result<u64> {
        let _turn = lock(&self.turn);
        let file = open(&self.path)?;
        let held = file.metadata()?.len();
        let missing = self.wanted.saturating_sub(held);
        if missing == 0 || room(&self.path)?.free < 2 * missing {
            return Ok(held);
        }
        let filled = fill(&file, held, missing);
        if filled.is_err() {
            // The blocks taken so far are freed: a reserve that is longer than its blocks holds no
            // room.
            file.set_len(held)?;
        }
        filled.map(|()| self.wanted)
    }

    /// Frees a piece. Returns false if none is left.
    fn spend(&self) -> io::Result<bool> {
        let _turn = lock(&self.turn);
        let file = open(&self.path)?;
        let held = file.metadata()?.len();
        if held == 0 {
            return Ok(false);
        }
        file.set_len(held.saturating_sub(PIECE))?;
        tracing::warn!(
            left = held.saturating_sub(PIECE), reserve = %self.path.display(),
            "the disk is full: written from the reserve"
        );
        Ok(true)
    }

    fn retrying<T>(&self, at: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(e) if is_full(&e) && self.is_for(at) && self.spend().unwrap_or(false) => {}
                done => return done,
            }
        }
    }

    /// Whether `at`, or its directory, is on the reserve's file system.
    fn is_for(&self, at: &Path) -> bool {
        let device = |path: &Path| path.metadata().map(|about| about.dev()).ok();
        device(at).or_else(|| device(&directory_of(at))) == Some(self.device)
    }
}

/// The directory of a file.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => ".".into(),
        Some(dir) => dir.into(),
        None => "/".into(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Takes blocks, not a hole.
fn fill(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let place = |n: u64| i64::try_from(n).map_err(io::Error::other);
    Ok(nix::fcntl::posix_fallocate(
        file,
        place(from)?,
        place(bytes)?,
    )?)
}

/// Keeps room in `path` from now on, up to [`RESERVE`]. Returns how many bytes it holds. A second
/// call only refills.
///
/// # Errors
/// The file system's error; then nothing is kept.
pub fn keep(path: &Path) -> io::Result<u64> {
    if KEPT.get().is_none() {
        // Another thread that was first has the same one.
        let _ = KEPT.set(Reserve::at(path)?);
    }
    refill()
}

/// Refills the reserve if there is room. Returns how many bytes it holds.
///
/// # Errors
/// The file system's error.
pub fn refill() -> io::Result<u64> {
    KEPT.get().map_or(Ok(0), Reserve::refill)
}

/// How many bytes the reserve should hold; 0 if there is none.
pub fn wanted() -> u64 {
    KEPT.get().map_or(0, |kept| kept.wanted)
}

/// Frees a piece of the reserve if `at` is on its file system. Returns false if none is left.
pub fn spend(at: &Path) -> bool {
    KEPT.get()
        .is_some_and(|kept| kept.is_for(at) && kept.spend().unwrap_or(false))
}

/// Runs `work`, which writes at `at`. If it finds the disk full, it runs again with a piece of the
/// reserve, as long as there is one: `work` must cope with its own half-done result.
///
/// # Errors
/// As `work`.
pub fn retrying<T>(at: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match KEPT.get() {
        Some(kept) => kept.retrying(at, work),
        None => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write, process::Command};

    /// A file system of so many mebibytes.
    struct Small(tempfile::TempDir);

    impl Small {
        fn of(mib: u64) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={mib}M"), "p2pvm"])
                .arg(dir.path())
                .status();
            mounted
                .is_ok_and(|status| status.success())
                .then_some(Self(dir))
        }

        /// Writes until nothing more fits.
        fn fill(&self, name: &str) {
            let mut file = File::create(self.0.path().join(name)).unwrap();
            while file.write_all(&[7; 4096]).is_ok() {}
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = Command::new("umount")
                .arg("--lazy")
                .arg(self.0.path())
                .status();
        }
    }

    #[test]
    fn a_full_disk_takes_vital_writes_until_the_reserve_is_spent() {
        let Some(small) = Small::of(64) else {
            return eprintln!("NOT RUN: a file system of its own needs root");
        };
        let reserve = Reserve::at(&small.0.path().join("reserve")).unwrap();
        assert_eq!(
            reserve.refill().unwrap(),
            4 << 20,
            "a sixteenth of a small file system"
        );
        small.fill("guest");
        let path = small.0.path().join("record");
        let write = || fs::write(&path, [1; 100_000]);
        assert!(is_full(&write().unwrap_err()));
        reserve.retrying(&path, write).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1; 100_000]);
        assert_eq!(
            fs::metadata(&reserve.path).unwrap().len(),
            3 << 20,
            "one piece was enough"
        );

        // Nobody gets it back while the disk is full, and all of it when there is room.
        small.fill("guest2");
        assert_eq!(reserve.refill().unwrap(), 3 << 20);
        let all = small.0.path().join("all");
        assert!(
            is_full(
                &reserve
                    .retrying(&all, || fs::write(&all, vec![1; 8 << 20]))
                    .unwrap_err()
            ),
            "and it ends"
        );
        assert_eq!(fs::metadata(&reserve.path).unwrap().len(), 0);
        fs::remove_file(all).unwrap();
        fs::remove_file(small.0.path().join("guest")).unwrap();
        assert_eq!(reserve.refill().unwrap(), 4 << 20);
        small.fill("guest");
        assert_eq!(
            fs::metadata(&reserve.path).unwrap().blocks() * 512,
            4 << 20,
            "blocks, not a hole"
        );
    }

    #[test]
    fn the_reserve_is_not_spent_on_another_file_system() {
        let Some(small) = Small::of(64) else {
            return eprintln!("NOT RUN: a file system of its own needs root");
        };
        let reserve = Reserve::at(&small.0.path().join("reserve")).unwrap();
        reserve.refill().unwrap();
        let full = || Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
        assert!(reserve.retrying(Path::new("/proc/version"), full).is_err());
        assert_eq!(fs::metadata(&reserve.path).unwrap().len(), 4 << 20);
    }
}
