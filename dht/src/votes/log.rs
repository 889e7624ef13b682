//! A voter's log: an append-only file that is flushed before the voter answers, so that no crash
//! and no power cut makes it promise an epoch twice. It is not in sled, which kills have corrupted.
//!
//! Every entry has the same size and is written twice, each copy with its own CRC that also covers
//! the entry's place. One damaged copy is repaired by the other; an incomplete last entry was never
//! answered and is dropped; an entry damaged in both copies with good ones behind it makes
//! [`VoterLog::open`] fail, because a voter that forgot a promise must not vote.

use super::wire::Promise;
use p2pvm_overlay::{Epoch, MemberId, VmId, reserve};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const COPY_BYTES: usize = 128;
const ENTRY_BYTES: usize = 2 * COPY_BYTES;
const MAGIC: &[u8; 8] = b"p2pvmvl1";
/// How many entries a log has before it is compacted.
/// Reason: below 256 KiB compacting is not worth a rename.
const COMPACT_FROM_ENTRIES: usize = 1024;

/// Why a voter's log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("voter log {path} cannot be read or written", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Another process votes with it: two voters with one memory would promise twice.
    #[error("voter log {path} is in use: is another daemon running on this state \
        directory?", path = .0.display())]
    InUse(PathBuf),
    /// Entries in the middle are unreadable: promises are lost, so this node must not vote with it.
    #[error("voter log {path} is damaged in entry {1}: this node cannot vote any more; restore \
        the file, or remove it once no VM names this node as a voter", path = .0.display())]
    Damaged(PathBuf, usize),
    /// There is no room for an entry. What was promised before is there, and the next one may be
    /// written when there is room.
    #[error("voter log {path}: the disk is full: make room there", path = .0.display())]
    Full(PathBuf),
    /// An earlier write failed; what is on the disk is unknown until the log is opened again.
    #[error("voter log {path}: an earlier write failed; restart the node", path = .0.display())]
    Broken(PathBuf),
}

/// A voter's newest promise for one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    /// What was promised.
    pub promise: Promise,
    /// The hash of the voter set that the first request named.
    pub voters: [u8; 32],
}

/// An open log and the newest entry of each VM.
pub struct VoterLog {
    path: PathBuf,
    file: File,
    entries: usize,
    newest: HashMap<VmId, LogEntry>,
    broken: bool,
}

fn encode(place: usize, vm: VmId, memory: &LogEntry) -> [u8; COPY_BYTES] {
    let mut copy = [0; COPY_BYTES];
    copy[..8].copy_from_slice(MAGIC);
    copy[8..40].copy_from_slice(&vm.0);
    copy[40..48].copy_from_slice(&memory.promise.epoch.0.to_be_bytes());
    copy[48..80].copy_from_slice(&memory.promise.holder.0);
    copy[80] = memory.promise.confirmed.into();
    copy[81..113].copy_from_slice(&memory.voters);
    let crc = crc_at(place, &copy);
    copy[COPY_BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
    copy
}

fn crc_at(place: usize, copy: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(place as u64).to_be_bytes());
    crc.update(&copy[..COPY_BYTES - 4]);
    crc.finalize()
}

