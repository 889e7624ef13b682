//! What a host's right to run promises.

use super::*;
use crate::votes::{LEASE, RENEW_EVERY, lease_end};
use proptest::prelude::*;

const S: Duration = Duration::from_secs(1);

fn undecided() -> Renewed {
    Renewed::Undecided {
        answered: 1,
        asked: 3,
    }
}

/// A tenure whose first renewal was sent at 100 s.
fn asked() -> Tenure {
    let mut tenure = Tenure::new(Terms::REAL);
    assert_eq!(
        tenure.handle(100 * S, TenureInput::Start),
        [TenureOutput::Renew(1)]
    );
    assert_eq!(tenure.handle(100 * S, TenureInput::RenewalSent(1)), []);
    tenure
}

#[test]
fn a_host_uses_less_of_a_lease_than_its_voters_count() {
    assert_eq!(lease_end(Duration::ZERO), Duration::from_millis(28_100));
    let guarded = LEASE.mul_f64(super::super::CLOCK_GUARD) - super::super::FREEZE_MARGIN;
    let difference = guarded.abs_diff(lease_end(Duration::ZERO));
    assert!(difference < Duration::from_millis(1), "{difference:?}");
    assert_eq!(Terms::REAL.renew_every, RENEW_EVERY);
}

#[test]
fn a_guest_starts_with_the_first_lease_which_counts_from_the_sending() {
    let mut tenure = asked();
    assert!(!tenure.may_run(101 * S));
    let armed = tenure.handle(102 * S, TenureInput::Answer(1, Renewed::Ours));
    assert_eq!(armed, [TenureOutput::Arm(lease_end(100 * S))]);
    assert!(tenure.may_run(103 * S) && !tenure.may_run(lease_end(100 * S)));
    assert_eq!(tenure.next_tick(), Some(110 * S));
    let renews = tenure.handle(110 * S, TenureInput::Tick);
    assert_eq!(renews, [TenureOutput::Renew(2)]);
}

#[test]
fn a_host_without_answers_stops_softly_then_freezes_and_goes_on_asking() {
    let mut tenure = asked();
    tenure.handle(101 * S, TenureInput::Answer(1, Renewed::Ours));
    let end = lease_end(100 * S);
    let mut outputs = Vec::new();
    let mut now = 101 * S;
    while let Some(due) = tenure.next_tick().filter(|due| *due < 140 * S) {
        assert!(due >= now, "time never goes back");
        now = due;
        outputs.extend(
            tenure
                .handle(due, TenureInput::Tick)
                .into_iter()
                .map(|o| (due, o)),
        );
    }
    let at = |wanted| {
        outputs
            .iter()
            .find(|(_, o)| *o == wanted)
            .map(|(at, _)| *at)
    };
    assert_eq!(at(TenureOutput::SoftStop), Some(end - 2 * S));
    assert_eq!(at(TenureOutput::Froze), Some(end));
    assert_eq!(
        at(TenureOutput::Renew(4)),
        Some(130 * S),
        "asked while frozen"
    );
}

#[test]
fn a_frozen_guest_goes_on_only_after_a_majority_said_so() {
    let mut tenure = asked();
    tenure.handle(101 * S, TenureInput::Answer(1, Renewed::Ours));
    let outputs = tenure.handle(200 * S, TenureInput::Tick);
    assert_eq!(outputs, [TenureOutput::Froze, TenureOutput::Renew(2)]);
    tenure.handle(200 * S, TenureInput::RenewalSent(2));
    let answer = TenureInput::Answer(2, undecided());
    assert_eq!(tenure.handle(201 * S, answer), []);
    assert_eq!(tenure.next_tick(), Some(204 * S), "it asks again sooner");
    assert_eq!(
        tenure.handle(201 * S, TenureInput::ThawedOrStarted),
        [TenureOutput::Froze],
        "one that runs all the same is frozen"
    );
    tenure.handle(204 * S, TenureInput::Tick);
    tenure.handle(204 * S, TenureInput::RenewalSent(3));
    let thawed = tenure.handle(205 * S, TenureInput::Answer(3, Renewed::Ours));
    assert_eq!(thawed, [TenureOutput::Thaw(lease_end(204 * S))]);
}

