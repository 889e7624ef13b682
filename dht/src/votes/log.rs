//! A voter's log: an append-only file that is flushed before the voter answers, so that no crash
//! and no power cut makes it promise an epoch twice. It is not in sled, which kills have corrupted.
//! A log with many outdated entries is rewritten while it is in use, and the blocks of the next
//! entries are taken beforehand: a disk that guests have filled still takes some promises.
//!
//! Every entry has the same size and is written twice, each copy with its own CRC that also covers
//! the entry's place. One damaged copy is repaired by the other; an incomplete last entry was never
//! answered and is dropped; an entry damaged in both copies with good ones behind it makes
//! [`VoterLog::open`] fail, because a voter that forgot a promise must not vote.

use super::entry::{Bringer, COPY_BYTES, Day, LogEntry, decode, encode};
use p2pvm_overlay::{VmId, chain, reserve};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How many entries a log has before it is compacted.
/// Reason: below 256 KiB compacting is not worth a rename.
const COMPACT_FROM_ENTRIES: usize = 1024;
const ENTRY_BYTES: usize = 2 * COPY_BYTES;
/// How many entries beyond the last the file has blocks for; at least half as many while the disk
/// has room.
/// Reason: two blocks of most file systems.
const ROOM_ENTRIES: usize = 32;

/// Why a voter's log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("voter log {path} cannot be read or written", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Another process votes with it: two voters with one log would promise twice.
    #[error("voter log {path} is in use: is another daemon running on this state \
        directory?", path = .0.display())]
    InUse(PathBuf),
    /// Entries in the middle are unreadable: promises are lost, so this node must not vote with
    /// this log.
    #[error("voter log {path} is damaged in entry {1}: this node cannot vote any more; restore \
        the file, or remove it once no VM names this node as a voter", path = .0.display())]
    Damaged(PathBuf, usize),
    /// There is no room for an entry. Earlier promises are kept, and the next one may be written
    /// when there is room.
    #[error("voter log {path}: the disk is full: make room there", path = .0.display())]
    Full(PathBuf),
    /// An earlier flush failed; what is on the disk is unknown until the log is opened again.
    #[error("voter log {path}: the disk failed to keep an entry: look at the disk, then restart \
        the node", path = .0.display())]
    Broken(PathBuf),
}

/// An open log and the newest entry of each VM.
pub struct VoterLog {
    path: PathBuf,
    file: File,
    entries: usize,
    /// For how many entries the file has blocks.
    room: usize,
    newest: HashMap<VmId, LogEntry>,
    /// The log is compacted when it has more entries.
    compact_from: usize,
    trust: Trust,
}

/// Whether the disk has what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// They are the same.
    Whole,
    /// An entry that was not answered may be on the disk, or the file's name may be lost: the log
    /// is rewritten from memory before the next entry.
    Rewrite,
    /// A flush failed: the disk may lose what is written.
    Broken,
}

/// The step at which rewriting failed.
enum RewriteError {
    /// The log is as it was.
    Before(io::Error),
    /// The new file has the log's name, which a power cut may take back.
    Named(io::Error),
}

