//! Chunks written together and made durable together. A file's fsync costs some milliseconds of
//! waiting for the disk's cache and the journal; many at once share both, so [`FLUSHERS`] threads
//! flush a thousand files in the time of a few dozen. (`syncfs` is as fast on an idle disk, but
//! waits for other programs' files.)
//!
//! Order: contents to temporary names, flush, renames to final names, flush of the directories. So
//! a final name never stands for half a file, and a chunk is acknowledged only once its name is
//! durable too.

use super::{ChunkStore, CommitStep, Hold};
use crate::{
    ChunkId, Error,
    chunk::{self, Encoder, MAX_CHUNK_BYTES, MAX_STORED_BYTES},
    error::io_at,
    seal::{MAX_SEALED_BYTES, Sealer},
};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// How many threads flush a large batch.
/// Reason: each mostly waits.
const FLUSHERS: usize = 16;

/// How many files one more flusher has at least.
/// Reason: fewer do not pay for a thread.
const EACH: usize = 4;

/// Chunks on their way into a store. They are readable there and durable after [`Batch::commit`];
/// dropping the batch discards those that are not committed.
pub struct Batch {
    store: ChunkStore,
    hold: Hold,
    encoder: Encoder,
    pending: Vec<PendingChunk>,
    /// The index of each in `pending`.
    known: HashMap<ChunkId, usize>,
    pending_bytes: u64,
    new_chunks: u64,
    new_bytes: u64,
}

struct PendingChunk {
    id: ChunkId,
    temporary: PathBuf,
}

impl Batch {
    pub(super) fn new(store: ChunkStore) -> Self {
        let hold = store.hold();
        let (pending, known) = (Vec::new(), HashMap::new());
        Self {
            store,
            hold,
            encoder: Encoder::new(),
            pending,
            known,
            pending_bytes: 0,
            new_chunks: 0,
            new_bytes: 0,
        }
    }

    /// Adds a chunk, unless it is here already.
    ///
    /// # Errors
    /// `TooLarge` beyond [`MAX_CHUNK_BYTES`]; [`Error::Io`].
    pub fn put(&mut self, content: &[u8]) -> Result<ChunkId, Error> {
        if content.len() > MAX_CHUNK_BYTES {
            return Err(Error::TooLarge {
                what: "a chunk",
                bytes: content.len(),
            });
        }
        let id = ChunkId::of(content);
        if !self.is_known(id) {
            let stored = self.encoder.encode(content);
            self.write(id, &stored)?;
        }
        Ok(id)
    }

    /// Adds a chunk that holds `content` sealed, unless it is here already.
    pub(crate) fn put_sealed(&mut self, sealer: &Sealer, content: &[u8]) -> Result<ChunkId, Error> {
        if content.len() > MAX_SEALED_BYTES {
            return Err(Error::TooLarge {
                what: "a sealed chunk",
                bytes: content.len(),
            });
        }
        let block = sealer.hash(content);
        let id = match sealer.known(&block) {
            Some(id) if self.is_known(id) => id,
            _ => {
                let stored = sealer.key().seal(&mut self.encoder, content);
                let id = ChunkId::of(&stored[1..]);
                if !self.is_known(id) {
                    self.write(id, &stored)?;
                }
                id
            }
        };
        sealer.note(block, id);
        Ok(id)
    }

    /// Adds a chunk in its stored form. The caller has verified that it is that of `id`.
    pub(crate) fn put_stored(&mut self, id: ChunkId, stored: &[u8]) -> Result<(), Error> {
        if stored.len() > MAX_STORED_BYTES {
            return Err(Error::TooLarge {
                what: "a stored chunk",
                bytes: stored.len(),
            });
        }
        if !self.is_known(id) {
            self.write(id, stored)?;
        }
        Ok(())
    }

    /// Whether the chunk is in the batch or the store. It is held first, so that no collection
    /// comes between.
    pub(crate) fn is_known(&mut self, id: ChunkId) -> bool {
        self.hold.add(id);
        self.known.contains_key(&id) || self.store.has(id)
    }

