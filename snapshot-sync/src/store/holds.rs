//! Chunks of work under way, which garbage collection keeps although no pin names them yet. Holds
//! are in memory: after a restart the grace period of [`super::ChunkStore::gc`] covers their
//! chunks.

use super::ChunkStore;
use crate::ChunkId;
use std::collections::{HashMap, HashSet};

#[derive(Default)]
pub(super) struct Table {
    counts: HashMap<ChunkId, u32>,
    /// A collection is under way: a chunk released meanwhile may have been pinned after the
    /// marking, so it stays held until the end.
    collecting: bool,
    lingering: Vec<ChunkId>,
}

impl Table {
    pub(super) fn holds(&self, id: &ChunkId) -> bool {
        self.counts.contains_key(id)
    }

    pub(super) fn begin_collection(&mut self) {
        self.collecting = true;
    }

    pub(super) fn end_collection(&mut self) {
        self.collecting = false;
        for id in std::mem::take(&mut self.lingering) {
            self.release(id);
        }
    }

    fn release(&mut self, id: ChunkId) {
        if self.collecting {
            self.lingering.push(id);
            return;
        }
        let count = self.counts.get_mut(&id).filter(|count| **count > 0);
        let count = count.expect("a hold releases what it has added, once");
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&id);
        }
    }
}

/// Keeps chunks from collections until it is dropped. The caller pins their manifest before that.
pub struct Hold {
    store: ChunkStore,
    ids: HashSet<ChunkId>,
}

impl Hold {
    pub(super) fn new(store: ChunkStore) -> Self {
        Self {
            store,
            ids: HashSet::new(),
        }
    }

    /// Holds one more chunk, whether it is here yet or not. If it is here after this call, it
    /// stays.
    pub fn add(&mut self, id: ChunkId) {
        if self.ids.insert(id) {
            *self.store.holds().counts.entry(id).or_insert(0) += 1;
        }
    }

    pub(super) fn ids(&self) -> &HashSet<ChunkId> {
        &self.ids
    }

    /// How many chunks are held.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Holds also what another hold of the same store holds.
    pub fn merge(&mut self, other: &Hold) {
        for id in &other.ids {
            self.add(*id);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.store.holds();
        for id in self.ids.drain() {
            table.release(id);
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({} chunks)", self.ids.len())
    }
}