impl VoterLog {
    /// Reads the log at `path`, or starts one (mode 0600, its directory flushed).
    ///
    /// # Errors
    /// [`LogError::Io`]; [`LogError::Damaged`] if a promise was lost; [`LogError::InUse`].
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let io = |e| LogError::Io(path.to_owned(), e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => LogError::InUse(path.to_owned()),
            TryLockError::Error(e) => io(e),
        })?;
        let raw = fs::read(path).map_err(io)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
            entries: 0,
            room: 0,
            newest: HashMap::new(),
            compact_from: COMPACT_FROM_ENTRIES,
            trust: Trust::Whole,
        };
        log.read(&raw)?;
        log.file
            .set_len((log.room * ENTRY_BYTES) as u64)
            .map_err(io)?;
        log.file.sync_all().map_err(io)?;
        sync_directory_of(path).map_err(io)?;
        log.make_usable()?;
        Ok(log)
    }

    fn read(&mut self, raw: &[u8]) -> Result<(), LogError> {
        let mut unreadable = None;
        for (place, entry) in raw.chunks(ENTRY_BYTES).enumerate() {
            let copies = entry.chunks(COPY_BYTES);
            let Some((vm, memory)) = copies.into_iter().find_map(|copy| decode(place, copy)) else {
                unreadable = unreadable.or(Some(place));
                continue;
            };
            if let Some(damaged) = unreadable {
                return Err(LogError::Damaged(self.path.clone(), damaged));
            }
            let whole = encode(place, vm, &memory).repeat(2);
            if entry != whole {
                tracing::warn!(path = %self.path.display(), place, "repaired a voter log entry \
                    from its second copy");
                self.file
                    .write_all_at(&whole, (place * ENTRY_BYTES) as u64)
                    .map_err(|e| LogError::Io(self.path.clone(), e))?;
            }
            self.newest.insert(vm, memory);
            self.entries = place + 1;
        }
        let rest = raw.get(self.entries * ENTRY_BYTES..).unwrap_or_default();
        let is_room = rest.iter().all(|byte| *byte == 0);
        self.room = self.entries + if is_room { rest.len() / ENTRY_BYTES } else { 0 };
        Ok(())
    }

    /// Whether most of its entries are outdated.
    fn is_long(&self) -> bool {
        self.entries > self.compact_from && self.entries > 4 * self.newest.len()
    }

    /// Writes the newest entry of each VM to a new file and puts it in the old one's place.
    fn rewrite(&mut self) -> Result<(), RewriteError> {
        let temporary = self.path.with_extension("new");
        let written = self.write_anew(&temporary);
        let file = written.map_err(|e| {
            // A file that cannot be removed is overwritten the next time.
            let _ = fs::remove_file(&temporary);
            RewriteError::Before(e)
        })?;
        fs::rename(&temporary, &self.path).map_err(RewriteError::Before)?;
        self.file = file;
        (self.entries, self.room) = (self.newest.len(), self.newest.len());
        sync_directory_of(&self.path).map_err(RewriteError::Named)
    }

    fn write_anew(&self, temporary: &Path) -> io::Result<File> {
        let mut all = Vec::with_capacity(self.newest.len() * ENTRY_BYTES);
        for (place, (vm, memory)) in self.newest.iter().enumerate() {
            all.extend(encode(place, *vm, memory).repeat(2));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(temporary)?;
        file.try_lock()?;
        reserve::retrying(&self.path, || file.write_all_at(&all, 0))?;
        file.sync_all()?;
        Ok(file)
    }

    /// The newest entry of `vm` that is on the disk.
    pub(crate) fn recall(&self, vm: &VmId) -> Option<&LogEntry> {
        self.newest.get(vm)
    }

    /// Appends an entry and flushes it; only then [`Self::recall`] returns it.
    ///
    /// # Errors
    /// [`LogError::Full`] or [`LogError::Io`]: nothing is promised, and the next entry may be
    /// written. [`LogError::Broken`] after a flush that failed for another reason than a full disk.
    pub(crate) fn remember(&mut self, vm: VmId, memory: LogEntry) -> Result<(), LogError> {
        if let Some(known) = self.recall(&vm) {
            let (old, new) = (&known.promise, &memory.promise);
            assert!(
                new.epoch > old.epoch || (new.epoch == old.epoch && new.holder == old.holder),
                "a promise never falls back to an older epoch and never changes its holder"
            );
        }
        self.make_usable()?;
        self.make_room();
        let entry = encode(self.entries, vm, &memory).repeat(2);
        let end = (self.entries * ENTRY_BYTES) as u64;
        let written = reserve::retrying(&self.path, || self.file.write_all_at(&entry, end));
        if let Err(e) = written {
            // Nothing of it was flushed or answered: the next entry may take its place.
            self.room = self.entries;
            if self.file.set_len(end).is_err() {
                self.trust = Trust::Rewrite;
            }
            return Err(self.failed(e));
        }
        if let Err(e) = self.file.sync_data() {
            // Some file systems look for room only now.
            let is_full = reserve::is_full(&e);
            self.trust = if is_full {
                Trust::Rewrite
            } else {
                Trust::Broken
            };
            return Err(self.failed(e));
        }
        self.entries += 1;
        self.room = self.room.max(self.entries);
        self.newest.insert(vm, memory);
        Ok(())
    }

    /// Rewrites the log from memory if that is needed, or saves much space.
    fn make_usable(&mut self) -> Result<(), LogError> {
        let is_needed = match self.trust {
            Trust::Broken => return Err(LogError::Broken(self.path.clone())),
            Trust::Rewrite => true,
            Trust::Whole if self.is_long() => false,
            Trust::Whole => return Ok(()),
        };
        match self.rewrite() {
            Ok(()) => {
                (self.trust, self.compact_from) = (Trust::Whole, COMPACT_FROM_ENTRIES);
                Ok(())
            }
            Err(RewriteError::Before(e)) if !is_needed => {
                // The log stays as it is, and the next try comes when it is twice as long.
                self.compact_from = 2 * self.entries;
                tracing::warn!(path = %self.path.display(), error = %chain(&e), "the voter log \
                    could not be compacted");
                Ok(())
            }
            Err(RewriteError::Before(e)) => Err(self.failed(e)),
            Err(RewriteError::Named(e)) => {
                self.trust = Trust::Rewrite;
                Err(self.failed(e))
            }
        }
    }

    /// Takes blocks for the next entries, if the disk has any.
    fn make_room(&mut self) {
        if self.room - self.entries >= ROOM_ENTRIES / 2 {
            return;
        }
        let at = |entries: usize| (entries * ENTRY_BYTES) as u64;
        let more = self.entries + ROOM_ENTRIES - self.room;
        match self
            .file
            .write_all_at(&vec![0; more * ENTRY_BYTES], at(self.room))
        {
            Ok(()) => self.room += more,
            Err(_) => {
                // Zeros that stay are read as room when the log is next opened.
                let _ = self.file.set_len(at(self.room));
            }
        }
    }

    fn failed(&self, error: io::Error) -> LogError {
        if reserve::is_full(&error) {
            LogError::Full(self.path.clone())
        } else {
            LogError::Io(self.path.clone(), error)
        }
    }

    /// Forgets the VMs that were deleted long ago. They leave the disk when the log is compacted.
    pub(crate) fn forget_deleted(&mut self, today: Day) {
        self.newest.retain(|_, entry| !entry.is_over(today));
    }

    /// How many VMs a member's requests have brought.
    pub(crate) fn brought_by(&self, by: Bringer) -> usize {
        self.newest.values().filter(|entry| entry.by == by).count()
    }

    /// How many VMs have an entry.
    pub fn vms(&self) -> usize {
        self.newest.len()
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
