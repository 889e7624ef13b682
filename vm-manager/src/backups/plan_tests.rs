//! What a schedule promises, also where clocks jump and members are away.

use super::*;
use crate::backups::Retention;
use p2pvm_overlay::Epoch;
use p2pvm_snapshot_sync::{ChunkId, ManifestId};
use proptest::prelude::*;

const NOW: u64 = 1_796_000_000;

fn snapshot(name: &str, taken: u64, epoch: u64, is_durable: bool) -> Snapshot {
    Snapshot {
        name: name.into(),
        checkpoint: ManifestId(ChunkId(*blake3::hash(name.as_bytes()).as_bytes())),
        taken: UnixTime(taken),
        epoch: Epoch(epoch),
        with_ram: false,
        durability: match is_durable {
            true => Durability::Durable,
            false => Durability::Local,
        },
        providers: vec![],
    }
}

fn schedule(every: u64, keep: Retention) -> Schedule {
    Schedule {
        every,
        keep,
        disk_only: false,
        since: UnixTime(NOW),
    }
}

fn keep(last: u8, hours: u8, days: u8, weeks: u8) -> Retention {
    Retention {
        last,
        hours,
        days,
        weeks,
    }
}

#[test]
fn names_have_the_date_and_only_such_are_automatic() {
    for (time, name) in [
        (0, "auto-19700101-0000"),
        (951_782_400, "auto-20000229-0000"),
        (1_796_123_456, "auto-20261201-1110"),
        (4_107_542_399, "auto-21000228-2359"),
    ] {
        assert_eq!(free_name(UnixTime(time), &[]), name);
        assert!(is_automatic(name));
    }
    let taken = [snapshot("auto-19700101-0000", 0, 1, true)];
    assert_eq!(free_name(UnixTime(0), &taken), "auto-19700101-0000-2");
    assert!(is_automatic("auto-19700101-0000-2"));
    for name in [
        "auto",
        "auto-",
        "auto-2026-1201",
        "auto-20261201-1050-",
        "auto-20261201-1050-x",
    ] {
        assert!(!is_automatic(name), "{name}");
    }
}

#[test]
fn missed_snapshots_are_made_once() {
    let schedule = schedule(6 * HOUR, keep(0, 8, 7, 4));
    let at = |hours: u64| UnixTime(NOW + hours * HOUR);
    let first = schedule.plan(at(0), &[], None).take.unwrap();
    let mut all = vec![snapshot(&first, NOW, 1, true)];
    assert_eq!(schedule.plan(at(5), &all, None).take, None);
    // The host was off for a week.
    let late = schedule.plan(at(170), &all, None).take.unwrap();
    all.push(snapshot(&late, NOW + 170 * HOUR, 1, true));
    assert_eq!(schedule.plan(at(171), &all, None).take, None);
    assert!(schedule.plan(at(174), &all, None).take.is_some());
}

#[test]
fn after_a_failure_the_next_attempt_waits() {
    let schedule = schedule(6 * HOUR, keep(3, 0, 0, 0));
    let since = |minutes: u64, has_failed| {
        Some(Since {
            passed: Duration::from_secs(minutes * 60),
            has_failed,
        })
    };
    let due = |last| schedule.plan(UnixTime(NOW), &[], last).take.is_some();
    assert!(!due(since(9, true)) && due(since(10, true)));
    assert!(!due(since(179, false)) && due(since(180, false)));
}

#[test]
fn a_full_list_is_said_and_nothing_of_it_is_taken() {
    let schedule = schedule(HOUR, keep(1, 0, 0, 0));
    let by_hand = |n: usize| snapshot(&format!("hand-{n}"), NOW, 1, false);
    let all: Vec<Snapshot> = (0..MAX_SNAPSHOTS).map(by_hand).collect();
    let plan = schedule.plan(UnixTime(NOW), &all, None);
    assert_eq!(
        (plan.take, plan.delete.len(), plan.is_full),
        (None, 0, true)
    );
}

#[test]
fn of_each_hour_day_and_week_the_newest_stays() {
    let schedule = schedule(HOUR, keep(0, 2, 2, 2));
    // Sunday 2026-11-29 22:00 UTC and the hours after it.
    let begin = 1_795_989_600;
    let all: Vec<Snapshot> = (0..4u64)
        .map(|n| {
            snapshot(
                &format!("auto-20261129-{:04}", n),
                begin + n * HOUR,
                1,
                true,
            )
        })
        .collect();
    // 22 and 23 on Sunday, 0 and 1 on Monday: the newest of both hours, days and weeks.
    let plan = schedule.plan(UnixTime(begin + 3 * HOUR), &all, None);
    assert_eq!(plan.delete, ["auto-20261129-0000"]);
}