#[test]
fn an_answer_later_than_its_lease_is_worth_nothing() {
    let mut tenure = asked();
    assert_eq!(
        tenure.handle(100 * S + LEASE, TenureInput::Answer(1, Renewed::Ours)),
        [TenureOutput::Renew(2)]
    );
    assert!(!tenure.may_run(100 * S + LEASE));
    let older = TenureInput::Answer(1, Renewed::Ours);
    assert_eq!(tenure.handle(131 * S, older), [], "nor twice");
}

#[test]
fn a_host_that_learns_of_a_newer_epoch_stops_for_good() {
    let mut tenure = asked();
    tenure.handle(101 * S, TenureInput::Answer(1, Renewed::Ours));
    tenure.handle(110 * S, TenureInput::Tick);
    tenure.handle(110 * S, TenureInput::RenewalSent(2));
    let (epoch, holder) = (Epoch(9), MemberId([3; 32]));
    let newer = Renewed::Newer { epoch, holder };
    assert_eq!(
        tenure.handle(111 * S, TenureInput::Answer(2, newer)),
        [TenureOutput::Lost { epoch, holder }]
    );
    assert_eq!(tenure.next_tick(), None);
    assert_eq!(tenure.handle(120 * S, TenureInput::Start), []);
    assert!(!tenure.may_run(112 * S));
}

#[test]
fn a_source_keeps_its_lease_while_its_voters_promise_the_next_epoch() {
    let mut tenure = asked();
    tenure.handle(101 * S, TenureInput::Answer(1, Renewed::Ours));
    tenure.handle(110 * S, TenureInput::Tick);
    tenure.handle(110 * S, TenureInput::RenewalSent(2));
    tenure.handle(110 * S, TenureInput::HandingOver);
    let newer = Renewed::Newer {
        epoch: Epoch(2),
        holder: MemberId([3; 32]),
    };
    assert_eq!(tenure.handle(111 * S, TenureInput::Answer(2, newer)), []);
    assert!(tenure.may_hand_over(115 * S, 13 * S));
    assert!(
        !tenure.may_hand_over(116 * S, 13 * S),
        "its end is too near"
    );
    assert_eq!(tenure.next_tick(), Some(lease_end(100 * S) - 2 * S));
}

fn inputs() -> impl Strategy<Value = (u64, TenureInput)> {
    let renewed = prop_oneof![Just(Renewed::Ours), Just(undecided())];
    let input = prop_oneof![
        Just(TenureInput::Tick),
        Just(TenureInput::Start),
        (1u64..6).prop_map(TenureInput::RenewalSent),
        (1u64..6, renewed).prop_map(|(serial, renewed)| TenureInput::Answer(serial, renewed)),
        Just(TenureInput::ThawedOrStarted),
        Just(TenureInput::HandingOver),
    ];
    (0u64..9_000, input)
}

proptest! {
    #[test]
    fn no_guest_runs_longer_than_from_a_sending_that_was_answered(
        inputs in proptest::collection::vec(inputs(), 1..60)
    ) {
        let mut tenure = Tenure::new(Terms::REAL);
        let (mut now, mut sent) = (100 * S, Vec::new());
        for (ms, input) in inputs {
            now += Duration::from_millis(ms);
            if matches!(input, TenureInput::RenewalSent(_)) {
                sent.push(now);
            }
            for output in tenure.handle(now, input) {
                if let TenureOutput::Arm(until) | TenureOutput::Thaw(until) = output {
                    prop_assert!(until > now);
                    prop_assert!(sent.iter().any(|at| lease_end(*at) == until));
                }
            }
            if tenure.may_run(now) {
                let newest = sent.iter().max().copied().unwrap_or_default();
                prop_assert!(now < lease_end(newest));
            }
        }
    }
}
