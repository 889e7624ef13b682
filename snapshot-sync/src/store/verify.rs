//! Whether all that a manifest names is here and whole, and what two manifests differ in.

use super::ChunkStore;
use crate::{Checkpoint, ChunkId, Error, Manifest, ManifestId, tree, tree::Role};
use std::collections::{BTreeMap, HashSet};

/// What a look at every chunk of a manifest found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many chunks are here and whole.
    pub whole: u64,
    /// Their bytes, before compression.
    pub bytes: u64,
    /// How many are not here. What a missing node names is not counted.
    pub missing: u64,
    /// How many had other content than their name says; these are removed, and are missing now.
    pub damaged: u64,
}

impl Verified {
    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        self.missing == 0 && self.damaged == 0
    }
}

/// How two files differ, by blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileDiff {
    /// Blocks with other content, blocks that are zeros in one of them included.
    pub changed_blocks: u64,
    /// The bytes of these blocks.
    pub changed_bytes: u64,
    /// The bytes of the chunks that the second names and the first does not.
    pub new_bytes: u64,
    /// All blocks of the second that are not zeros, in bytes.
    pub bytes: u64,
}

/// How two checkpoints differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointDiff {
    /// Their disks.
    pub disk: FileDiff,
    /// Their RAM, if both have some.
    pub ram: Option<FileDiff>,
}

impl ChunkStore {
    /// Reads every chunk that `id` names. Damaged ones are removed, so that they are fetched again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify(&self, id: ManifestId) -> Result<Verified, Error> {
        let mut found = Verified::default();
        let mut seen = HashSet::new();
        let mut open = vec![(Role::Root, id.0)];
        while let Some((role, chunk)) = open.pop() {
            if !seen.insert((chunk, matches!(role, Role::Data { .. }))) {
                continue;
            }
            let content = match self.get(chunk) {
                Ok(content) => content,
                Err(Error::NotFound(_)) => {
                    found.missing += 1;
                    continue;
                }
                Err(Error::Corrupt { .. }) => {
                    found.damaged += 1;
                    continue;
                }
                Err(other) => return Err(other),
            };
            found.whole += 1;
            found.bytes += content.len() as u64;
            match tree::children(role, &content) {
                Ok(named) => open.extend(named),
                // The name is right, so its maker wrote it so: no copy is better.
                Err(_) => found.damaged += 1,
            }
        }
        Ok(found)
    }

    /// How the checkpoint `newer` differs from `older`. All nodes of both must be here.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` of a node; `Malformed` if one is no checkpoint; [`Error::Io`].
    pub fn diff(&self, older: ManifestId, newer: ManifestId) -> Result<CheckpointDiff, Error> {
        let (older, newer) = (
            Checkpoint::load(self, older)?,
            Checkpoint::load(self, newer)?,
        );
        let of = |a, b| {
            Ok::<_, Error>(diff_of(
                &Manifest::load(self, a)?,
                &Manifest::load(self, b)?,
            ))
        };
        Ok(CheckpointDiff {
            disk: of(older.disk, newer.disk)?,
            ram: older
                .ram
                .zip(newer.ram)
                .map(|(a, b)| of(a, b))
                .transpose()?,
        })
    }
}

/// Blocks are compared by their place; files with blocks of different lengths differ everywhere.
fn diff_of(older: &Manifest, newer: &Manifest) -> FileDiff {
    let is_comparable = older.chunk_bytes == newer.chunk_bytes;
    let blocks = |of: &Manifest| -> BTreeMap<u64, ChunkId> {
        of.chunks.iter().map(|e| (e.block, e.chunk)).collect()
    };
    let (before, after) = (blocks(older), blocks(newer));
    let known: HashSet<ChunkId> = before.values().copied().collect();
    let mut diff = FileDiff {
        bytes: newer.content_bytes(),
        ..FileDiff::default()
    };
    let mut counted = HashSet::new();
    for (block, chunk) in &after {
        let bytes = u64::from(newer.extent_bytes(*block));
        if !is_comparable || before.get(block) != Some(chunk) {
            diff.changed_blocks += 1;
            diff.changed_bytes += bytes;
        }
        if !known.contains(chunk) && counted.insert(*chunk) {
            diff.new_bytes += bytes;
        }
    }
    for block in before.keys().filter(|block| !after.contains_key(block)) {
        diff.changed_blocks += 1;
        diff.changed_bytes += u64::from(older.extent_bytes(*block));
    }
    diff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extent, Kind};
    use std::fs;

    fn manifest(blocks: &[(u64, u8)]) -> Manifest {
        Manifest {
            kind: Kind::Disk,
            size: 10 * 4096 - 96,
            chunk_bytes: 4096,
            chunks: blocks
                .iter()
                .map(|(block, n)| Extent {
                    block: *block,
                    chunk: ChunkId([*n; 32]),
                })
                .collect(),
            meta: BTreeMap::new(),
        }
    }

    #[test]
    fn a_difference_counts_changed_new_and_dropped_blocks() {
        let older = manifest(&[(0, 1), (1, 2), (2, 3)]);
        let newer = manifest(&[(0, 1), (1, 9), (3, 2), (9, 9)]);
        let diff = diff_of(&older, &newer);
        // Block 2 became zeros; block 9 is short; chunk 9 is new once.
        assert_eq!(diff.changed_blocks, 4);
        assert_eq!(diff.changed_bytes, 3 * 4096 + 4000);
        assert_eq!(diff.new_bytes, 4096);
        assert_eq!(diff.bytes, 3 * 4096 + 4000);
        let same = diff_of(&older, &older);
        assert_eq!((same.changed_blocks, same.new_bytes), (0, 0));
    }

    #[test]
    fn verifying_reads_every_chunk_and_counts_damage() {
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path()).unwrap();
        let mut batch = store.batch();
        let chunks: Vec<ChunkId> = (0..3u8)
            .map(|n| batch.put(&vec![n + 1; 4096]).unwrap())
            .collect();
        let extents = chunks.iter().enumerate().map(|(block, chunk)| Extent {
            block: block as u64,
            chunk: *chunk,
        });
        let manifest = Manifest {
            chunks: extents.collect(),
            ..manifest(&[])
        };
        let id = manifest.store(&mut batch).unwrap();
        let _held = batch.finish().unwrap();
        let found = store.verify(id).unwrap();
        assert!(found.is_whole() && found.whole == 5, "{found:?}");
        fs::write(store.path(chunks[1]), b"damaged").unwrap();
        let found = store.verify(id).unwrap();
        assert_eq!((found.damaged, found.missing, found.whole), (1, 0, 4));
        let found = store.verify(id).unwrap();
        assert_eq!((found.damaged, found.missing), (0, 1), "it was removed");
    }
}