#[test]
fn the_newest_is_of_the_highest_epoch_whatever_clocks_said() {
    let all = [
        snapshot("a", 900, 1, true),
        snapshot("b", 100, 3, true),
        snapshot("c", 50, 3, true),
        snapshot("d", 999, 2, true),
    ];
    assert_eq!(newest(&all).unwrap().name, "c");
    assert_eq!(newest([]), None);
}

fn any_snapshots() -> impl Strategy<Value = Vec<Snapshot>> {
    let one = (any::<bool>(), 0u64..90 * DAY, 0u64..4, any::<bool>());
    proptest::collection::vec(one, 0..MAX_SNAPSHOTS).prop_map(|all| {
        let named =
            |(at, (is_automatic, taken, epoch, durable)): (usize, (bool, u64, u64, bool))| {
                let name = match is_automatic {
                    true => format!("auto-20261201-0000-{at}"),
                    false => format!("hand-{at}"),
                };
                snapshot(&name, NOW + taken, epoch, durable)
            };
        all.into_iter().enumerate().map(named).collect()
    })
}

fn any_keep() -> impl Strategy<Value = Retention> {
    (0u8..5, 0u8..10, 0u8..10, 0u8..6).prop_map(|(last, hours, days, weeks)| {
        // A schedule that keeps none cannot be set.
        keep(
            last.max(u8::from(hours + days + weeks == 0)),
            hours,
            days,
            weeks,
        )
    })
}

proptest! {
    #[test]
    fn what_is_deleted_is_neither_by_hand_nor_the_newest_durable(
        all in any_snapshots(), keep in any_keep(), now in 0u64..200 * DAY,
    ) {
        let plan = schedule(HOUR, keep).plan(UnixTime(NOW + now), &all, None);
        let durable = newest(all.iter().filter(|s| s.durability == Durability::Durable));
        for name in &plan.delete {
            prop_assert!(is_automatic(name));
            prop_assert!(durable.is_none_or(|s| s.name != *name));
        }
        if let Some(name) = &plan.take {
            prop_assert!(is_automatic(name) && all.iter().all(|s| s.name != *name));
            prop_assert!(all.len() - plan.delete.len() < MAX_SNAPSHOTS);
        }
        let distinct: BTreeSet<&String> = plan.delete.iter().collect();
        prop_assert_eq!(distinct.len(), plan.delete.len());
    }

    #[test]
    fn as_many_stay_as_the_rule_says(all in any_snapshots(), keep in any_keep()) {
        let plan = schedule(HOUR, keep).plan(UnixTime(NOW), &all, None);
        let scheduled: Vec<&Snapshot> = all.iter().filter(|s| is_automatic(&s.name)).collect();
        let stays = |s: &&&Snapshot| !plan.delete.contains(&s.name);
        let left: Vec<&&Snapshot> = scheduled.iter().filter(stays).collect();
        prop_assert!(left.len() >= scheduled.len().min(usize::from(keep.last)));
        for (most, length, begin) in
            [(keep.hours, HOUR, 0), (keep.days, DAY, 0), (keep.weeks, WEEK, MONDAY)]
        {
            let parts = |of: &[&Snapshot]| -> HashSet<u64> {
                of.iter().map(|s| (s.taken.0 - begin) / length).collect()
            };
            let left: Vec<&Snapshot> = left.iter().map(|s| **s).collect();
            let (had, has) = (parts(&scheduled), parts(&left));
            prop_assert!(has.len() >= had.len().min(usize::from(most)));
        }
        let newest = newest(scheduled.iter().copied());
        prop_assert!(newest.is_none_or(|s| !plan.delete.contains(&s.name)));
    }

    #[test]
    fn a_clock_that_jumps_brings_no_flood_and_ends_no_backups(
        jumps in proptest::collection::vec(-(60i64 * 86_400)..60 * 86_400, 1..60),
    ) {
        let schedule = schedule(6 * HOUR, keep(0, 8, 7, 4));
        let (mut all, mut last, mut real) = (Vec::<Snapshot>::new(), None, 0u64);
        let mut taken = 0u64;
        for jump in jumps {
            for _ in 0..12 {
                real += HOUR;
                let now = UnixTime((NOW + 90 * DAY + real).saturating_add_signed(jump));
                let since = last.map(|at: u64| Since {
                    passed: Duration::from_secs(real - at),
                    has_failed: false,
                });
                let plan = schedule.plan(now, &all, since);
                if let Some(name) = plan.take {
                    all.push(snapshot(&name, now.0, 1, true));
                    (last, taken) = (Some(real), taken + 1);
                }
                all.retain(|s| !plan.delete.contains(&s.name));
            }
        }
        prop_assert!(taken >= 1 && taken <= real / (3 * HOUR) + 1, "{taken} in {real} s");
        prop_assert!(all.len() <= schedule.keep.most() + 2);
    }
}
