//! What the store promises: whole chunks or none through a crash at any step, and a collection that
//! takes nothing in use.

use super::*;
use crate::{Checkpoint, Extent, Kind, Manifest, ManifestId};
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut content);
    content
}

fn fresh() -> (tempfile::TempDir, ChunkStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(dir.path()).unwrap();
    (dir, store)
}

/// A manifest of one block for each seed.
fn manifest_of(store: &ChunkStore, seeds: &[u64]) -> (ManifestId, Hold) {
    let mut batch = store.batch();
    let chunks = seeds.iter().enumerate().map(|(i, seed)| Extent {
        block: i as u64,
        chunk: batch.put(&content(*seed, 4096)).unwrap(),
    });
    let (chunks, size) = (chunks.collect(), seeds.len() as u64 * 4096);
    let id = Manifest {
        kind: Kind::Disk,
        size,
        chunk_bytes: 4096,
        chunks,
        meta: BTreeMap::new(),
    }
    .store(&mut batch)
    .unwrap();
    (id, batch.finish().unwrap())
}

#[test]
fn chunks_are_there_after_reopening() {
    let (dir, store) = fresh();
    let ids: Vec<_> = (0..20)
        .map(|seed| store.put(&content(seed, 5000)).unwrap())
        .collect();
    drop(store);
    let store = ChunkStore::open(dir.path()).unwrap();
    for (seed, id) in ids.iter().enumerate() {
        assert_eq!(store.get(*id).unwrap(), content(seed as u64, 5000));
    }
    assert_eq!(store.list().unwrap().len(), 20);
}

#[test]
fn a_damaged_chunk_is_named_and_makes_room_for_a_good_one() {
    let (_dir, store) = fresh();
    let id = store.put(&content(1, 5000)).unwrap();
    let mut bytes = fs::read(store.path(id)).unwrap();
    bytes[100] ^= 1;
    fs::write(store.path(id), &bytes).unwrap();
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    assert!(matches!(store.get(id), Err(Error::NotFound(_))));
    assert_eq!(store.put(&content(1, 5000)).unwrap(), id);
    assert_eq!(store.get(id).unwrap(), content(1, 5000));
}

