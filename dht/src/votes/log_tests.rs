//! What a voter's log promises: nothing that was answered is lost, and a disk that was full is
//! written again.

use super::*;
use crate::votes::wire::Promise;
use p2pvm_overlay::{Epoch, MemberId, UnixTime};
use std::io::Write;

fn memory(epoch: u64) -> LogEntry {
    LogEntry {
        promise: Promise {
            epoch: Epoch(epoch),
            holder: MemberId([9; 32]),
            confirmed: epoch.is_multiple_of(2),
        },
        was_confirmed: epoch.is_multiple_of(3) && !epoch.is_multiple_of(2),
        voters: [7; 32],
        by: Bringer::of(&MemberId([epoch as u8; 32])),
        deleted: None,
        is_protected: epoch.is_multiple_of(5),
    }
}

/// A log with the epochs 1 to 3 of one VM and 7 of another.
fn written(path: &Path) -> Vec<u8> {
    let mut log = VoterLog::open(path).unwrap();
    for epoch in 1..=3 {
        log.remember(VmId([1; 32]), memory(epoch)).unwrap();
    }
    log.remember(VmId([2; 32]), memory(7)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes.truncate(4 * ENTRY_BYTES);
    bytes
}

fn recalled(path: &Path) -> Result<[Option<LogEntry>; 2], LogError> {
    VoterLog::open(path).map(|log| [1, 2].map(|vm| log.recall(&VmId([vm; 32])).copied()))
}

#[test]
fn what_was_promised_is_recalled_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    written(&path);
    assert_eq!(recalled(&path).unwrap(), [Some(memory(3)), Some(memory(7))]);
}

#[test]
fn two_voters_never_share_a_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let first = VoterLog::open(&path).unwrap();
    assert!(matches!(VoterLog::open(&path), Err(LogError::InUse(_))));
    drop(first);
    assert!(VoterLog::open(&path).is_ok());
}

/// Runs `check` on a file system of 64 KiB.
fn on_a_small_disk(check: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "p2pvm"])
        .arg(directory.path())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        return eprintln!("NOT RUN: a file system of its own needs root");
    }
    let at = directory.path().to_owned();
    let checked = std::thread::spawn(move || check(&at)).join();
    let _ = std::process::Command::new("umount")
        .arg("--lazy")
        .arg(directory.path())
        .status();
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn fill(path: &Path) {
    let mut filler = File::create(path).unwrap();
    while filler.write_all(&[7; 512]).is_ok() {}
}

#[test]
fn a_voter_whose_disk_was_full_votes_again_when_there_is_room() {
    on_a_small_disk(|disk| {
        let mut log = VoterLog::open(&disk.join("votes")).unwrap();
        log.remember(VmId([1; 32]), memory(1)).unwrap();
        fill(&disk.join("guest"));
        let refused = (2..200).find_map(|epoch| {
            log.remember(VmId([1; 32]), memory(epoch))
                .err()
                .map(|e| (epoch, e))
        });
        let (epoch, error) = refused.expect("a full disk takes no entry for ever");
        assert!(matches!(error, LogError::Full(_)), "{error}");
        assert_eq!(
            log.recall(&VmId([1; 32])),
            Some(&memory(epoch - 1)),
            "nothing is recalled that is not on the disk"
        );
        fs::remove_file(disk.join("guest")).unwrap();
        log.remember(VmId([1; 32]), memory(epoch)).unwrap();
        drop(log);
        let again = recalled(&disk.join("votes")).unwrap();
        assert_eq!(again[0], Some(memory(epoch)));
    });
}

#[test]
fn a_full_disk_still_takes_the_next_promises_also_after_a_restart() {
    on_a_small_disk(|disk| {
        let path = disk.join("votes");
        let mut log = VoterLog::open(&path).unwrap();
        log.remember(VmId([1; 32]), memory(1)).unwrap();
        fill(&disk.join("guest"));
        let half = ROOM_ENTRIES as u64 / 4;
        (2..half).for_each(|epoch| log.remember(VmId([1; 32]), memory(epoch)).unwrap());
        drop(log);
        let mut log = VoterLog::open(&path).unwrap();
        (half..2 * half).for_each(|epoch| log.remember(VmId([1; 32]), memory(epoch)).unwrap());
        drop(log);
        assert_eq!(recalled(&path).unwrap()[0], Some(memory(2 * half - 1)));
    });
}

#[test]
fn a_log_that_cannot_be_trusted_is_written_anew_from_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    written(&path);
    let mut log = VoterLog::open(&path).unwrap();
    log.trust = Trust::Rewrite;
    fs::create_dir(path.with_extension("new")).unwrap();
    assert!(log.remember(VmId([1; 32]), memory(4)).is_err());
    assert_eq!(log.recall(&VmId([1; 32])), Some(&memory(3)));
    fs::remove_dir(path.with_extension("new")).unwrap();
    log.remember(VmId([1; 32]), memory(4)).unwrap();
    drop(log);
    assert_eq!(recalled(&path).unwrap(), [Some(memory(4)), Some(memory(7))]);
}

