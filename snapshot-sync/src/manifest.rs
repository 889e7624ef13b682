//! A manifest: which chunks make up a file, blocks of zeros left out. It is itself chunks: a root
//! node with the file's shape, and pages that each list [`PAGE_BLOCKS`] blocks by their place
//! within the page, so that two manifests of nearly the same file share nearly all pages (a Merkle
//! 1987 tree of depth two).
//!
//! All nodes are read from peers: parsing is bounded by the size of a chunk, checks every number,
//! and never panics.

use crate::{
    Checkpoint, ChunkId, ChunkStore, Error,
    chunk::{MAX_CHUNK_BYTES, ParseChunkIdError},
    store::Batch,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Blocks that one page lists: 256 MiB of a file in blocks of 64 KiB, at most 140 kB of page.
pub const PAGE_BLOCKS: u64 = 4096;

/// The smallest block: a page of memory.
pub const MIN_BLOCK_BYTES: u32 = 4096;

const ROOT_MAGIC: &[u8; 8] = b"p2pvmN1\n";
const PAGE_MAGIC: &[u8; 8] = b"p2pvmP1\n";

/// A manifest's name: the chunk that holds its root node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestId(pub ChunkId);

impl ManifestId {
    /// The first ten characters of the text form.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl FromStr for ManifestId {
    type Err = ParseChunkIdError;
    fn from_str(text: &str) -> Result<Self, ParseChunkIdError> {
        text.parse().map(Self)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A base image, shared by VMs.
    Image,
    /// A VM's own disk over its image.
    Disk,
    /// RAM and device state.
    Ram,
    /// Anything else.
    Other,
}

/// One block of a file that is not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Which block: it begins at `block * chunk_bytes`.
    pub block: u64,
    /// The chunk with its content: `chunk_bytes` long, less only at the end of the file.
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
    /// Its blocks that are not all zeros, by rising number.
    pub chunks: Vec<Extent>,
    /// What the caller wants to remember of it.
    pub meta: BTreeMap<String, String>,
}

/// What part a chunk plays under a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// A checkpoint's or a file's root.
    Root,
    /// A file's root, named by a checkpoint.
    File,
    /// A page of a file with this many blocks of this many bytes left from the page's first on.
    Page { blocks: u64, block_bytes: u32 },
    /// Content: nothing hangs below it.
    Data { bytes: u32 },
}

#[derive(Serialize, Deserialize)]
enum Root {
    File(FileRoot),
    Checkpoint(Checkpoint),
}

#[derive(Serialize, Deserialize)]
struct FileRoot {
    kind: Kind,
    size: u64,
    chunk_bytes: u32,
    /// Pages that are not empty, by rising number.
    pages: Vec<(u32, ChunkId)>,
    meta: BTreeMap<String, String>,
}

/// The blocks of a page that are not all zeros, by rising number counted from the page's first.
#[derive(Serialize, Deserialize)]
struct Page(Vec<(u16, ChunkId)>);

impl Manifest {
    /// Bytes of content in chunks: the size without the zero blocks.
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

    /// Whether length and block length are ones that a manifest can have.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_shape(self.size, self.chunk_bytes)
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
            return Err(malformed("manifest", "it is a checkpoint".to_owned()));
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

/// Reads every chunk that the file's manifest names, so that the store removes those that are
/// damaged; how many are not here then.
///
/// # Errors
/// `NotFound` or `Corrupt` of a node of the manifest itself (which is removed too), or what the
/// file system says.
pub fn weed(store: &ChunkStore, id: ManifestId) -> Result<usize, Error> {
    let mut missing = 0;
    for extent in Manifest::load(store, id)?.chunks {
        match store.get(extent.chunk) {
            Ok(_) => {}
            Err(Error::NotFound(_) | Error::Corrupt { .. }) => missing += 1,
            Err(other) => return Err(other),
        }
    }
    Ok(missing)
}

impl Checkpoint {
    /// Stores the checkpoint's own node in `store`, durable on return. The files it names are
    /// stored before.
    ///
    /// # Errors
    /// `TooLarge` for a spec beyond 900 kB, or what the file system says.
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
            Root::File(_) => Err(malformed(
                "checkpoint",
                "it is a file's manifest".to_owned(),
            )),
        }
    }
}

