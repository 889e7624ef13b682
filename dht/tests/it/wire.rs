//! Messages and cells under any bytes and any order of merging.

use crate::net::{key, owner};
use p2pvm_dht::{
    Record,
    cell::Cell,
    votes::parse_request,
    wire::{Reply, Request, emit, parse},
};
use p2pvm_overlay::UnixTime;
use proptest::prelude::*;

fn records() -> impl Strategy<Value = Record> {
    (
        1u8..5,
        0u64..6,
        100u64..104,
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..4)),
    )
        .prop_map(|(who, version, expires, value)| {
            Record::sign(&owner(who), key(1), version, UnixTime(expires), value)
        })
}

/// Cells as replicas make them: records and tombstones merged in some order.
fn settled_cells() -> impl Strategy<Value = Cell> {
    proptest::collection::vec(records(), 0..4).prop_map(|records| {
        records
            .into_iter()
            .fold(Cell::default(), |mut cell, record| {
                cell.merge(Cell::of(record, true));
                cell
            })
    })
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        (records(), any::<u64>()).prop_map(|(record, attempt)| Request::Write { record, attempt }),
        any::<u64>().prop_map(|attempt| Request::Withdraw {
            key: key(1),
            attempt
        }),
        settled_cells().prop_map(|cell| Request::Merge(key(1), cell)),
        Just(Request::Read(key(2))),
        proptest::collection::vec(any::<u64>(), 0..20)
            .prop_map(|d| Request::Compare(d.into_iter().map(|d| (key(d as u8), d)).collect())),
    ]
}

fn merged(a: &Cell, b: &Cell) -> Cell {
    let mut merged = a.clone();
    merged.merge(b.clone());
    merged
}

/// What replicas must agree on.
fn meaning(cell: &Cell) -> (Option<Record>, u64) {
    (cell.record.clone(), cell.digest())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_request_survives_the_wire(request in requests()) {
        prop_assert_eq!(parse::<Request>(&emit(&request)), Some(request));
    }

    #[test]
    fn a_cut_or_padded_request_is_refused(
        request in requests(), at in any::<prop::sample::Index>()
    ) {
        let bytes = emit(&request);
        prop_assert_eq!(parse::<Request>(&bytes[..at.index(bytes.len())]), None);
        prop_assert_eq!(parse::<Request>(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse::<Request>(&bytes);
        let _ = parse::<Reply>(&bytes);
        let _ = parse_request(&bytes);
        // Records have version 2 on the wire, votes version 1.
        for version in [1, 2] {
            let versioned = [&[version][..], &bytes[..]].concat();
            let _ = parse::<Request>(&versioned);
            let _ = parse::<Reply>(&versioned);
            let _ = parse_request(&versioned);
        }
    }

    #[test]
    fn a_record_changed_anywhere_is_not_authentic(
        record in records(), bit in 0usize..8, at in any::<prop::sample::Index>()
    ) {
        let mut bytes = emit(&record);
        let at = 1 + at.index(bytes.len() - 1);
        bytes[at] ^= 1 << bit;
        if let Some(changed) = parse::<Record>(&bytes) {
            prop_assert!(changed == record || !changed.is_authentic());
        }
    }

    #[test]
    fn two_replicas_that_exchanged_cells_agree_and_graves_arrive_in_any_order(
        a in settled_cells(), b in settled_cells(), c in settled_cells()
    ) {
        prop_assert_eq!(meaning(&merged(&a, &a)), meaning(&a));
        prop_assert_eq!(meaning(&merged(&a, &b)), meaning(&merged(&b, &a)));
        // The records may differ: a loser that was dropped before the winner's grave came does not
        // come back.
        let one = merged(&merged(&a, &b), &c);
        let two = merged(&a, &merged(&b, &c));
        prop_assert_eq!(&one.graves, &two.graves);
    }
}