#[test]
fn a_write_torn_at_any_byte_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let whole = written(&path);
    for cut in (3 * ENTRY_BYTES..whole.len()).step_by(5) {
        for rest in [0, whole.len() - cut] {
            fs::write(&path, [&whole[..cut], &vec![0; rest][..]].concat()).unwrap();
            let [first, second] =
                recalled(&path).unwrap_or_else(|e| panic!("cut at {cut}, {rest} zeros: {e:?}"));
            assert_eq!(first, Some(memory(3)));
            assert!(second.is_none() || second == Some(memory(7)));
            let mut log = VoterLog::open(&path).unwrap();
            log.remember(VmId([2; 32]), memory(9)).unwrap();
            drop(log);
            assert_eq!(
                recalled(&path).unwrap(),
                [Some(memory(3)), Some(memory(9))],
                "and goes on after it"
            );
        }
    }
}

#[test]
fn a_byte_flipped_anywhere_is_repaired_from_the_second_copy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let whole = written(&path);
    for at in (0..whole.len()).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(
            recalled(&path).unwrap(),
            [Some(memory(3)), Some(memory(7))],
            "flipped at {at}"
        );
        assert_eq!(fs::read(&path).unwrap(), whole, "flipped at {at}");
    }
}

#[test]
fn a_voter_that_lost_a_promise_does_not_vote() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let whole = written(&path);
    for lost in 0..3 {
        let mut damaged = whole.clone();
        damaged[lost * ENTRY_BYTES..][..ENTRY_BYTES].fill(0);
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(recalled(&path), Err(LogError::Damaged(_, place)) if place == lost));
        let mut swapped = whole.clone();
        swapped.copy_within(3 * ENTRY_BYTES.., lost * ENTRY_BYTES);
        fs::write(&path, &swapped).unwrap();
        assert!(
            recalled(&path).is_err(),
            "an entry in another's place is none"
        );
    }
}

#[test]
fn a_long_log_is_compacted_without_losing_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let entries = COMPACT_FROM_ENTRIES + 1;
    let raw: Vec<u8> = (0..entries)
        .flat_map(|place| encode(place, VmId([1; 32]), &memory(place as u64)).repeat(2))
        .collect();
    fs::write(&path, raw).unwrap();
    assert_eq!(
        recalled(&path).unwrap()[0],
        Some(memory(entries as u64 - 1))
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), ENTRY_BYTES as u64);
    assert_eq!(
        recalled(&path).unwrap()[0],
        Some(memory(entries as u64 - 1))
    );
}

#[test]
fn a_log_is_compacted_while_it_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let mut log = VoterLog::open(&path).unwrap();
    log.compact_from = 8;
    for epoch in 1..=20 {
        log.remember(VmId([1; 32]), memory(epoch)).unwrap();
        log.compact_from = log.compact_from.min(8);
    }
    assert!(log.entries <= 10, "{} entries of one VM", log.entries);
    drop(log);
    assert_eq!(recalled(&path).unwrap()[0], Some(memory(20)));
}

#[test]
fn a_deleted_vm_is_forgotten_after_a_month_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("votes");
    let day = |n: u64| Day::of(UnixTime(n * 24 * 3600));
    let mut log = VoterLog::open(&path).unwrap();
    let entry = LogEntry {
        deleted: Some(day(20_000)),
        ..memory(3)
    };
    log.remember(VmId([1; 32]), entry).unwrap();
    log.remember(VmId([2; 32]), memory(1)).unwrap();
    drop(log);
    let mut log = VoterLog::open(&path).unwrap();
    log.forget_deleted(day(20_030));
    assert_eq!(log.recall(&VmId([1; 32])), Some(&entry));
    log.forget_deleted(day(20_031));
    assert_eq!((log.recall(&VmId([1; 32])), log.vms()), (None, 1));
    // A VM that is made again begins with any epoch.
    log.remember(VmId([1; 32]), memory(1)).unwrap();
    drop(log);
    assert_eq!(recalled(&path).unwrap(), [Some(memory(1)); 2]);
}

#[test]
fn a_log_of_the_first_release_is_read_as_it_was_written() {
    let entry = LogEntry {
        by: Bringer::default(),
        was_confirmed: false,
        ..memory(4)
    };
    let copy = encode(0, VmId([1; 32]), &entry);
    let mut first = [0; COPY_BYTES];
    first[..8].copy_from_slice(b"p2pvmvl1");
    first[8..40].fill(1);
    first[47] = 4;
    first[48..80].fill(9);
    first[80] = 1;
    first[81..113].fill(7);
    assert_eq!(copy[..124], first[..124]);
    assert_eq!(decode(0, &copy), Some((VmId([1; 32]), entry)));
}

#[test]
fn a_protected_vm_keeps_its_flag_beside_the_day_of_its_deletion() {
    for (is_protected, deleted) in [(true, None), (true, Some(20_000)), (false, Some(20_000))] {
        let entry = LogEntry {
            is_protected,
            deleted: deleted.map(|day| Day::of(UnixTime(day * 24 * 3600))),
            ..memory(4)
        };
        let copy = encode(0, VmId([1; 32]), &entry);
        assert_eq!(decode(0, &copy), Some((VmId([1; 32]), entry)));
        assert_eq!(copy[80], 1, "the previous release reads it as confirmed");
    }
}
