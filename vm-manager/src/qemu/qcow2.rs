//! The qcow2 format, as far as replicas of a running disk need it (QEMU, docs/interop/qcow2.rst):
//! what an increment holds, and the whole disk in a *linear* form.
//!
//! QEMU copies the clusters that changed into a qcow2 of its own; where they lie in it means
//! nothing for the next one. The linear form has a fixed place for each cluster of the guest's
//! disk, so that an unchanged cluster stays an unchanged block of the file, and a round changes
//! only the blocks of what was written and of the tables that name it. The file is sparse. It has
//! no backing file until it is restored.
//!
//! An increment is QEMU's work, and a guest that broke out of QEMU may have written it: it names no
//! other file, and nothing in it causes more than wrong content of that guest's own disk.

use p2pvm_snapshot_sync::{Block, FilePatch, file::CHUNK_BYTES};
use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt};

/// How long a cluster is: as long as a chunk.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
const _: () = assert!(CLUSTER == CHUNK_BYTES as u64);

const MAGIC: u32 = 0x5146_49fb;
/// How many bytes of the header are read and written.
const HEADER: usize = 104;
/// The largest disk that is replicated. Reason: bounds the memory that a broken header asks for.
const MAX_SIZE: u64 = 16 << 40;
/// How many entries a table of one cluster has.
const ENTRIES: u64 = CLUSTER / 8;
/// How many reference counts of two bytes a cluster has.
const COUNTS: u64 = CLUSTER / 2;
/// Where a table's entry has an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is referenced once.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;

/// What an increment holds of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It reads as zeros.
    Zeros,
    /// Its content is at this offset of the file.
    At(u64),
}

/// The clusters of the guest's disk that an increment holds, in rising order. `size` is that of the
/// disk, bytes.
///
/// # Errors
/// `InvalidData` if it is no plain qcow2 of that size; that of reading it.
pub(super) fn read_increment(file: &File, size: u64) -> io::Result<Vec<(u64, Held)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let l1 = l1_place(&header, size)?;
    let length = file.metadata()?.len();
    let mut held = Vec::new();
    for (table, entry) in entries(file, length, l1)?.into_iter().enumerate() {
        let offset = entry & OFFSET;
        if offset == 0 {
            continue;
        }
        let first = table as u64 * ENTRIES;
        let within = ENTRIES.min(size.div_ceil(CLUSTER).saturating_sub(first));
        let clusters = entries(file, length, (offset, within))?;
        for (at, entry) in (first..).zip(clusters) {
            match entry {
                0 => {}
                _ if entry & COMPRESSED != 0 => return Err(broken("has compressed clusters")),
                _ if entry & ZERO != 0 => held.push((at, Held::Zeros)),
                _ if entry & OFFSET == 0 => {}
                _ => held.push((at, Held::At(entry & OFFSET))),
            }
        }
    }
    Ok(held)
}

/// Where the header has the first table, and how many entries of it count.
fn l1_place(header: &[u8; HEADER], size: u64) -> io::Result<(u64, u64)> {
    let (word, long) = (|at| u64::from(u32_at(header, at)), |at| u64_at(header, at));
    if (u32_at(header, 0), word(4)) != (MAGIC, 3) {
        return Err(broken("is no qcow2 of version 3"));
    }
    // No other cluster length, encryption, external data file or extended tables.
    let is_plain = word(20) == u64::from(CLUSTER_BITS) && word(32) == 0 && long(72) == 0;
    if !is_plain || long(24) != size || size > MAX_SIZE {
        return Err(broken("is of another kind or size than it was made"));
    }
    let needed = size.div_ceil(CLUSTER * ENTRIES);
    match word(36) >= needed {
        true => Ok((long(40), needed)),
        false => Err(broken("has too short a table")),
    }
}

