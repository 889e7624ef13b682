//! The nodes of a manifest's tree: what each chunk is, and which chunks it names. A root node has
//! the file's shape, and pages list [`PAGE_BLOCKS`] blocks each by their place within the page, so
//! that two manifests of nearly the same file share nearly all pages (a Merkle 1987 tree of depth
//! two).
//!
//! All nodes are read from peers: parsing is bounded by the size of a chunk, checks every number,
//! and never panics.

use crate::{Checkpoint, ChunkId, Error, chunk::MAX_CHUNK_BYTES, error::malformed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many blocks one page lists.
/// Reason: 256 MiB of a file in blocks of 64 KiB make at most 140 kB of page.
pub const PAGE_BLOCKS: u64 = 4096;

/// How long a block is at least.
/// Reason: a page of memory.
pub const MIN_BLOCK_BYTES: u32 = 4096;

pub(crate) const ROOT_MAGIC: &[u8; 8] = b"p2pvmN1\n";
pub(crate) const PAGE_MAGIC: &[u8; 8] = b"p2pvmP1\n";

/// What kind of file it is.
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

/// The part of a chunk in a manifest's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    /// A checkpoint's or a file's root.
    Root,
    /// A file's root, named by a checkpoint.
    File,
    /// A page of a file that has this many blocks of this many bytes from the page's first on.
    Page { blocks: u64, block_bytes: u32 },
    /// Content, which names no chunks.
    Data { bytes: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Root {
    File(FileRoot),
    Checkpoint(Checkpoint),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileRoot {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) chunk_bytes: u32,
    /// Pages that are not empty, in order.
    pub(crate) pages: Vec<(u32, ChunkId)>,
    pub(crate) meta: BTreeMap<String, String>,
}

/// The blocks of a page that are not all zeros, in order, counted from the page's first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Page(pub(crate) Vec<(u16, ChunkId)>);

/// The chunks that a chunk of this role names.
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
            Root::Checkpoint(_) => Err(malformed("manifest", "a checkpoint within a checkpoint")),
        },
    }
}

/// Reads a chunk as each part of a tree that a member may claim it to be, for the fuzzer.
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

pub(crate) fn page_role(root: &FileRoot, number: u32) -> Role {
    let blocks = root.size.div_ceil(u64::from(root.chunk_bytes));
    let left = blocks
        .saturating_sub(u64::from(number) * PAGE_BLOCKS)
        .min(PAGE_BLOCKS);
    Role::Page {
        blocks: left,
        block_bytes: root.chunk_bytes,
    }
}

pub(crate) fn encode(magic: &[u8; 8], value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, magic.to_vec())
        .expect("plain data always encodes into a growing buffer")
}

pub(crate) fn check_shape(size: u64, chunk_bytes: u32) -> Result<(), Error> {
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

pub(crate) fn parse_root(content: &[u8]) -> Result<Root, Error> {
    let body = content
        .strip_prefix(ROOT_MAGIC)
        .ok_or_else(|| malformed("manifest", "its first bytes are wrong"))?;
    let root = postcard::from_bytes(body).map_err(|e| malformed("manifest", e))?;
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
                format!("its pages are out of order, or not below {pages}"),
            ));
        }
    }
    Ok(root)
}

pub(crate) fn parse_page(content: &[u8], blocks: u64) -> Result<Page, Error> {
    let body = content
        .strip_prefix(PAGE_MAGIC)
        .ok_or_else(|| malformed("manifest page", "its first bytes are wrong"))?;
    let page: Page = postcard::from_bytes(body).map_err(|e| malformed("manifest page", e))?;
    let rising = page.0.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !rising
        || page
            .0
            .last()
            .is_some_and(|(within, _)| u64::from(*within) >= blocks)
    {
        return Err(malformed(
            "manifest page",
            format!("its blocks are out of order, or not below {blocks}"),
        ));
    }
    Ok(page)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[path = "tree_golden_tests.rs"]
mod golden_tests;
