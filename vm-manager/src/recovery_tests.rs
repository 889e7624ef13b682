use super::*;
use crate::{host::registry::tests::entry, protection::tests::replica};
use p2pvm_overlay::UnixTime;
use p2pvm_snapshot_sync::ChunkId;
use proptest::prelude::*;

const HOLDER: MemberId = MemberId([4; 32]);
const BEING_COPIED: Durability = Durability::Replicating { done: 1, wanted: 2 };

fn member(n: u8) -> MemberId {
    MemberId([n; 32])
}

fn id(n: u8) -> ManifestId {
    ManifestId(ChunkId([n; 32]))
}

fn snapshot(n: u8, taken: u64, durability: Durability, providers: &[MemberId]) -> Snapshot {
    Snapshot {
        name: format!("s{n}"),
        checkpoint: id(n),
        taken: UnixTime(taken),
        epoch: Epoch(1),
        with_ram: true,
        durability,
        providers: providers.to_vec(),
    }
}

fn copy(taken: u64, providers: &[MemberId]) -> Replica {
    Replica {
        checkpoint: id(99),
        epoch: Epoch(1),
        taken: UnixTime(taken),
        providers: providers.to_vec(),
        durability: Durability::Durable,
        ..replica(0)
    }
}

fn record() -> VmRecord {
    entry("web").record(HOLDER)
}

/// The names of a VM's states, the newest first.
fn names(record: &VmRecord) -> Vec<String> {
    states(record).into_iter().map(|one| one.name).collect()
}

#[test]
fn heirs_hold_the_newest_state_that_others_have() {
    let mut record = record();
    assert_eq!(recovery_point(&record), None);
    assert!(heirs_of(&record).is_empty());
    record.snapshots = vec![
        snapshot(1, 5, Durability::Durable, &[HOLDER, member(1), member(2)]),
        snapshot(2, 9, Durability::Local, &[HOLDER]),
    ];
    assert_eq!(recovery_point(&record).unwrap().taken, UnixTime(5));
    assert_eq!(heirs_of(&record), [member(1), member(2)]);
    record.replica = Some(copy(7, &[HOLDER, member(3), member(3), member(2)]));
    let point = recovery_point(&record).unwrap();
    assert!(!point.with_ram && point.taken == UnixTime(7));
    assert_eq!(heirs_of(&record), [member(3), member(2)]);
    // What the epoch says counts, not the clock.
    record.snapshots[0].epoch = Epoch(2);
    assert_eq!(recovery_point(&record).unwrap().taken, UnixTime(5));
}

#[test]
fn of_one_epoch_the_lists_order_decides_and_not_the_clock() {
    let mut record = record();
    let all = [HOLDER, member(1)];
    record.snapshots = vec![
        snapshot(1, 900, Durability::Durable, &all),
        // The clock was set back.
        snapshot(2, 300, Durability::Durable, &all),
    ];
    assert_eq!(names(&record), ["s2", "s1"]);
    record.replica = Some(copy(299, &all));
    assert_eq!(names(&record), ["s2", "s1", "replica"]);
    record.replica = Some(copy(301, &all));
    assert_eq!(names(&record), ["replica", "s2", "s1"]);
    // Of the same second, the one that may have the memory.
    record.replica = Some(copy(300, &all));
    assert_eq!(names(&record)[0], "s2");
}

#[test]
fn a_snapshot_that_one_of_two_members_has_makes_it_an_heir() {
    let mut record = record();
    record.snapshots = vec![snapshot(1, 5, BEING_COPIED, &[HOLDER, member(1)])];
    assert_eq!(recovery_point(&record).unwrap().name, "s1");
    assert_eq!(heirs_of(&record), [member(1)]);
    // One that is not known to be whole has the next one, and that one's heirs, behind it.
    record.snapshots = vec![
        snapshot(1, 4, Durability::Durable, &[HOLDER, member(4)]),
        snapshot(2, 5, Durability::Durable, &[HOLDER, member(3)]),
        snapshot(3, 6, BEING_COPIED, &[HOLDER, member(1)]),
    ];
    let points = recovery_points(&record).into_iter();
    let points: Vec<String> = points.map(|point| point.name).collect();
    assert_eq!(points, ["s3", "s2"]);
    assert_eq!(heirs_of(&record), [member(1), member(3)]);
}

#[test]
fn after_a_restore_nothing_of_the_state_before_it_counts() {
    let mut record = record();
    let all = [HOLDER, member(1)];
    record.snapshots = vec![
        snapshot(1, 5, Durability::Durable, &all),
        snapshot(2, 8, Durability::Durable, &all),
    ];
    record.replica = Some(copy(9, &[HOLDER, member(2)]));
    assert_eq!(names(&record), ["replica", "s2", "s1"]);
    (record.epoch, record.restored) = (
        Epoch(3),
        Some(Restored {
            epoch: Epoch(3),
            checkpoint: id(1),
        }),
    );
    assert_eq!(names(&record), ["s1"]);
    assert_eq!(heirs_of(&record), [member(1)]);
    // From the replica itself: it counts until there is a newer one.
    record.restored = Some(Restored {
        epoch: Epoch(3),
        checkpoint: id(99),
    });
    assert_eq!(names(&record), ["replica"]);
    record.snapshots.push(Snapshot {
        epoch: Epoch(4),
        ..snapshot(3, 2, Durability::Durable, &all)
    });
    assert_eq!(names(&record), ["s3", "replica"], "also after a move");
}

#[test]
fn the_fields_bytes_never_change() {
    let restored = Restored {
        epoch: Epoch(300),
        checkpoint: id(7),
    };
    let bytes = [&[1, 172, 2][..], &[7; 32]].concat();
    assert_eq!(restored.to_field(), bytes);
    assert_eq!(Restored::from_field(&bytes), Some(restored));
    // What a later release appends is not read.
    let later = [&bytes[..], &[9, 9]].concat();
    assert_eq!(Restored::from_field(&later), Some(restored));
}

proptest! {
    #[test]
    fn no_bytes_of_a_peer_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = Restored::from_field(&bytes);
    }
}
