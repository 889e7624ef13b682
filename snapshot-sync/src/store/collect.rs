//! Garbage collection: mark the chunks that pins name, sweep the rest. Safe beside imports, fetches
//! and pins under way: they hold their chunks (see [`super::Hold`]), and holds released meanwhile
//! last until the end.
//!
//! A pin with a damaged manifest is set aside: the chunks that it named when it was pinned
//! ([`super::names`]) stay, and the rest is collected. The caller fetches the damaged chunks again.

use super::{ChunkStore, Pin};
use crate::{ChunkId, Error, ManifestId, error::io_at};
use p2pvm_overlay::chain;
use std::{
    collections::HashSet,
    fs, io,
    path::Path,
    sync::{MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectionReport {
    /// Chunks that stay.
    pub kept: u64,
    /// Chunks removed.
    pub removed: u64,
    /// Their bytes on disk.
    pub freed_bytes: u64,
    /// Pins that lack chunks, or have damaged ones: to be fetched again.
    pub damaged: Vec<Pin>,
    /// No chunk was removed, because the names of a damaged manifest are unknown: the release that
    /// pinned it did not write them, or their file is damaged too.
    pub unswept: bool,
}

/// What the pins name; `is_all` is false if the names of a damaged manifest are unknown.
pub(super) struct MarkedChunks {
    live: HashSet<ChunkId>,
    damaged: Vec<Pin>,
    is_all: bool,
}

impl ChunkStore {
    /// Removes the chunks that no pin names, no work under way holds, and that are older than
    /// `grace`, so that a fetch which a restart interrupted finds its chunks again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn gc(&self, grace: Duration) -> Result<CollectionReport, Error> {
        let _one_at_a_time = self.collecting();
        self.holds().begin_collection();
        let result = self
            .mark()
            .and_then(|marked| self.sweep(marked, grace, |path| fs::remove_file(path)));
        self.holds().end_collection();
        result
    }

    /// What [`ChunkStore::gc`] would do now, without removing anything. `removed` and `freed_bytes`
    /// are what would go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn gc_dry_run(&self, grace: Duration) -> Result<CollectionReport, Error> {
        let _one_at_a_time = self.collecting();
        self.sweep(self.mark()?, grace, |_| Ok(()))
    }

    /// The pins that lack chunks. A chunk with other content counts as present until it is read, as
    /// [`ChunkStore::scrub`] does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn damaged_pins(&self) -> Result<Vec<Pin>, Error> {
        let _one_at_a_time = self.collecting();
        self.mark().map(|marked| marked.damaged)
    }

    /// Waits until no other collection runs.
    fn collecting(&self) -> MutexGuard<'_, ()> {
        let collecting = &self.0.collecting;
        collecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mark(&self) -> Result<MarkedChunks, Error> {
        let pins = self.pins()?;
        let pinned: HashSet<ManifestId> = pins.iter().map(|pin| pin.manifest).collect();
        // After the pins: all chunks of a pin are here before it.
        let here: HashSet<ChunkId> = self.list()?.into_iter().collect();
        let (mut live, mut is_all) = (HashSet::new(), true);
        let mut damaged = HashSet::new();
        for id in &pinned {
            let mut names = HashSet::new();
            let walked = self.walk(*id, |chunk| {
                names.insert(chunk);
                true
            });
            match walked {
                // A full disk is no reason to fail: the names are written at the next collection.
                Ok(()) => drop(self.note_names(*id, &names)),
                Err(
                    error @ (Error::NotFound(_) | Error::Corrupt { .. } | Error::Malformed { .. }),
                ) => {
                    tracing::debug!(manifest = %id, "a damaged manifest: {}", chain(&error));
                    damaged.insert(*id);
                    let noted = self.noted_names(*id);
                    is_all &= noted.is_some();
                    names.extend(noted.unwrap_or_default());
                }
                Err(other) => return Err(other),
            }
            if names.iter().any(|chunk| !here.contains(chunk)) {
                damaged.insert(*id);
            }
            live.extend(names);
        }
        self.drop_names(&pinned)?;
        let is_damaged = |pin: &Pin| damaged.contains(&pin.manifest);
        let damaged = pins.into_iter().filter(is_damaged).collect();
        Ok(MarkedChunks {
            live,
            damaged,
            is_all,
        })
    }

    /// Calls `remove` for each chunk that may go.
    pub(super) fn sweep(
        &self,
        marked: MarkedChunks,
        grace: Duration,
        remove: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<CollectionReport, Error> {
        let MarkedChunks {
            live,
            damaged,
            is_all,
        } = marked;
        let mut collected = CollectionReport {
            damaged,
            unswept: !is_all,
            ..CollectionReport::default()
        };
        if !is_all {
            return Ok(collected);
        }
        let now = SystemTime::now();
        let mut failed = None;
        self.each_file(|id, entry| {
            let path = entry.path();
            let about = match entry.metadata() {
                Ok(about) if !live.contains(&id) => about,
                _ => return collected.kept += 1,
            };
            let age = about
                .modified()
                .ok()
                .and_then(|at| now.duration_since(at).ok())
                .unwrap_or_default();
            if age < grace {
                return collected.kept += 1;
            }
            // The table stays locked while the file is removed, so that no task holds and finds it
            // in between.
            let holds = self.holds();
            if holds.holds(&id) {
                return collected.kept += 1;
            }
            match remove(&path) {
                Ok(()) => {
                    collected.removed += 1;
                    collected.freed_bytes += about.len();
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => failed = Some(io_at("removing a chunk", path)(e)),
            }
        })?;
        failed.map_or(Ok(collected), Err)
    }
}
