use super::*;

const DAY_MS: i64 = 86_400_000;
const START: Reading = Reading {
    boot_ms: 5000,
    wall_ms: 1_800_000_000_000,
};

fn later(seconds: i64, wall_jump_ms: i64) -> Reading {
    Reading {
        boot_ms: START.boot_ms + seconds * 1000,
        wall_ms: START.wall_ms + seconds * 1000 + wall_jump_ms,
    }
}

fn member(n: u8) -> MemberId {
    MemberId([n; 32])
}

/// What a member whose clock is right says at `reading`.
fn right(seconds: i64) -> ClockReport {
    let now = START.wall_ms + seconds * 1000;
    ClockReport {
        wall_ms: now,
        net_ms: now,
        clocks: 1,
    }
}

#[test]
fn a_wall_clock_that_jumps_while_members_are_known_moves_nothing() {
    let time = NetworkTime::new(START);
    time.hear(member(1), right(1), later(1, 0));
    time.hear(member(2), right(1), later(1, 0));
    let steps = time.steps();
    for jump in [DAY_MS, -DAY_MS, 730 * DAY_MS, -START.wall_ms] {
        time.settle(later(2, jump));
        assert_eq!(time.millis_at(later(2, jump)), START.wall_ms + 2000);
        assert_eq!(
            time.skew_at(later(2, jump)),
            Some(Skew {
                ahead_ms: jump,
                members: 2
            })
        );
    }
    assert!(!steps.has_changed().unwrap());
}

#[test]
fn a_member_with_a_wrong_clock_takes_the_networks_time() {
    for wrong in [DAY_MS, -DAY_MS, 730 * DAY_MS] {
        let time = NetworkTime::new(later(0, wrong));
        let steps = time.steps();
        time.hear(member(1), right(1), later(1, wrong));
        time.hear(member(2), right(1), later(1, wrong));
        assert_eq!(
            time.millis_at(later(3, wrong)),
            START.wall_ms + 3000,
            "{wrong}"
        );
        assert!(steps.has_changed().unwrap());
        assert_eq!(time.skew_at(later(3, wrong)).unwrap().ahead_ms, wrong);
    }
}

#[test]
fn no_clock_that_a_member_claims_makes_the_sums_overflow() {
    for claimed in [i64::MIN, -1, 0, 1, i64::MAX] {
        for clocks in [0, 1, u16::MAX] {
            let report = ClockReport {
                wall_ms: claimed,
                net_ms: claimed,
                clocks,
            };
            let time = NetworkTime::new(START);
            time.note_signed(UnixTime(1));
            time.hear(member(1), report, later(1, 0));
            let now = time.millis_at(later(2, 0));
            assert!((0..=LATEST_MS + 2000).contains(&now), "{claimed}: {now}");
            time.hear(member(2), right(2), later(2, 0));
            time.hear(member(3), right(2), later(2, 0));
            assert_eq!(time.millis_at(later(3, 0)), START.wall_ms + 3000);
        }
    }
}

#[test]
fn alone_a_lasting_jump_is_followed_and_a_short_one_not() {
    let time = NetworkTime::new(START);
    time.settle(later(1, DAY_MS));
    time.settle(later(30, 0));
    time.settle(later(31, DAY_MS));
    time.settle(later(80, DAY_MS));
    assert_eq!(time.millis_at(later(80, DAY_MS)), START.wall_ms + 80_000);
    time.settle(later(92, DAY_MS));
    assert_eq!(
        time.millis_at(later(92, DAY_MS)),
        START.wall_ms + 92_000 + DAY_MS
    );
}

#[test]
fn a_number_follows_the_newest_known_even_from_years_ahead() {
    let ahead = next_number(None) + 730 * DAY_MS as u64;
    assert_eq!(next_number(Some(ahead)), ahead + 1);
    assert!(next_number(Some(5)) > ahead - 800 * DAY_MS as u64);
    assert_eq!(next_number(Some(u64::MAX)), u64::MAX);
}

#[test]
fn a_skew_reads_as_a_person_would_say_it() {
    let said = |seconds: i64| {
        Skew {
            ahead_ms: seconds * 1000,
            members: 3,
        }
        .to_string()
    };
    assert_eq!(said(82_800), "23 h ahead of the members' clocks");
    assert_eq!(said(-90), "90 s behind the members' clocks");
    assert_eq!(said(730 * 86_400), "730 days ahead of the members' clocks");
}
