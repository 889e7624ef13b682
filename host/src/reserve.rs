//! Room for what has to be written on a full disk: a file that holds blocks of the file system and
//! gives them back a piece at a time.
//!
//! Guests fill a disk to its last block. What a node owes others must be written all the same: a
//! voter's promise, a definition, a lease. So the daemon keeps a file of its own that holds room
//! ([`keep`]); a write that finds the disk full shortens it by a piece and tries again at once
//! ([`retrying`]). Who fills the disk would have to be quicker than that. When there is room again,
//! the file grows back ([`refill`]).
//!
//! One a process: nearly every write of this workspace that has to succeed goes through
//! [`crate::durable`].

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

/// How much is kept. Reason: records take kilobytes each, the record store's pieces half a
/// mebibyte.
pub const RESERVE: u64 = 32 << 20;
/// At most this share of the file system is kept, so that a small one is not all reserve.
const SHARE: u64 = 16;
/// How much is given back for one write.
pub const PIECE: u64 = 1 << 20;

static KEPT: OnceLock<Reserve> = OnceLock::new();

/// What is free on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that others than the kernel may write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// What is free where `path` lies.
///
/// # Errors
/// What the file system says.
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
    /// One shortens or lengthens it at a time.
    turn: Mutex<()>,
}

impl Reserve {
    /// The reserve in `path`, which is made; it holds what it held.
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

    /// Takes what is missing, if so much and as much again is free. Reason: the last of the room is
    /// not for the reserve alone.
    fn refill(&self) -> io::Result<u64> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let file = open(&self.path)?;
        let held = file.metadata()?.len();
        let missing = self.wanted.saturating_sub(held);
        if missing == 0 || room(&self.path)?.free < 2 * missing {
            return Ok(held);
        }
        let filled = fill(&file, held, missing);
        if filled.is_err() {
            // What was taken of the piece goes back: a reserve that is longer than its blocks keeps
            // nothing.
            file.set_len(held)?;
        }
        filled.map(|()| self.wanted)
    }

    /// Gives a piece back; false if there is none left.
    fn spend(&self) -> io::Result<bool> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Whether `at`, or the directory that is to hold it, lies on the file system whose room is
    /// kept.
    fn is_for(&self, at: &Path) -> bool {
        let device = |path: &Path| path.metadata().map(|about| about.dev()).ok();
        device(at).or_else(|| device(&crate::durable::directory_of(at))) == Some(self.device)
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

/// Keeps room in `path` from now on, as much as there is up to [`RESERVE`]; gives the bytes that
/// are kept. A second call changes nothing but refills.
///
/// # Errors
/// What the file system says; then nothing is kept.
pub fn keep(path: &Path) -> io::Result<u64> {
    if KEPT.get().is_none() {
        // Another thread that was first has the same one.
        let _ = KEPT.set(Reserve::at(path)?);
    }
    refill()
}

/// Takes back what was spent, if there is room for it; gives the bytes that are kept now.
///
/// # Errors
/// What the file system says.
pub fn refill() -> io::Result<u64> {
    KEPT.get().map_or(Ok(0), Reserve::refill)
}

/// How much the reserve is to hold; 0 where none is kept.
pub fn wanted() -> u64 {
    KEPT.get().map_or(0, |kept| kept.wanted)
}

/// Gives a piece of the reserve back where it keeps room for `at`; false if there is none left.
pub fn spend(at: &Path) -> bool {
    KEPT.get()
        .is_some_and(|kept| kept.is_for(at) && kept.spend().unwrap_or(false))
}

/// Does `work`, which writes at `at`; when it finds the disk full, again with a piece of the
/// reserve, as long as there is one. What it has half done before it fails must not hinder it.
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
    fn a_full_disk_still_takes_what_must_be_written_until_the_reserve_is_spent() {
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
