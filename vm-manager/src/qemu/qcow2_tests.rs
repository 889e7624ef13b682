//! Increments and the linear form, without QEMU; the form itself is that of the format's document.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Two second tables, the last one with few entries.
const SIZE: u64 = (ENTRIES + 32) * CLUSTER;

/// The bytes that a patch makes of a file, and what follows from the tables in it.
#[derive(Default)]
struct Read(BTreeMap<u64, Vec<u8>>);

impl Read {
    fn patch(&mut self, patch: &FilePatch, source: &BTreeMap<u64, u8>) {
        for (block, holds) in &patch.blocks {
            let mut bytes = match holds {
                Block::Zeros => vec![],
                Block::At(offset) => vec![source[offset]; CLUSTER as usize],
                Block::Bytes(bytes) => bytes.clone(),
            };
            bytes.resize(CLUSTER as usize, 0);
            self.0.insert(*block, bytes);
        }
    }

    fn cluster(&self, at: u64) -> Vec<u8> {
        let zeros = || vec![0; CLUSTER as usize];
        self.0.get(&at).cloned().unwrap_or_else(zeros)
    }

    /// What a reader of the format sees of a cluster: `None` if it is the image's.
    fn guest(&self, cluster: u64) -> Option<u8> {
        let header = self.cluster(0);
        let l1 = self.cluster(u64_at(&header, 40) / CLUSTER);
        let l2 = u64_at(&l1, (cluster / ENTRIES) as usize * 8) & OFFSET;
        let entry = u64_at(
            &self.cluster(l2 / CLUSTER),
            (cluster % ENTRIES) as usize * 8,
        );
        match entry {
            0 => None,
            ZERO => Some(0),
            _ => {
                let at = (entry & OFFSET) / CLUSTER;
                assert_eq!(self.count(at), 1, "a cluster in use is counted");
                Some(self.cluster(at)[0])
            }
        }
    }

    fn count(&self, cluster: u64) -> u16 {
        let header = self.cluster(0);
        let names = self.cluster(u64_at(&header, 48) / CLUSTER);
        let block = u64_at(&names, (cluster / COUNTS) as usize * 8) / CLUSTER;
        let at = (cluster % COUNTS) as usize * 2;
        u16::from_be_bytes(self.cluster(block)[at..at + 2].try_into().unwrap())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rounds_give_the_disk_that_the_guest_wrote(
        rounds in prop::collection::vec(
            prop::collection::btree_map(
                prop_oneof![0u64..8, ENTRIES - 4..ENTRIES + 32],
                prop::option::of(1u8..255),
                0..12,
            ),
            1..5,
        )
    ) {
        let mut disk = LinearDisk::new(SIZE);
        let (mut read, mut wanted) = (Read::default(), BTreeMap::new());
        for (round, written) in rounds.into_iter().enumerate() {
            let (mut source, mut increment) = (BTreeMap::new(), Vec::new());
            for (cluster, byte) in written {
                let at = (increment.len() as u64 + 9) * CLUSTER;
                source.insert(at, byte.unwrap_or(0));
                increment.push((cluster, byte.map_or(Held::Zeros, |_| Held::At(at))));
                wanted.insert(cluster, byte.unwrap_or(0));
            }
            let patch = disk.take(&increment, round == 0);
            prop_assert!(patch.blocks.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(patch.blocks.last().is_none_or(|b| b.0 * CLUSTER < patch.size));
            read.patch(&patch, &source);
        }
        for cluster in (0..8).chain(ENTRIES - 4..ENTRIES + 32) {
            prop_assert_eq!(read.guest(cluster), wanted.get(&cluster).copied());
        }
        // All that comes before the guest's clusters is in use, and nothing is counted twice.
        for at in 0..disk.data {
            prop_assert_eq!(read.count(at), 1);
        }
        let data = wanted.values().filter(|byte| **byte != 0).count();
        let counts = (0..SIZE / CLUSTER).map(|at| read.count(disk.data + at));
        let counted: u64 = counts.map(u64::from).sum();
        prop_assert_eq!(counted, data as u64);
    }

    #[test]
    fn no_increment_causes_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..4096),
        is_marked in any::<bool>(),
        l1 in 0u64..5000,
    ) {
        if is_marked && bytes.len() >= HEADER {
            let header = LinearDisk::new(SIZE).header();
            bytes[..HEADER].copy_from_slice(&header);
            bytes[40..48].copy_from_slice(&l1.to_be_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("increment");
        std::fs::write(&path, &bytes).unwrap();
        let _ = read_increment(&File::open(&path).unwrap(), SIZE);
    }
}

#[test]
fn an_increment_is_read_as_the_format_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("increment");
    let mut bytes = LinearDisk::new(SIZE).header();
    bytes.resize(4 * CLUSTER as usize, 0);
    let mut put = |at: u64, value: u64| {
        bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    };
    put(40, CLUSTER);
    put(CLUSTER + 8, (2 * CLUSTER) | COPIED);
    put(2 * CLUSTER, (3 * CLUSTER) | COPIED);
    put(2 * CLUSTER + 3 * 8, ZERO);
    std::fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    assert_eq!(
        read_increment(&file, SIZE).unwrap(),
        [(ENTRIES, Held::At(3 * CLUSTER)), (ENTRIES + 3, Held::Zeros)]
    );
    read_increment(&file, SIZE + CLUSTER).unwrap_err();
}

#[test]
fn a_round_without_new_clusters_changes_their_blocks_alone() {
    let mut disk = LinearDisk::new(64 << 30);
    disk.take(&[(5, Held::At(CLUSTER)), (70_000, Held::At(0))], true);
    let again = disk.take(&[(5, Held::At(CLUSTER))], false);
    assert_eq!(again.blocks, [(disk.data + 5, Block::At(CLUSTER))]);
    let more = disk.take(&[(6, Held::At(CLUSTER))], false);
    assert_eq!(more.blocks.len(), 3, "the block, its table and its count");
}
