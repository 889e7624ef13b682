//! Garbage collection: mark the chunks that pins name, sweep the rest. Safe beside imports, fetches
//! and pins under way: they hold their chunks (see [`super::Hold`]), and holds released meanwhile
//! last until the end.

use super::ChunkStore;
use crate::{Error, error::io_at};
use std::{collections::HashSet, fs, io, sync::PoisonError, time::Duration, time::SystemTime};

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectionReport {
    /// Chunks that stay.
    pub kept: u64,
    /// Chunks removed.
    pub removed: u64,
    /// Their bytes on disk.
    pub freed_bytes: u64,
}

impl ChunkStore {
    /// Removes the chunks that no pin names, no work under way holds, and that are older than
    /// `grace`: a fetch that a restart interrupted finds again what it had.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` or `Malformed` if a pinned manifest cannot be read: then nothing is
    /// removed, because the chunks it names are unknown. The caller fetches it again or unpins it.
    pub fn gc(&self, grace: Duration) -> Result<CollectionReport, Error> {
        let _one_at_a_time = self
            .0
            .collecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.holds().begin_collection();
        let result = self.mark_and_sweep(grace);
        self.holds().end_collection();
        result
    }

    fn mark_and_sweep(&self, grace: Duration) -> Result<CollectionReport, Error> {
        let mut live = HashSet::new();
        for (root, _) in self.pins()? {
            self.walk(root, |chunk| {
                live.insert(chunk);
                true
            })?;
        }
        let now = SystemTime::now();
        let mut collected = CollectionReport::default();
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
            match fs::remove_file(&path) {
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
