//! A voter's memory: an append-only file that is flushed before the voter answers, so that no crash and
//! no power cut makes it promise an epoch twice. Never in sled, which kills have corrupted.
//!
//! Every entry has the same size and is written twice, each copy with its own CRC that also covers the
//! entry's place. One damaged copy is repaired by the other; an incomplete last entry was never answered
//! and is dropped; an entry damaged in both copies with good ones behind it makes [`VoterLog::open`] fail,
//! because a voter that forgot a promise must not vote.

use super::wire::Promise;
use p2pvm_overlay::{Epoch, MemberId, VmId};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const COPY_BYTES: usize = 128;
const ENTRY_BYTES: usize = 2 * COPY_BYTES;
const MAGIC: &[u8; 8] = b"p2pvmvl1";
/// Below this many entries (256 KiB) compacting is not worth a rename.
const COMPACT_FROM_ENTRIES: usize = 1024;

/// Why a voter's log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// What the file system said.
    #[error("voter log {path}: {cause}", path = .0.display(), cause = .1)]
    Io(PathBuf, #[source] io::Error),
    /// Entries in the middle are unreadable: promises are lost, so this node must not vote with it.
    #[error("voter log {path} is damaged in entry {1}: this node cannot vote any more; restore the file, or remove it once no VM names this node as a voter", path = .0.display())]
    Damaged(PathBuf, usize),
    /// An earlier write failed; what is on the disk is unknown until the log is opened again.
    #[error("voter log {path}: an earlier write failed; restart the node", path = .0.display())]
    Broken(PathBuf),
}

/// What a voter remembers of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The newest promise.
    pub promise: Promise,
    /// The hash of the voters it was asked with first.
    pub voters: [u8; 32],
}

/// The log and what it says.
pub struct VoterLog {
    path: PathBuf,
    file: File,
    entries: usize,
    memory: HashMap<VmId, Memory>,
    broken: bool,
}

fn encode(place: usize, vm: VmId, memory: &Memory) -> [u8; COPY_BYTES] {
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

fn decode(place: usize, copy: &[u8]) -> Option<(VmId, Memory)> {
    let bytes32 = |at: usize| copy[at..at + 32].try_into().expect("32 bytes of 128");
    let good = copy.len() == COPY_BYTES && copy.starts_with(MAGIC) && copy[COPY_BYTES - 4..] == crc_at(place, copy).to_be_bytes();
    good.then(|| {
        let epoch = Epoch(u64::from_be_bytes(copy[40..48].try_into().expect("8 bytes of 128")));
        let promise = Promise { epoch, holder: MemberId(bytes32(48)), confirmed: copy[80] == 1 };
        (VmId(bytes32(8)), Memory { promise, voters: bytes32(81) })
    })
}

impl VoterLog {
    /// Reads the log at `path`, or starts one (mode 0600, its directory flushed).
    ///
    /// # Errors
    /// [`LogError::Io`]; [`LogError::Damaged`] if a promise was lost.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let io = |e| LogError::Io(path.to_owned(), e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io)?;
        let raw = fs::read(path).map_err(io)?;
        let mut log = Self { path: path.to_owned(), file, entries: 0, memory: HashMap::new(), broken: false };
        let mut unreadable = None;
        for (place, entry) in raw.chunks(ENTRY_BYTES).enumerate() {
            match entry.chunks(COPY_BYTES).find_map(|copy| decode(place, copy)) {
                Some((vm, memory)) => {
                    if let Some(damaged) = unreadable {
                        return Err(LogError::Damaged(path.to_owned(), damaged));
                    }
                    let whole = encode(place, vm, &memory).repeat(2);
                    if entry != whole {
                        tracing::warn!(path = %path.display(), place, "repaired a voter log entry from its second copy");
                        log.file.write_all_at(&whole, (place * ENTRY_BYTES) as u64).map_err(io)?;
                    }
                    log.memory.insert(vm, memory);
                    log.entries = place + 1;
                }
                None => unreadable = unreadable.or(Some(place)),
            }
        }
        if log.entries > COMPACT_FROM_ENTRIES && log.entries > 4 * log.memory.len() {
            log.compact().map_err(io)?;
        }
        log.file.set_len((log.entries * ENTRY_BYTES) as u64).map_err(io)?;
        log.file.sync_all().map_err(io)?;
        sync_directory_of(path).map_err(io)?;
        Ok(log)
    }

    /// Writes the newest entry of each VM to a new file and puts it in the old one's place.
    fn compact(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut all = Vec::with_capacity(self.memory.len() * ENTRY_BYTES);
        for (place, (vm, memory)) in self.memory.iter().enumerate() {
            all.extend(encode(place, *vm, memory).repeat(2));
        }
        file.write_all(&all)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        (self.file, self.entries) = (file, self.memory.len());
        Ok(())
    }

    /// What was last written about `vm`.
    pub(crate) fn recall(&self, vm: &VmId) -> Option<&Memory> {
        self.memory.get(vm)
    }

    /// Appends and flushes; only then is it known to [`Self::recall`].
    ///
    /// # Errors
    /// [`LogError::Io`] once, then [`LogError::Broken`]: after a failed flush nobody knows what is on the disk.
    pub(crate) fn remember(&mut self, vm: VmId, memory: Memory) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken(self.path.clone()));
        }
        let entry = encode(self.entries, vm, &memory).repeat(2);
        let written = self.file.write_all_at(&entry, (self.entries * ENTRY_BYTES) as u64).and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            self.broken = true;
            return Err(LogError::Io(self.path.clone(), e));
        }
        self.entries += 1;
        self.memory.insert(vm, memory);
        Ok(())
    }

    /// How many VMs this node has promised something about.
    pub fn vms(&self) -> usize {
        self.memory.len()
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