/// The `count` entries of the table at `offset`.
fn entries(file: &File, length: u64, (offset, count): (u64, u64)) -> io::Result<Vec<u64>> {
    let end = offset.checked_add(count * 8);
    if end.is_none_or(|end| end > length) {
        return Err(broken("has a table beyond its end"));
    }
    let mut bytes = vec![0; count as usize * 8];
    file.read_exact_at(&mut bytes, offset)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

fn broken(what: &str) -> io::Error {
    let text = format!("the copy of what the guest changed {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What the linear form has of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// Nothing: it is the image's.
    Image,
    /// That it reads as zeros.
    Zeros,
    /// Its content.
    Data,
}

/// A disk in the linear form: which of its clusters are in the file. Takes one byte a cluster.
///
/// The file's clusters are, in this order: the header, the table of reference counts, the counts,
/// the first table, the second tables, all clusters of the disk.
#[derive(Debug)]
pub(super) struct LinearDisk {
    size: u64,
    kept: Vec<Kept>,
    /// Where each part begins, in clusters.
    counts: u64,
    l1: u64,
    l2: u64,
    data: u64,
}

impl LinearDisk {
    /// One of which nothing is in the file.
    pub(super) fn new(size: u64) -> Self {
        assert!(size <= MAX_SIZE, "a larger disk is refused beforehand");
        let clusters = size.div_ceil(CLUSTER);
        let l2_tables = clusters.div_ceil(ENTRIES);
        let l1_clusters = l2_tables.div_ceil(ENTRIES);
        let rest = 1 + l1_clusters + l2_tables + clusters;
        // The counts count themselves too.
        let (mut blocks, mut table) = (0, 0);
        loop {
            let needed = (rest + blocks + table).div_ceil(COUNTS);
            let named = needed.div_ceil(ENTRIES);
            if (needed, named) == (blocks, table) {
                break;
            }
            (blocks, table) = (needed, named);
        }
        let (counts, l1) = (1 + table, 1 + table + blocks);
        let l2 = l1 + l1_clusters;
        Self {
            size,
            kept: vec![Kept::Image; clusters as usize],
            counts,
            l1,
            l2,
            data: l2 + l2_tables,
        }
    }

    /// Whether a disk of that size can be replicated.
    pub(super) fn is_possible(size: u64) -> bool {
        size > 0 && size <= MAX_SIZE && size.is_multiple_of(CLUSTER)
    }

    /// The size of the guest's disk, bytes.
    pub(super) fn disk_size(&self) -> u64 {
        self.size
    }

    /// The file's length, bytes.
    fn file_size(&self) -> u64 {
        (self.data + self.kept.len() as u64) * CLUSTER
    }

    /// Takes what an increment holds, and gives what it changes in the file; all of the file that
    /// is not zeros if it is the `first`.
    pub(super) fn take(&mut self, increment: &[(u64, Held)], first: bool) -> FilePatch {
        let (mut tables, mut counts) = (BTreeSet::new(), BTreeSet::new());
        let mut data = Vec::with_capacity(increment.len());
        for (cluster, held) in increment {
            let Some(kept) = self.kept.get_mut(*cluster as usize) else {
                continue;
            };
            let (now, block) = match held {
                Held::Zeros => (Kept::Zeros, Block::Zeros),
                Held::At(offset) => (Kept::Data, Block::At(*offset)),
            };
            if *kept != now {
                tables.insert(cluster / ENTRIES);
                counts.insert((self.data + cluster) / COUNTS);
            }
            *kept = now;
            data.push((self.data + cluster, block));
        }
        let mut blocks = Vec::new();
        if first {
            blocks.push((0, Block::Bytes(self.header())));
            let names = table(self.counts, self.l1 - self.counts, 0);
            push_clusters(&mut blocks, 1, &names);
            counts.extend(0..self.data.div_ceil(COUNTS));
        }
        let count_blocks = counts.iter().map(|at| {
            let bytes = self.count_block(*at);
            (self.counts + at, Block::Bytes(bytes))
        });
        blocks.extend(count_blocks);
        if first {
            push_clusters(
                &mut blocks,
                self.l1,
                &table(self.l2, self.data - self.l2, COPIED),
            );
        }
        let l2 = tables.iter().map(|at| {
            let bytes = self.l2_table(*at);
            (self.l2 + at, Block::Bytes(bytes))
        });
        blocks.extend(l2);
        blocks.append(&mut data);
        FilePatch {
            size: self.file_size(),
            blocks,
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let long = |value: u64| value.to_be_bytes();
        let word = |value: u64| (value as u32).to_be_bytes();
        put(0, &word(MAGIC.into()));
        put(4, &word(3));
        put(20, &word(CLUSTER_BITS.into()));
        put(24, &long(self.size));
        put(36, &word(self.data - self.l2));
        put(40, &long(self.l1 * CLUSTER));
        put(48, &long(CLUSTER));
        put(56, &word(self.counts - 1));
        // Counts of two bytes, and this header's length.
        put(96, &word(4));
        put(100, &word(HEADER as u64));
        bytes
    }

    /// The reference counts of as many clusters of the file as a block has.
    fn count_block(&self, at: u64) -> Vec<u8> {
        let count = |cluster: u64| match cluster.checked_sub(self.data) {
            None => 1,
            Some(guest) => u16::from(self.kept.get(guest as usize) == Some(&Kept::Data)),
        };
        (at * COUNTS..(at + 1) * COUNTS)
            .flat_map(|cluster| count(cluster).to_be_bytes())
            .collect()
    }

    fn l2_table(&self, at: u64) -> Vec<u8> {
        let entry = |cluster: u64| match self.kept.get(cluster as usize) {
            None | Some(Kept::Image) => 0,
            Some(Kept::Zeros) => ZERO,
            Some(Kept::Data) => ((self.data + cluster) * CLUSTER) | COPIED,
        };
        (at * ENTRIES..(at + 1) * ENTRIES)
            .flat_map(|cluster| entry(cluster).to_be_bytes())
            .collect()
    }
}

/// A table that names `count` clusters from `first` on.
fn table(first: u64, count: u64, flags: u64) -> Vec<u8> {
    (first..first + count)
        .flat_map(|cluster| ((cluster * CLUSTER) | flags).to_be_bytes())
        .collect()
}

/// Appends bytes as blocks from `first` on.
fn push_clusters(blocks: &mut Vec<(u64, Block)>, first: u64, bytes: &[u8]) {
    let parts = bytes.chunks(CLUSTER as usize);
    blocks.extend((first..).zip(parts.map(|part| Block::Bytes(part.to_vec()))));
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