    fn write(&mut self, id: ChunkId, stored: &[u8]) -> Result<(), Error> {
        let temporary = self.store.temporary();
        let mut file =
            File::create_new(&temporary).map_err(io_at("creating a chunk", &temporary))?;
        let written = file
            .write_all(stored)
            .map_err(io_at("writing a chunk", &temporary));
        self.known.insert(id, self.pending.len());
        self.pending.push(PendingChunk { id, temporary });
        self.pending_bytes += stored.len() as u64;
        written
    }

    /// The content of a chunk that was put or is in the store.
    pub(crate) fn get(&self, id: ChunkId) -> Result<Vec<u8>, Error> {
        let Some(pending) = self.known.get(&id).and_then(|at| self.pending.get(*at)) else {
            return self.store.get(id);
        };
        let stored =
            fs::read(&pending.temporary).map_err(io_at("reading a chunk", &pending.temporary))?;
        chunk::decode(id, &stored)
    }

    /// Bytes on disk that wait for [`Batch::commit`].
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Chunks that wait for [`Batch::commit`].
    pub fn pending_chunks(&self) -> usize {
        self.pending.len()
    }

    /// Chunks committed that were not here before, and their bytes on disk.
    pub fn written(&self) -> (u64, u64) {
        (self.new_chunks, self.new_bytes)
    }

    /// Checks that `reserve` bytes stay free; chunks that wait to be committed are on the disk
    /// already.
    pub(crate) fn has_room(&self, reserve: u64) -> Result<(), Error> {
        self.store.has_room(0, reserve)
    }

    /// Makes all chunks of the batch durable under their final names.
    ///
    /// # Errors
    /// [`Error::Io`]; then the batch is empty.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let result = self.commit_pending();
        if result.is_err() {
            self.discard();
        }
        result
    }

    fn commit_pending(&mut self) -> Result<(), Error> {
        self.store.step(CommitStep::Written)?;
        flush(
            &self
                .pending
                .iter()
                .map(|pending| pending.temporary.as_path())
                .collect::<Vec<_>>(),
        )?;
        self.store.step(CommitStep::Flushed)?;
        let shards: HashSet<PathBuf> = self
            .pending
            .iter()
            .map(|pending| self.store.shard(pending.id))
            .collect();
        let mut parents: Vec<&Path> = shards.iter().map(PathBuf::as_path).collect();
        let chunks = self.store.chunks();
        for shard in &shards {
            match fs::create_dir(shard) {
                Ok(()) => parents.push(&chunks),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_at("creating a directory", shard)(e)),
            }
        }
        parents.dedup();
        for pending in &self.pending {
            let path = self.store.path(pending.id);
            fs::rename(&pending.temporary, &path).map_err(io_at("naming a chunk", &path))?;
            self.store.step(CommitStep::Renamed)?;
        }
        flush(&parents)?;
        self.store.step(CommitStep::Durable)?;
        self.new_chunks += self.pending.len() as u64;
        self.new_bytes += self.pending_bytes;
        self.pending.clear();
        self.known.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// Commits, and holds the chunks that were put or were here already: no collection removes them
    /// until the hold is dropped.
    ///
    /// # Errors
    /// As [`Batch::commit`].
    pub fn finish(mut self) -> Result<Hold, Error> {
        self.commit()?;
        Ok(std::mem::replace(&mut self.hold, self.store.hold()))
    }

    fn discard(&mut self) {
        for pending in self.pending.drain(..) {
            self.known.remove(&pending.id);
            // A file that cannot be removed now goes when the store is next opened.
            let _ = fs::remove_file(&pending.temporary);
        }
        self.pending_bytes = 0;
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.store.crashed() {
            self.discard();
        }
    }
}

/// Makes files or directories durable, several at a time.
fn flush(paths: &[&Path]) -> Result<(), Error> {
    let one = |path: &&Path| {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(io_at("flushing", *path))
    };
    let share = paths.len().div_ceil(FLUSHERS).max(EACH);
    if paths.len() <= share {
        return paths.iter().try_for_each(one);
    }
    std::thread::scope(|scope| {
        let flushers: Vec<_> = paths
            .chunks(share)
            .map(|some| scope.spawn(move || some.iter().try_for_each(one)))
            .collect();
        let results = flushers.into_iter().map(|flusher| {
            flusher
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        results.fold(Ok(()), Result::and)
    })
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_at("flushing a directory", path))
}
