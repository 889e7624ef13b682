//! The log on a disk: numbers, chains, bounds, what a crash leaves, and what readers get.

use super::{
    file::{Bounds, Log, paths},
    query::{Filter, find},
    *,
};
use p2pvm_api::EventsWanted;
use p2pvm_overlay::{VmId, identity::KeyPair};
use proptest::prelude::*;
use std::{fs, path::Path};

const WEB: VmId = VmId([7; 32]);
const LARGE: Bounds = Bounds {
    bytes: 1 << 20,
    age_ms: 1 << 40,
};

fn key() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

fn crash(at_ms: u64) -> Event {
    Event {
        seq: 0,
        at_ms,
        subject: Subject::Vm(WEB, "web".into()),
        kind: "guest-crashed".into(),
        fields: Vec::new(),
        sentence: "It crashed.".into(),
        link: None,
    }
}

fn seqs(dir: &Path, wanted: &EventsWanted) -> Vec<u64> {
    let filter = Filter::of(wanted);
    let limit = wanted.limit.unwrap_or(1000);
    let (events, _) = find(dir, &filter, wanted.after, limit).unwrap();
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn numbers_and_chains_go_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
        log.append(&key(), &[crash(1), crash(2)]).unwrap();
    }
    let (events, more) = find(dir.path(), &Filter::default(), Some(0), 1000).unwrap();
    assert!(!more);
    let places = events
        .iter()
        .map(|event| (event.seq, event.link.unwrap().number));
    assert!(places.eq((1..=6).zip(0..6)));
}

#[test]
fn numbers_go_on_after_a_file_without_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
    log.append(&key(), &[crash(1)]).unwrap();
    drop(log);
    // As a full disk leaves it once the older file is gone: a file was begun, and nothing came.
    let path = paths(dir.path()).unwrap().remove(0);
    let next = path.with_file_name("00000000000000000002.events");
    let bytes = fs::read(&path).unwrap();
    let whole = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize + 8;
    fs::write(&next, &bytes[..whole]).unwrap();
    fs::remove_file(&path).unwrap();
    let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
    assert_eq!(log.append(&key(), &[crash(2)]).unwrap()[0].seq, 2);
}

#[test]
fn what_found_no_room_on_its_way_is_counted_in_one_event() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), LARGE, 0).unwrap();
    let refused = Arc::new(AtomicU64::new(5));
    let (identity, written) = (Arc::new(Identity::generate()), broadcast::channel(8).0);
    let writer = Writer::new(log, identity, written, refused.clone());
    let (waiting, messages) = std::sync::mpsc::sync_channel(600);
    for _ in 0..600 {
        waiting.send(Message::Event(Box::new(crash(1)))).unwrap();
    }
    drop(waiting);
    writer.run(&messages);
    let (events, _) = find(dir.path(), &Filter::default(), Some(0), 1000).unwrap();
    let is_lost = |event: &&Event| event.kind == EventKind::EventsLost.to_string();
    let lost: Vec<&Event> = events.iter().filter(is_lost).collect();
    assert_eq!((events.len(), lost.len()), (601, 1));
    assert_eq!(lost[0].fields, [("count".to_owned(), "5".to_owned())]);
    assert_eq!(refused.load(Ordering::Relaxed), 0);
}

#[test]
fn the_oldest_events_of_a_large_or_old_log_go() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        bytes: 16 << 10,
        age_ms: 1000,
    };
    let mut log = Log::open(dir.path(), bounds, 0).unwrap();
    for at in 0..500 {
        log.append(&key(), &[crash(at)]).unwrap();
        log.trim(at);
    }
    let sizes = paths(dir.path()).unwrap().into_iter().map(|path| {
        let about = fs::metadata(path).unwrap();
        about.len()
    });
    assert!(sizes.sum::<u64>() <= bounds.bytes + 4096);
    let kept = seqs(dir.path(), &EventsWanted::default());
    assert!(kept[0] > 1 && kept.last() == Some(&500), "{kept:?}");
    log.trim(10_000);
    assert_eq!(paths(dir.path()).unwrap().len(), 1, "the newest file stays");
    drop(log);
    let mut log = Log::open(dir.path(), bounds, 10_000).unwrap();
    let next = log.append(&key(), &[crash(10_000)]).unwrap();
    let place = next[0].link.unwrap().number;
    assert_eq!((next[0].seq, place), (501, 500), "the chain goes on");
}

#[test]
fn a_reader_gets_pages_in_order_or_the_newest_events() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
    let of_host = Event {
        subject: Subject::Host,
        kind: "daemon-started".into(),
        ..crash(1)
    };
    for _ in 0..5 {
        log.append(&key(), &[crash(1), of_host.clone()]).unwrap();
    }
    let wanted = |after, limit, vm: Option<&str>| EventsWanted {
        after,
        limit: Some(limit),
        vm: vm.map(str::to_owned),
        ..EventsWanted::default()
    };
    assert_eq!(seqs(dir.path(), &wanted(None, 3, None)), [8, 9, 10]);
    assert_eq!(seqs(dir.path(), &wanted(Some(2), 3, None)), [3, 4, 5]);
    assert_eq!(seqs(dir.path(), &wanted(Some(2), 2, Some("web"))), [3, 5]);
    let by_id = WEB.to_string();
    assert_eq!(seqs(dir.path(), &wanted(None, 2, Some(&by_id))), [7, 9]);
    assert!(seqs(dir.path(), &wanted(None, 2, Some("db"))).is_empty());
}

proptest! {
    #[test]
    fn a_log_torn_at_any_byte_goes_on_with_what_was_whole(torn in 0usize..2000) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
        let mut ends = vec![];
        for at in 0..5 {
            log.append(&key(), &[crash(at)]).unwrap();
            let path = &paths(dir.path()).unwrap()[0];
            ends.push(fs::metadata(path).unwrap().len() as usize);
        }
        drop(log);
        let path = paths(dir.path()).unwrap().remove(0);
        let bytes = fs::read(&path).unwrap();
        let torn = torn % bytes.len();
        fs::write(&path, &bytes[..torn]).unwrap();
        let whole = ends.iter().filter(|end| **end <= torn).count() as u64;
        let mut log = Log::open(dir.path(), LARGE, 0).unwrap();
        let next = log.append(&key(), &[crash(9)]).unwrap();
        prop_assert_eq!(next[0].seq, whole + 1);
        prop_assert_eq!(next[0].link.unwrap().number, whole);
        let kept = seqs(dir.path(), &EventsWanted::default());
        prop_assert_eq!(kept, (1..=whole + 1).collect::<Vec<_>>());
    }
}
