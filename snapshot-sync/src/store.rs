//! The chunks on this disk: one file each in a sharded directory, under the name of its content. A
//! chunk is here whole or not at all, through a kill or a power cut at any moment (see
//! [`batch`](Batch)). Everything blocks: async callers go through `spawn_blocking`.
//!
//! Layout: `chunks/<first byte>/<id>`, `pins/<manifest>-<hash of label and member>`,
//! `names/<manifest>`, `scrub` (how far chunks were checked), `tmp/` for what is being written
//! (emptied at open). The caller opens a store in one process at a time.

mod batch;
mod census;
mod collect;
mod holds;
mod names;
mod pins;
mod room;
mod scrub;
mod verify;

pub use batch::Batch;
pub(crate) use batch::sync_directory;
pub use census::{Amount, Census, PinnedManifest};
pub use collect::CollectionReport;
pub use holds::Hold;
pub use pins::{MAX_LABEL_BYTES, Pin};
pub use room::Size;
pub use scrub::{Portion, ScrubReport, ScrubState};
pub use verify::{CheckpointDiff, FileDiff, Verified};

use crate::{ChunkId, Error, chunk, error::io_at};
use p2pvm_overlay::chain;
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What the system answers for a bad sector.
const EIO: i32 = nix::errno::Errno::EIO as i32;

/// Content-addressed chunks in a directory. Clones share it.
#[derive(Clone)]
pub struct ChunkStore(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    next_temporary: AtomicU64,
    /// How many damaged chunks were found since the start.
    damaged: AtomicU64,
    holds: Mutex<holds::Table>,
    /// Locked by a collection: one at a time.
    collecting: Mutex<()>,
    #[cfg(test)]
    crash: Mutex<crash::Point>,
}

/// The steps of a commit; a crash may fall between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitStep {
    /// The contents are in temporary files.
    Written,
    /// The temporary files are durable.
    Flushed,
    /// One more chunk has its final name.
    Renamed,
    /// All final names are durable.
    Durable,
}