fn decode(place: usize, copy: &[u8]) -> Option<(VmId, LogEntry)> {
    let bytes32 = |at: usize| copy[at..at + 32].try_into().expect("32 bytes of 128");
    let good = copy.len() == COPY_BYTES
        && copy.starts_with(MAGIC)
        && copy[COPY_BYTES - 4..] == crc_at(place, copy).to_be_bytes();
    good.then(|| {
        let epoch = Epoch(u64::from_be_bytes(
            copy[40..48].try_into().expect("8 bytes of 128"),
        ));
        let promise = Promise {
            epoch,
            holder: MemberId(bytes32(48)),
            confirmed: copy[80] == 1,
        };
        (
            VmId(bytes32(8)),
            LogEntry {
                promise,
                voters: bytes32(81),
            },
        )
    })
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
            newest: HashMap::new(),
            broken: false,
        };
        let mut unreadable = None;
        for (place, entry) in raw.chunks(ENTRY_BYTES).enumerate() {
            match entry
                .chunks(COPY_BYTES)
                .find_map(|copy| decode(place, copy))
            {
                Some((vm, memory)) => {
                    if let Some(damaged) = unreadable {
                        return Err(LogError::Damaged(path.to_owned(), damaged));
                    }
                    let whole = encode(place, vm, &memory).repeat(2);
                    if entry != whole {
                        tracing::warn!(path = %path.display(), place, "repaired a voter log entry \
                            from its second copy");
                        log.file
                            .write_all_at(&whole, (place * ENTRY_BYTES) as u64)
                            .map_err(io)?;
                    }
                    log.newest.insert(vm, memory);
                    log.entries = place + 1;
                }
                None => unreadable = unreadable.or(Some(place)),
            }
        }
        if log.entries > COMPACT_FROM_ENTRIES && log.entries > 4 * log.newest.len() {
            log.compact().map_err(io)?;
        }
        log.file
            .set_len((log.entries * ENTRY_BYTES) as u64)
            .map_err(io)?;
        log.file.sync_all().map_err(io)?;
        sync_directory_of(path).map_err(io)?;
        Ok(log)
    }

    /// Writes the newest entry of each VM to a new file and puts it in the old one's place.
    fn compact(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.try_lock()?;
        let mut all = Vec::with_capacity(self.newest.len() * ENTRY_BYTES);
        for (place, (vm, memory)) in self.newest.iter().enumerate() {
            all.extend(encode(place, *vm, memory).repeat(2));
        }
        file.write_all(&all)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        (self.file, self.entries) = (file, self.newest.len());
        Ok(())
    }

    /// The newest entry of `vm` that is on the disk.
    pub(crate) fn recall(&self, vm: &VmId) -> Option<&LogEntry> {
        self.newest.get(vm)
    }

    /// Appends an entry and flushes it; only then [`Self::recall`] returns it.
    ///
    /// # Errors
    /// [`LogError::Full`]; or [`LogError::Io`] once, then [`LogError::Broken`]: after a failed
    /// flush it is unknown what is on the disk.
    pub(crate) fn remember(&mut self, vm: VmId, memory: LogEntry) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken(self.path.clone()));
        }
        if let Some(known) = self.recall(&vm) {
            let (old, new) = (&known.promise, &memory.promise);
            assert!(
                new.epoch > old.epoch || (new.epoch == old.epoch && new.holder == old.holder),
                "a promise never falls back to an older epoch and never changes its holder"
            );
        }
        let entry = encode(self.entries, vm, &memory).repeat(2);
        let end = (self.entries * ENTRY_BYTES) as u64;
        let written = reserve::retrying(&self.path, || self.file.write_all_at(&entry, end));
        if let Err(e) = &written
            && reserve::is_full(e)
            && self.file.set_len(end).is_ok()
        {
            // Nothing of it was flushed or answered: the next entry may take its place.
            return Err(LogError::Full(self.path.clone()));
        }
        if let Err(e) = written.and_then(|()| self.file.sync_data()) {
            self.broken = true;
            return Err(LogError::Io(self.path.clone(), e));
        }
        self.entries += 1;
        self.newest.insert(vm, memory);
        Ok(())
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
mod tests {
    use super::*;

    fn memory(epoch: u64) -> LogEntry {
        LogEntry {
            promise: Promise {
                epoch: Epoch(epoch),
                holder: MemberId([9; 32]),
                confirmed: epoch.is_multiple_of(2),
            },
            voters: [7; 32],
        }
    }

    /// A log with the epochs 1 to 3 of one VM and 7 of another.
    fn written(path: &Path) -> Vec<u8> {
        let mut log = VoterLog::open(path).unwrap();
        for epoch in 1..=3 {
            log.remember(VmId([1; 32]), memory(epoch)).unwrap();
        }
        log.remember(VmId([2; 32]), memory(7)).unwrap();
        fs::read(path).unwrap()
    }

    fn recalled(path: &Path) -> Result<[Option<LogEntry>; 2], LogError> {
        VoterLog::open(path).map(|log| [1, 2].map(|vm| log.recall(&VmId([vm; 32])).copied()))
    }

