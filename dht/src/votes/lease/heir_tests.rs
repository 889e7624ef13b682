//! What an heir's patience promises.

use super::*;
use crate::votes::NewestEpoch;
use proptest::prelude::*;

const S: Duration = Duration::from_secs(1);

fn ward(rank: u32) -> Ward {
    Ward {
        me: MemberId([2; 32]),
        host: MemberId([1; 32]),
        lost_after: 30 * S,
        rank,
    }
}

fn view(holder: u8, free_in: Duration) -> HeirInput {
    HeirInput::View(Some(LeaseView {
        newest: Some(NewestEpoch {
            epoch: Epoch(4),
            holder: MemberId([holder; 32]),
            confirmed: true,
            granted: true,
        }),
        protected: true,
        free_in,
    }))
}

/// An heir that has just asked the voters, at 130 s.
fn looking(rank: u32) -> Heir {
    let mut heir = Heir::new(Terms::REAL, ward(rank));
    assert_eq!(heir.handle(100 * S, HeirInput::Tick), [HeirOutput::AskHost]);
    for second in [100, 110, 120] {
        let waits = heir.handle(second * S, HeirInput::HostSilent);
        assert_eq!(waits, [HeirOutput::Wait((second + 10) * S)]);
        heir.handle((second + 10) * S, HeirInput::Tick);
    }
    assert_eq!(
        heir.handle(130 * S, HeirInput::HostSilent),
        [HeirOutput::AskVoters]
    );
    heir
}

#[test]
fn a_host_that_answers_in_time_is_never_asked_about() {
    let mut heir = Heir::new(Terms::REAL, ward(0));
    heir.handle(100 * S, HeirInput::Tick);
    heir.handle(100 * S, HeirInput::HostSilent);
    heir.handle(128 * S, HeirInput::HostAnswers);
    let waits = heir.handle(140 * S, HeirInput::HostSilent);
    assert_eq!(waits, [HeirOutput::Wait(150 * S)], "silence counts anew");
}

#[test]
fn an_heir_waits_for_the_lease_and_looks_again_before_it_asks() {
    let mut heir = looking(1);
    let waits = heir.handle(130 * S, view(1, 15 * S));
    assert_eq!(
        waits,
        [HeirOutput::Wait(147 * S)],
        "rank 1: two seconds more"
    );
    assert_eq!(heir.handle(146 * S, HeirInput::Tick), []);
    let looks = [HeirOutput::AskHost, HeirOutput::AskVoters];
    assert_eq!(heir.handle(147 * S, HeirInput::Tick), looks);
    let asks = heir.handle(147 * S, view(1, Duration::ZERO));
    assert_eq!(asks, [HeirOutput::TakeOver(Epoch(5))]);
    assert_eq!(heir.handle(148 * S, HeirInput::Granted), []);
    assert!(heir.is_over());
}

#[test]
fn a_lease_that_was_renewed_meanwhile_is_waited_for_anew() {
    let mut heir = looking(0);
    heir.handle(130 * S, view(1, 5 * S));
    heir.handle(135 * S, HeirInput::Tick);
    let waits = heir.handle(135 * S, view(1, 25 * S));
    assert_eq!(waits, [HeirOutput::Wait(160 * S)]);
    heir.handle(140 * S, HeirInput::HostAnswers);
    assert_eq!(heir.handle(160 * S, HeirInput::Tick), [HeirOutput::AskHost]);
}

#[test]
fn a_refused_heir_looks_again_and_asks_for_a_newer_epoch() {
    let mut heir = looking(0);
    let asks = heir.handle(130 * S, view(1, Duration::ZERO));
    assert_eq!(asks, [HeirOutput::TakeOver(Epoch(5))]);
    let waits = heir.handle(131 * S, HeirInput::Refused);
    assert_eq!(waits, [HeirOutput::Wait(134 * S)]);
    heir.handle(134 * S, HeirInput::Tick);
    // Its own grant, whose answers were lost.
    let asks = heir.handle(134 * S, view(2, Duration::ZERO));
    assert_eq!(asks, [HeirOutput::TakeOver(Epoch(5))]);
}

#[test]
fn an_heir_stops_when_another_member_has_the_vm() {
    let mut heir = looking(0);
    let elsewhere = HeirOutput::Elsewhere {
        epoch: Epoch(4),
        holder: MemberId([7; 32]),
    };
    assert_eq!(heir.handle(131 * S, view(7, 20 * S)), [elsewhere]);
    assert!(heir.is_over());
}

#[test]
fn without_a_majority_or_protection_an_heir_only_looks_again() {
    let mut heir = looking(0);
    let waits = heir.handle(130 * S, HeirInput::View(None));
    assert_eq!(waits, [HeirOutput::Wait(133 * S)]);
    heir.handle(133 * S, HeirInput::Tick);
    let unprotected = HeirInput::View(Some(LeaseView {
        newest: None,
        protected: false,
        free_in: Duration::ZERO,
    }));
    let waits = heir.handle(133 * S, unprotected);
    assert_eq!(waits, [HeirOutput::Wait(136 * S)]);
}

fn inputs() -> impl Strategy<Value = (u64, HeirInput)> {
    let input = prop_oneof![
        Just(HeirInput::HostAnswers),
        Just(HeirInput::HostSilent),
        Just(HeirInput::View(None)),
        (0u32..3).prop_map(|s| view(1, s * 10 * S)),
        Just(HeirInput::Refused),
        Just(HeirInput::Tick),
    ];
    (0u64..20_000, input)
}

proptest! {
    #[test]
    fn an_heir_asks_only_right_after_a_majority_said_free(
        inputs in proptest::collection::vec(inputs(), 1..80), rank in 0u32..3
    ) {
        let mut heir = Heir::new(Terms::REAL, ward(rank));
        let mut now = 100 * S;
        for (ms, input) in inputs {
            now += Duration::from_millis(ms);
            for output in heir.handle(now, input) {
                if let HeirOutput::TakeOver(_) = output {
                    prop_assert_eq!(input, view(1, Duration::ZERO));
                }
            }
            let is_watching = heir.state != State::Looking && heir.state != State::Asking;
            prop_assert!(!is_watching || heir.next_tick().is_some(), "it never stops for good");
        }
    }
}