#[test]
fn a_chunk_too_large_is_refused() {
    let (_dir, store) = fresh();
    assert!(matches!(
        store.put(&vec![1; chunk::MAX_CHUNK_BYTES + 1]),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn a_crash_loses_no_chunk_and_leaves_no_half_one() {
    for batch_size in [1, 3, 40] {
        for (step, skip) in [
            (CommitStep::Written, 0),
            (CommitStep::Flushed, 0),
            (CommitStep::Renamed, 0),
            (CommitStep::Renamed, batch_size / 2),
            (CommitStep::Durable, 0),
        ] {
            let (dir, store) = fresh();
            let acknowledged: Vec<_> = (0..10)
                .map(|seed| store.put(&content(seed, 3000)).unwrap())
                .collect();
            store.crash_at(step, skip);
            let mut batch = store.batch();
            for seed in 100..100 + batch_size as u64 {
                batch.put(&content(seed, 3000)).unwrap();
            }
            assert!(batch.commit().is_err(), "{step:?} was not reached");
            drop((batch, store));

            let store = ChunkStore::open(dir.path()).unwrap();
            acknowledged
                .iter()
                .for_each(|id| drop(store.get(*id).unwrap()));
            store
                .list()
                .unwrap()
                .iter()
                .for_each(|id| drop(store.get(*id).unwrap()));
            assert_eq!(
                fs::read_dir(dir.path().join("tmp")).unwrap().count(),
                0,
                "{step:?} left a partial file"
            );
            // The same work done again succeeds.
            let mut batch = store.batch();
            for seed in 100..100 + batch_size as u64 {
                batch.put(&content(seed, 3000)).unwrap();
            }
            batch.commit().unwrap();
            assert_eq!(store.list().unwrap().len(), 10 + batch_size);
        }
    }
}

#[test]
fn a_failed_write_leaves_the_store_usable() {
    let (dir, store) = fresh();
    fs::remove_dir_all(dir.path().join("tmp")).unwrap();
    assert!(store.put(b"nowhere to go").is_err());
    fs::create_dir(dir.path().join("tmp")).unwrap();
    assert!(store.put(b"nowhere to go").is_ok());
}

#[test]
fn a_collection_keeps_what_is_pinned_and_takes_the_rest() {
    let (_dir, store) = fresh();
    let (kept, hold) = manifest_of(&store, &[1, 2, 3]);
    let (lost, other) = manifest_of(&store, &[3, 4, 5]);
    store.pin(kept, "web@one").unwrap();
    drop((hold, other));
    let collected = store.gc(Duration::ZERO).unwrap();
    assert_eq!((collected.kept, collected.removed), (5, 4));
    assert!(store.is_complete(kept) && !store.has(lost.0));
}

#[test]
fn a_pin_is_there_after_reopening_and_gone_after_unpinning() {
    let (dir, store) = fresh();
    let (id, hold) = manifest_of(&store, &[1, 2]);
    store.pin(id, "a").unwrap();
    store.pin(id, "a").unwrap();
    store.pin(id, "b").unwrap();
    drop((hold, store));
    let store = ChunkStore::open(dir.path()).unwrap();
    assert_eq!(
        store.pins().unwrap(),
        vec![Pin::own(id, "a"), Pin::own(id, "b")]
    );
    assert!(store.unpin(id, "a").unwrap() && !store.unpin(id, "a").unwrap());
    assert_eq!(
        store.gc(Duration::ZERO).unwrap().removed,
        0,
        "the other pin still keeps it"
    );
    store.unpin(id, "b").unwrap();
    assert_eq!(store.gc(Duration::ZERO).unwrap().kept, 0);
}

#[test]
fn a_pin_is_refused_while_something_is_missing() {
    let (_dir, store) = fresh();
    let (id, _hold) = manifest_of(&store, &[1, 2, 3]);
    fs::remove_file(store.path(ChunkId::of(&content(2, 4096)))).unwrap();
    assert!(matches!(
        store.pin(id, "x"),
        Err(Error::Incomplete { missing: 1, .. })
    ));
    assert!(store.pins().unwrap().is_empty());
}

#[test]
fn a_collection_takes_nothing_that_is_held_or_young() {
    let (_dir, store) = fresh();
    let (id, hold) = manifest_of(&store, &[1, 2]);
    assert_eq!(store.gc(Duration::ZERO).unwrap().removed, 0);
    drop(hold);
    assert_eq!(store.gc(Duration::from_secs(3600)).unwrap().removed, 0);
    assert!(store.is_complete(id));
    assert_eq!(store.gc(Duration::ZERO).unwrap().removed, 4);
}

#[test]
fn a_hold_dropped_during_a_collection_lasts_until_its_end() {
    let (_dir, store) = fresh();
    let id = store.put(b"pinned after the marking").unwrap();
    let mut hold = store.hold();
    hold.add(id);
    store.holds().begin_collection();
    drop(hold);
    assert!(store.holds().holds(&id));
    store.holds().end_collection();
    assert!(!store.holds().holds(&id));
}

/// Damages the chunk's file.
fn damage(store: &ChunkStore, id: ChunkId) {
    fs::write(store.path(id), b"damaged").unwrap();
}

#[test]
fn one_damaged_manifest_does_not_end_collections() {
    let (_dir, store) = fresh();
    let (damaged, a) = manifest_of(&store, &[1, 2]);
    let (whole, b) = manifest_of(&store, &[2, 3]);
    let (unused, c) = manifest_of(&store, &[4, 5]);
    store.pin(damaged, "x").unwrap();
    store.pin(whole, "y").unwrap();
    drop((a, b, c));
    damage(&store, damaged.0);
    let collected = store.gc(Duration::ZERO).unwrap();
    assert_eq!((collected.removed, collected.unswept), (4, false));
    assert_eq!(collected.damaged, [Pin::own(damaged, "x")]);
    assert!(!store.has(unused.0) && store.is_complete(whole));
    for seed in [1, 2] {
        assert!(
            store.has(ChunkId::of(&content(seed, 4096))),
            "what the damaged manifest names stays"
        );
    }
    let again = store.gc(Duration::ZERO).unwrap();
    assert_eq!((again.removed, again.damaged.len()), (0, 1));
    store.unpin(damaged, "x").unwrap();
    let unpinned = store.gc(Duration::ZERO).unwrap();
    assert_eq!((unpinned.removed, unpinned.damaged.len()), (2, 0));
}

#[test]
fn a_collection_takes_nothing_if_a_damaged_manifests_names_are_unknown() {
    let (_dir, store) = fresh();
    let (id, hold) = manifest_of(&store, &[1, 2]);
    store.pin(id, "x").unwrap();
    drop(hold);
    damage(&store, id.0);
    for list in fs::read_dir(store.names_dir()).unwrap() {
        fs::write(list.unwrap().path(), b"damaged too").unwrap();
    }
    let collected = store.gc(Duration::ZERO).unwrap();
    assert_eq!((collected.removed, collected.unswept), (0, true));
    assert_eq!(collected.damaged, [Pin::own(id, "x")]);
    assert!(store.has(ChunkId::of(&content(1, 4096))));
}

#[test]
fn pins_of_the_first_release_get_their_names_noted() {
    let (_dir, store) = fresh();
    let (id, hold) = manifest_of(&store, &[1, 2]);
    store.pin(id, "x").unwrap();
    drop(hold);
    fs::remove_dir_all(store.names_dir()).unwrap();
    fs::create_dir(store.names_dir()).unwrap();
    assert!(store.gc(Duration::ZERO).unwrap().damaged.is_empty());
    damage(&store, id.0);
    assert!(!store.gc(Duration::ZERO).unwrap().unswept);
}

#[test]
fn scrubbing_finds_a_damaged_chunk_and_the_pins_that_lack_it() {
    let (_dir, store) = fresh();
    let (id, _hold) = manifest_of(&store, &(0..20).collect::<Vec<_>>());
    store.pin(id, "x").unwrap();
    assert!(store.damaged_pins().unwrap().is_empty());
    damage(&store, ChunkId::of(&content(7, 4096)));
    let (mut after, mut damaged, mut rounds) = (None, 0, 0);
    loop {
        let portion = Portion {
            chunks: 4,
            bytes: u64::MAX,
        };
        let report = store.scrub(after, portion).unwrap();
        (after, damaged, rounds) = (report.last, damaged + report.damaged, rounds + 1);
        if after.is_none() {
            break;
        }
    }
    assert_eq!((damaged, rounds), (1, 6), "22 chunks, four at a time");
    assert_eq!(store.damaged_pins().unwrap(), [Pin::own(id, "x")]);
}

#[test]
fn each_members_pins_are_its_own() {
    let (dir, store) = fresh();
    let (id, hold) = manifest_of(&store, &[1, 2]);
    let (a, b) = (MemberId([1; 32]), MemberId([2; 32]));
    let (of_a, of_b) = (Pin::of(a, id, "x"), Pin::of(b, id, "x"));
    let own = Pin::own(id, "x");
    for pin in [&of_a, &own] {
        store.set_pin(pin).unwrap();
    }
    drop((hold, store));
    let store = ChunkStore::open(dir.path()).unwrap();
    assert_eq!(store.pins().unwrap(), [own.clone(), of_a.clone()]);
    assert!(!store.remove_pin(&of_b).unwrap());
    assert!(store.unpin(id, "x").unwrap() && store.remove_pin(&of_a).unwrap());
    assert!(store.pins().unwrap().is_empty());
}

#[test]
fn a_chunk_of_several_replicas_counts_once() {
    let (_dir, store) = fresh();
    let (first, _a) = manifest_of(&store, &[1, 2, 3]);
    let (second, _b) = manifest_of(&store, &[3, 4]);
    let member = MemberId([1; 32]);
    assert_eq!(store.size_of(first).unwrap().bytes, 3 * 4096);
    store.set_pin(&Pin::of(member, first, "x")).unwrap();
    store.set_pin(&Pin::of(member, first, "y")).unwrap();
    assert_eq!(store.kept_with(member, first).unwrap(), 3 * 4096);
    assert_eq!(store.kept_with(member, second).unwrap(), 4 * 4096);
    assert_eq!(
        store.kept_with(MemberId([2; 32]), second).unwrap(),
        2 * 4096
    );
    assert_eq!(store.kept_by_member().unwrap(), [(member, 3 * 4096)].into());
    fs::remove_file(store.path(ChunkId::of(&content(4, 4096)))).unwrap();
    assert_eq!(store.size_of(second).unwrap().missing_bytes, 4096);
}

#[test]
fn imports_and_collections_at_once_lose_nothing() {
    let (_dir, store) = fresh();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.gc(Duration::ZERO).unwrap();
            }
        });
        for round in 0..15u64 {
            // Half of each round's chunks are garbage left by the round before.
            let (garbage, hold) = manifest_of(&store, &[round, round + 1]);
            let (id, held) = manifest_of(&store, &[round + 1, round + 2, 1000 + round]);
            drop(hold);
            store.pin(id, "round").unwrap();
            drop(held);
            assert!(store.is_complete(id), "round {round} lost a chunk");
            store.unpin(id, "round").unwrap();
            let _ = garbage;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_checkpoint_keeps_its_files() {
    let (_dir, store) = fresh();
    let ((ram, a), (disk, b), (image, c)) = (
        manifest_of(&store, &[1]),
        manifest_of(&store, &[2]),
        manifest_of(&store, &[3]),
    );
    let (vm, taken) = (VmId([7; 32]), UnixTime(9));
    let checkpoint = Checkpoint {
        vm,
        name: "one".into(),
        taken,
        epoch: Epoch(3),
        ram: Some(ram),
        disk,
        image: Some(image),
        spec: vec![1, 2],
    };
    let (id, d) = checkpoint.store(&store).unwrap();
    store.pin(id, "web@one").unwrap();
    drop((a, b, c, d));
    assert_eq!(store.gc(Duration::ZERO).unwrap().removed, 0);
    assert_eq!(Checkpoint::load(&store, id).unwrap(), checkpoint);
    assert!(Manifest::load(&store, id).is_err() && Checkpoint::load(&store, ram).is_err());
}

fn any_manifest() -> impl Strategy<Value = Manifest> {
    let blocks = proptest::collection::btree_map(0u64..20_000, any::<[u8; 32]>(), 0..200);
    let meta = proptest::collection::btree_map("[a-z]{0,8}", ".{0,20}", 0..4);
    (blocks, 12u32..=20, 1u32..4096, meta).prop_map(|(blocks, shift, tail, meta)| {
        let chunk_bytes = 1u32 << shift;
        let size = blocks.last_key_value().map_or(0, |(last, _)| {
            last * u64::from(chunk_bytes) + u64::from(tail)
        });
        let chunks = blocks
            .into_iter()
            .map(|(block, id)| Extent {
                block,
                chunk: ChunkId(id),
            })
            .collect();
        Manifest {
            kind: Kind::Ram,
            size,
            chunk_bytes,
            chunks,
            meta,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_manifest_survives_its_chunks(manifest in any_manifest()) {
        let (_dir, store) = fresh();
        let mut batch = store.batch();
        let id = manifest.store(&mut batch).unwrap();
        batch.commit().unwrap();
        prop_assert_eq!(Manifest::load(&store, id).unwrap(), manifest);
    }
}

#[test]
fn a_manifest_out_of_order_or_out_of_bounds_is_refused() {
    let (_dir, store) = fresh();
    let extent = |block| Extent {
        block,
        chunk: ChunkId([block as u8; 32]),
    };
    let of = |chunks, size, chunk_bytes| Manifest {
        kind: Kind::Other,
        size,
        chunk_bytes,
        chunks,
        meta: BTreeMap::new(),
    };
    for bad in [
        of(vec![extent(1), extent(0)], 65536, 4096),
        of(vec![extent(1), extent(1)], 65536, 4096),
        of(vec![extent(16)], 65536, 4096),
        of(vec![], 65536, 5000),
        of(vec![], 65536, 0),
        of(vec![], u64::MAX, 2 << 20),
    ] {
        assert!(bad.store(&mut store.batch()).is_err(), "{bad:?}");
    }
}