/// What hangs directly below a chunk of this role: nothing below content.
pub(crate) fn children(role: Role, content: &[u8]) -> Result<Vec<(Role, ChunkId)>, Error> {
    match role {
        Role::Data { .. } => Ok(Vec::new()),
        Role::Page {
            blocks,
            block_bytes,
        } => {
            let page = parse_page(content, blocks)?;
            Ok(page
                .0
                .into_iter()
                .map(|(_, chunk)| (Role::Data { bytes: block_bytes }, chunk))
                .collect())
        }
        Role::Root | Role::File => match parse_root(content)? {
            Root::File(root) => Ok(root
                .pages
                .iter()
                .map(|(number, page)| (page_role(&root, *number), *page))
                .collect()),
            Root::Checkpoint(checkpoint) if role == Role::Root => {
                Ok(checkpoint.files().map(|id| (Role::File, id.0)).collect())
            }
            Root::Checkpoint(_) => Err(malformed(
                "manifest",
                "a checkpoint within a checkpoint".to_owned(),
            )),
        },
    }
}

/// Reads a chunk of a manifest's tree as each of the parts that a member may claim it to be, for
/// the fuzzer.
#[cfg(fuzzing)]
pub fn parse(content: &[u8]) {
    for role in [
        Role::Root,
        Role::File,
        Role::Page {
            blocks: PAGE_BLOCKS,
            block_bytes: MIN_BLOCK_BYTES,
        },
    ] {
        let _ = children(role, content);
    }
}

fn page_role(root: &FileRoot, number: u32) -> Role {
    let blocks = root.size.div_ceil(u64::from(root.chunk_bytes));
    let left = blocks
        .saturating_sub(u64::from(number) * PAGE_BLOCKS)
        .min(PAGE_BLOCKS);
    Role::Page {
        blocks: left,
        block_bytes: root.chunk_bytes,
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

fn encode(magic: &[u8; 8], value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, magic.to_vec())
        .expect("plain data always encodes into a growing buffer")
}

fn malformed(what: &'static str, detail: String) -> Error {
    Error::Malformed { what, detail }
}

fn check_shape(size: u64, chunk_bytes: u32) -> Result<(), Error> {
    if !chunk_bytes.is_power_of_two()
        || !(MIN_BLOCK_BYTES..=MAX_CHUNK_BYTES as u32).contains(&chunk_bytes)
    {
        return Err(malformed(
            "manifest",
            format!("blocks of {chunk_bytes} bytes"),
        ));
    }
    if size.div_ceil(u64::from(chunk_bytes)) > PAGE_BLOCKS * u64::from(u32::MAX) {
        return Err(malformed("manifest", format!("a file of {size} bytes")));
    }
    Ok(())
}

fn parse_root(content: &[u8]) -> Result<Root, Error> {
    let body = content
        .strip_prefix(ROOT_MAGIC)
        .ok_or_else(|| malformed("manifest", "it does not begin like one".to_owned()))?;
    let root = postcard::from_bytes(body).map_err(|e| malformed("manifest", e.to_string()))?;
    if let Root::File(file) = &root {
        check_shape(file.size, file.chunk_bytes)?;
        let pages = file
            .size
            .div_ceil(u64::from(file.chunk_bytes))
            .div_ceil(PAGE_BLOCKS);
        let rising = file.pages.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !rising
            || file
                .pages
                .last()
                .is_some_and(|(number, _)| u64::from(*number) >= pages)
        {
            return Err(malformed(
                "manifest",
                format!("its pages do not rise within {pages}"),
            ));
        }
    }
    Ok(root)
}

fn parse_page(content: &[u8], blocks: u64) -> Result<Page, Error> {
    let body = content
        .strip_prefix(PAGE_MAGIC)
        .ok_or_else(|| malformed("manifest page", "it does not begin like one".to_owned()))?;
    let page: Page =
        postcard::from_bytes(body).map_err(|e| malformed("manifest page", e.to_string()))?;
    let rising = page.0.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !rising
        || page
            .0
            .last()
            .is_some_and(|(within, _)| u64::from(*within) >= blocks)
    {
        return Err(malformed(
            "manifest page",
            format!("its blocks do not rise within {blocks}"),
        ));
    }
    Ok(page)
}

#[cfg(test)]
mod tests;
