//! A manifest: which chunks make up a file, blocks of zeros left out. It is itself chunks: the
//! nodes of a tree ([`crate::tree`]), written to and read from a store here.

use crate::{
    Checkpoint, ChunkId, ChunkStore, Error, ManifestId,
    chunk::MAX_CHUNK_BYTES,
    error::malformed,
    seal,
    store::Batch,
    tree::{
        self, FileRoot, PAGE_BLOCKS, PAGE_MAGIC, Page, ROOT_MAGIC, Role, Root, encode, page_role,
        parse_page, parse_root,
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[cfg(fuzzing)]
pub use crate::tree::parse;
pub use crate::tree::{Kind, MIN_BLOCK_BYTES};

/// One block of a file that is not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The block's number: it begins at `block * chunk_bytes`.
    pub block: u64,
    /// The chunk with its content: `chunk_bytes` long, or less at the end of the file.
    pub chunk: ChunkId,
}

/// A file as chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is.
    pub kind: Kind,
    /// Its length, bytes.
    pub size: u64,
    /// The length of a block: a power of two from [`MIN_BLOCK_BYTES`] to [`MAX_CHUNK_BYTES`].
    pub chunk_bytes: u32,
    /// Its blocks that are not all zeros, in order.
    pub chunks: Vec<Extent>,
    /// The caller's own notes.
    pub meta: BTreeMap<String, String>,
}

impl Manifest {
    /// How many bytes of content are in chunks: the size without the zero blocks.
    pub fn content_bytes(&self) -> u64 {
        self.chunks
            .iter()
            .map(|e| u64::from(self.extent_bytes(e.block)))
            .sum()
    }

    /// The length of a block: `chunk_bytes`, less for the last.
    pub fn extent_bytes(&self, block: u64) -> u32 {
        let begin = block.saturating_mul(u64::from(self.chunk_bytes));
        self.size
            .saturating_sub(begin)
            .min(u64::from(self.chunk_bytes)) as u32
    }

    /// Whether its chunks are sealed.
    pub fn is_sealed(&self) -> bool {
        self.meta.contains_key(seal::NOTE)
    }

    /// Checks that length and block length are ones that a manifest can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        tree::check_shape(self.size, self.chunk_bytes)
    }

    /// Stores the manifest in `batch`; durable once the batch is committed.
    ///
    /// # Errors
    /// `TooLarge` beyond some TiB or 900 kB of `meta`, `Malformed` if blocks do not rise or lie
    /// outside the file.
    pub fn store(&self, batch: &mut Batch) -> Result<ManifestId, Error> {
        self.check()?;
        let blocks = self.size.div_ceil(u64::from(self.chunk_bytes));
        let mut pages: Vec<(u32, Page)> = Vec::new();
        let mut least = 0;
        for extent in &self.chunks {
            if extent.block < least || extent.block >= blocks {
                return Err(malformed(
                    "manifest",
                    format!("block {} of {blocks} out of order", extent.block),
                ));
            }
            least = extent.block + 1;
            let (page, within) = (
                (extent.block / PAGE_BLOCKS) as u32,
                (extent.block % PAGE_BLOCKS) as u16,
            );
            match pages.last_mut() {
                Some((last, entries)) if *last == page => entries.0.push((within, extent.chunk)),
                _ => pages.push((page, Page(vec![(within, extent.chunk)]))),
            }
        }
        let mut ids = Vec::with_capacity(pages.len());
        for (number, page) in &pages {
            ids.push((*number, batch.put(&encode(PAGE_MAGIC, page))?));
        }
        let root = FileRoot {
            kind: self.kind,
            size: self.size,
            chunk_bytes: self.chunk_bytes,
            pages: ids,
            meta: self.meta.clone(),
        };
        store_root(&Root::File(root), batch)
    }

    /// Reads a manifest that is in `store`.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` of a node, `Malformed` if `id` names something else.
    pub fn load(store: &ChunkStore, id: ManifestId) -> Result<Self, Error> {
        let Root::File(root) = parse_root(&store.get(id.0)?)? else {
            return Err(malformed("manifest", "it is a checkpoint"));
        };
        let mut chunks = Vec::new();
        for (number, page) in &root.pages {
            let first = u64::from(*number) * PAGE_BLOCKS;
            let Role::Page { blocks, .. } = page_role(&root, *number) else {
                continue;
            };
            let entries = parse_page(&store.get(*page)?, blocks)?;
            chunks.extend(entries.0.into_iter().map(|(within, chunk)| Extent {
                block: first + u64::from(within),
                chunk,
            }));
        }
        Ok(Self {
            kind: root.kind,
            size: root.size,
            chunk_bytes: root.chunk_bytes,
            chunks,
            meta: root.meta,
        })
    }
}

impl Checkpoint {
    /// Stores the checkpoint's own node in `store`, durable on return. The caller has stored the
    /// files it names.
    ///
    /// # Errors
    /// `TooLarge` for a spec beyond 900 kB; [`Error::Io`].
    pub fn store(&self, store: &ChunkStore) -> Result<(ManifestId, crate::Hold), Error> {
        let mut batch = store.batch();
        let id = store_root(&Root::Checkpoint(self.clone()), &mut batch)?;
        Ok((id, batch.finish()?))
    }

    /// Reads a checkpoint that is in `store`.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` of its node, `Malformed` if `id` names something else.
    pub fn load(store: &ChunkStore, id: ManifestId) -> Result<Self, Error> {
        match parse_root(&store.get(id.0)?)? {
            Root::Checkpoint(checkpoint) => Ok(checkpoint),
            Root::File(_) => Err(malformed("checkpoint", "it is a file's manifest")),
        }
    }
}

fn store_root(root: &Root, batch: &mut Batch) -> Result<ManifestId, Error> {
    let bytes = encode(ROOT_MAGIC, root);
    if bytes.len() > MAX_CHUNK_BYTES {
        return Err(Error::TooLarge {
            what: "a manifest's root",
            bytes: bytes.len(),
        });
    }
    batch.put(&bytes).map(ManifestId)
}