    #[test]
    fn what_was_promised_is_recalled_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        written(&path);
        assert_eq!(recalled(&path).unwrap(), [Some(memory(3)), Some(memory(7))]);
    }

    #[test]
    fn two_voters_never_share_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        let first = VoterLog::open(&path).unwrap();
        assert!(matches!(VoterLog::open(&path), Err(LogError::InUse(_))));
        drop(first);
        assert!(VoterLog::open(&path).is_ok());
    }

    #[test]
    fn a_voter_whose_disk_was_full_votes_again_when_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "p2pvm"])
            .arg(directory.path())
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            return eprintln!("NOT RUN: a file system of its own needs root");
        }
        let checked = std::panic::catch_unwind(|| {
            let mut log = VoterLog::open(&at("votes")).unwrap();
            log.remember(VmId([1; 32]), memory(1)).unwrap();
            let mut filler = File::create(at("guest")).unwrap();
            while filler.write_all(&[7; 512]).is_ok() {}
            // The file's last block takes some entries still.
            let refused = (2..40).find_map(|epoch| {
                log.remember(VmId([1; 32]), memory(epoch))
                    .err()
                    .map(|e| (epoch, e))
            });
            let (epoch, error) = refused.expect("a full disk takes no entry for ever");
            assert!(matches!(error, LogError::Full(_)), "{error}");
            assert_eq!(
                log.recall(&VmId([1; 32])),
                Some(&memory(epoch - 1)),
                "nothing is recalled that is not on the disk"
            );
            drop(filler);
            fs::remove_file(at("guest")).unwrap();
            log.remember(VmId([1; 32]), memory(epoch)).unwrap();
            drop(log);
            assert_eq!(recalled(&at("votes")).unwrap()[0], Some(memory(epoch)));
        });
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(directory.path())
            .status();
        checked.unwrap();
    }

    #[test]
    fn a_write_torn_at_any_byte_loses_nothing_that_was_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        let whole = written(&path);
        for cut in (3 * ENTRY_BYTES..whole.len()).step_by(5) {
            for rest in [0, whole.len() - cut] {
                fs::write(&path, [&whole[..cut], &vec![0; rest][..]].concat()).unwrap();
                let [first, second] =
                    recalled(&path).unwrap_or_else(|e| panic!("cut at {cut}, {rest} zeros: {e:?}"));
                assert_eq!(first, Some(memory(3)));
                assert!(second.is_none() || second == Some(memory(7)));
                let mut log = VoterLog::open(&path).unwrap();
                log.remember(VmId([2; 32]), memory(9)).unwrap();
                drop(log);
                assert_eq!(
                    recalled(&path).unwrap(),
                    [Some(memory(3)), Some(memory(9))],
                    "and goes on after it"
                );
            }
        }
    }

    #[test]
    fn a_byte_flipped_anywhere_is_repaired_from_the_second_copy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        let whole = written(&path);
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(
                recalled(&path).unwrap(),
                [Some(memory(3)), Some(memory(7))],
                "flipped at {at}"
            );
            assert_eq!(fs::read(&path).unwrap(), whole, "flipped at {at}");
        }
    }

    #[test]
    fn a_voter_that_lost_a_promise_does_not_vote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        let whole = written(&path);
        for lost in 0..3 {
            let mut damaged = whole.clone();
            damaged[lost * ENTRY_BYTES..][..ENTRY_BYTES].fill(0);
            fs::write(&path, &damaged).unwrap();
            assert!(matches!(recalled(&path), Err(LogError::Damaged(_, place)) if place == lost));
            let mut swapped = whole.clone();
            swapped.copy_within(3 * ENTRY_BYTES.., lost * ENTRY_BYTES);
            fs::write(&path, &swapped).unwrap();
            assert!(
                recalled(&path).is_err(),
                "an entry in another's place is none"
            );
        }
    }

    #[test]
    fn a_long_log_is_compacted_without_losing_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("votes");
        let entries = COMPACT_FROM_ENTRIES + 1;
        let raw: Vec<u8> = (0..entries)
            .flat_map(|place| encode(place, VmId([1; 32]), &memory(place as u64)).repeat(2))
            .collect();
        fs::write(&path, raw).unwrap();
        assert_eq!(
            recalled(&path).unwrap()[0],
            Some(memory(entries as u64 - 1))
        );
        assert_eq!(fs::metadata(&path).unwrap().len(), ENTRY_BYTES as u64);
        assert_eq!(
            recalled(&path).unwrap()[0],
            Some(memory(entries as u64 - 1))
        );
    }
}