impl ChunkStore {
    /// Opens the store in `dir`, which is made if missing. Files that a killed process left
    /// half-written are removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        let temporary = dir.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_at("emptying", &temporary)(e));
            }
            _ => {}
        }
        for made in ["tmp", "pins", "names", "chunks"].map(|name| dir.join(name)) {
            fs::create_dir_all(&made).map_err(io_at("creating a directory", &made))?;
        }
        sync_directory(&dir)?;
        Ok(Self(Arc::new(Inner {
            dir,
            next_temporary: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            holds: Mutex::default(),
            collecting: Mutex::default(),
            #[cfg(test)]
            crash: Mutex::default(),
        })))
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Stores `content`, durable on return. Many chunks are stored faster by [`ChunkStore::batch`].
    ///
    /// # Errors
    /// `TooLarge` beyond [`chunk::MAX_CHUNK_BYTES`]; [`Error::Io`].
    pub fn put(&self, content: &[u8]) -> Result<ChunkId, Error> {
        let mut batch = self.batch();
        let id = batch.put(content)?;
        batch.commit()?;
        Ok(id)
    }

    /// Begins to store many chunks, to be made durable together.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// The content of a chunk, verified.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the disk holds other content, which is removed, so that the chunk
    /// is fetched again; [`Error::Io`].
    pub fn get(&self, id: ChunkId) -> Result<Vec<u8>, Error> {
        self.get_both(id).map(|(_, content)| content)
    }

    /// The stored form of a chunk, verified.
    pub(crate) fn get_stored(&self, id: ChunkId) -> Result<Vec<u8>, Error> {
        self.get_both(id).map(|(stored, _)| stored)
    }

    fn get_both(&self, id: ChunkId) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let path = self.path(id);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound(id)),
            other => other.map_err(io_at("opening a chunk", &path))?,
        };
        let mut stored = Vec::new();
        let limit = chunk::MAX_STORED_BYTES as u64 + 1;
        let read = Read::by_ref(&mut file).take(limit).read_to_end(&mut stored);
        let decoded = match read {
            // A bad sector.
            Err(e) if e.raw_os_error() == Some(EIO) => {
                let cause = e.into();
                Err(Error::Corrupt { id, cause })
            }
            read => {
                read.map_err(io_at("reading a chunk", &path))?;
                chunk::decode(id, &stored)
            }
        };
        match decoded {
            Ok(content) => Ok((stored, content)),
            Err(e) => {
                let _ = fs::remove_file(&path);
                let damaged = self.0.damaged.fetch_add(1, Ordering::Relaxed) + 1;
                // A bad disk damages many: logged with each doubling.
                if damaged.is_power_of_two() {
                    tracing::warn!(chunk = %id, damaged, "stored chunks are damaged and removed: \
                        look at the disk: {}", chain(&e));
                }
                Err(e)
            }
        }
    }

    /// Whether the chunk is here. Its content is verified only when it is read.
    pub fn has(&self, id: ChunkId) -> bool {
        self.path(id).exists()
    }

    /// Every chunk here, in no order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<ChunkId>, Error> {
        let mut found = Vec::new();
        self.each_file(|id, _| found.push(id))?;
        Ok(found)
    }

    /// Calls `see` for every chunk file.
    fn each_file(&self, mut see: impl FnMut(ChunkId, &fs::DirEntry)) -> Result<(), Error> {
        (0..=u8::MAX).try_for_each(|shard| self.each_in_shard(shard, &mut see))
    }

    fn each_in_shard(
        &self,
        shard: u8,
        see: &mut impl FnMut(ChunkId, &fs::DirEntry),
    ) -> Result<(), Error> {
        let path = self.chunks().join(format!("{shard:02x}"));
        let entries = match fs::read_dir(&path) {
            // No chunk of this shard was ever here.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io_at("listing", &path))?,
        };
        for entry in entries {
            let entry = entry.map_err(io_at("listing", &path))?;
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                see(id, &entry);
            }
        }
        Ok(())
    }

    /// An empty hold, to be filled by [`Hold::add`].
    pub fn hold(&self) -> Hold {
        Hold::new(self.clone())
    }

    fn holds(&self) -> MutexGuard<'_, holds::Table> {
        self.0.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunks(&self) -> PathBuf {
        self.0.dir.join("chunks")
    }

    /// The directory of the chunk, made when its first chunk comes.
    fn shard(&self, id: ChunkId) -> PathBuf {
        self.chunks().join(format!("{:02x}", id.0[0]))
    }

    pub(crate) fn path(&self, id: ChunkId) -> PathBuf {
        self.shard(id).join(id.to_string())
    }

    /// A name for a file that is being written, in the same file system as the final names.
    fn temporary(&self) -> PathBuf {
        self.0.dir.join("tmp").join(
            self.0
                .next_temporary
                .fetch_add(1, Ordering::Relaxed)
                .to_string(),
        )
    }

    #[cfg(not(test))]
    fn step(&self, _step: CommitStep) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(not(test))]
    fn crashed(&self) -> bool {
        false
    }
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkStore({})", self.0.dir.display())
    }
}

/// Crashes at a chosen moment of a commit: from then on every step of the store fails, as if the
/// process were gone.
#[cfg(test)]
pub(crate) mod crash {
    use super::*;

    #[derive(Default)]
    pub(crate) struct Point {
        at: Option<(CommitStep, usize)>,
        crashed: bool,
    }

    impl ChunkStore {
        /// Crashes when `step` is reached after it was passed `skip` times.
        pub(crate) fn crash_at(&self, step: CommitStep, skip: usize) {
            *self.0.crash.lock().unwrap() = Point {
                at: Some((step, skip)),
                crashed: false,
            };
        }

        pub(crate) fn crashed(&self) -> bool {
            self.0.crash.lock().unwrap().crashed
        }

        pub(super) fn step(&self, step: CommitStep) -> Result<(), Error> {
            let mut point = self.0.crash.lock().unwrap();
            match &mut point.at {
                Some((at, 0)) if *at == step => point.crashed = true,
                Some((at, skip)) if *at == step => *skip -= 1,
                _ => {}
            }
            if point.crashed {
                return Err(io_at("crashing", &self.0.dir)(io::Error::other("injected")));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod kill;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
