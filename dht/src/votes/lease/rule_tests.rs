//! What one voter promises about a protected VM. The model check covers several together.

use super::{
    super::{
        decide::{KeptPromise, Verdict},
        wire::{Promise, Proposal, Step},
    },
    Terms,
    ask::renewed,
    rule::{self, Judged, Lease},
    wire::RenewAnswer,
};
use crate::votes::{LEASE, Renewed};
use p2pvm_overlay::{Epoch, MemberId};
use proptest::prelude::*;
use std::time::Duration;

const NOW: Duration = Duration::from_secs(100);

fn member(n: u8) -> MemberId {
    MemberId([n; 32])
}

fn known(epoch: u64, holder: u8, confirmed: bool) -> KeptPromise {
    KeptPromise {
        promise: Promise {
            epoch: Epoch(epoch),
            holder: member(holder),
            confirmed,
        },
        was_confirmed: false,
        is_protected: true,
    }
}

fn leased(holder: u8, free_at: Duration) -> Lease {
    Lease {
        free_at,
        holder: Some(member(holder)),
    }
}

fn ask(
    (known, lease): (KeptPromise, Lease),
    from: u8,
    (step, epoch, holder): (Step, u64, u8),
) -> Judged {
    let proposal = Proposal {
        step,
        epoch: Epoch(epoch),
        holder: member(holder),
    };
    let asked = (member(from), &proposal);
    rule::judge(&Terms::REAL, (Some(known), lease), asked, NOW)
}

fn records(judged: Judged) -> Option<Promise> {
    match judged.verdict {
        Verdict::Record(promise) => Some(promise),
        _ => None,
    }
}

#[test]
fn a_running_lease_refuses_a_take_over_and_says_for_how_long() {
    let second = Duration::from_secs(1);
    let runs = (known(4, 1, true), leased(1, NOW + second));
    let refused = ask(runs, 2, (Step::TakeOver, 5, 2));
    assert_eq!(refused.verdict, Verdict::Leased(second));
    let over = (known(4, 1, true), leased(1, NOW));
    let granted = ask(over, 2, (Step::TakeOver, 5, 2));
    assert_eq!(records(granted), Some(known(5, 2, true).promise));
    assert_eq!(granted.lease, leased(2, NOW + LEASE));
    let older = ask(over, 2, (Step::TakeOver, 4, 2));
    assert_eq!(older.verdict, Verdict::Refuse(known(4, 1, true).promise));
}

#[test]
fn a_protected_vm_is_promised_by_its_holder_alone() {
    let of = (known(4, 1, true), leased(1, NOW + LEASE));
    let unasked = ask(of, 2, (Step::Promise, 5, 2));
    assert_eq!(unasked.verdict, Verdict::Refuse(known(4, 1, true).promise));
    let handed = ask(of, 1, (Step::Promise, 5, 2));
    assert_eq!(records(handed), Some(known(5, 2, false).promise));
    assert_eq!(handed.lease, of.1, "the source's lease goes on");
    let promised = (known(5, 2, false), of.1);
    assert_eq!(
        ask(promised, 2, (Step::Promise, 5, 2)).verdict,
        Verdict::Agree
    );
    let confirmed = ask(promised, 2, (Step::Confirm, 5, 2));
    assert_eq!(records(confirmed), Some(known(5, 2, true).promise));
    assert_eq!(confirmed.lease, leased(2, NOW + LEASE));
}

#[test]
fn only_the_source_takes_an_unconfirmed_epoch_back_while_its_lease_runs() {
    let promised = (known(5, 2, false), leased(1, NOW + LEASE));
    let others = ask(promised, 3, (Step::TakeBack, 6, 3));
    assert_eq!(others.verdict, Verdict::Refuse(known(5, 2, false).promise));
    let targets = ask(promised, 2, (Step::TakeBack, 6, 2));
    assert!(records(targets).is_none(), "it may not run yet");
    let sources = ask(promised, 1, (Step::TakeBack, 6, 1));
    assert_eq!(records(sources), Some(known(6, 1, true).promise));
    let confirmed = (known(5, 2, true), leased(2, NOW));
    let late = ask(confirmed, 1, (Step::TakeBack, 6, 1));
    assert!(matches!(late.verdict, Verdict::Refuse(_)));
}

#[test]
fn nobody_asks_in_another_members_name() {
    let of = (known(4, 1, true), leased(1, NOW));
    for step in [
        Step::TakeOver,
        Step::Confirm,
        Step::TakeBack,
        Step::Protect,
        Step::Forced,
    ] {
        let judged = ask(of, 3, (step, 5, 2));
        assert_eq!((judged.verdict, judged.lease), (Verdict::NotNamed, of.1));
    }
}

#[test]
fn a_persons_word_needs_no_lease_to_end() {
    let of = (known(4, 1, true), leased(1, NOW + LEASE));
    let forced = ask(of, 2, (Step::Forced, 5, 2));
    assert_eq!(records(forced), Some(known(5, 2, true).promise));
    assert!(records(ask(of, 2, (Step::Forced, 4, 2))).is_none());
}

#[test]
fn a_vm_that_is_not_protected_is_decided_as_before() {
    let plain = KeptPromise {
        is_protected: false,
        ..known(4, 1, true)
    };
    let of = (plain, leased(1, NOW + LEASE));
    let promised = ask(of, 9, (Step::Promise, 5, 2));
    assert_eq!(records(promised), Some(known(5, 2, false).promise));
    let taken = ask(of, 2, (Step::TakeOver, 5, 2));
    assert_eq!(taken.verdict, Verdict::Unprotected);
    let protected = ask(of, 1, (Step::Protect, 4, 1));
    let promise = records(protected).unwrap();
    assert!(plain.then(promise, Step::Protect).is_protected);
    assert_eq!(protected.lease, leased(1, NOW + LEASE));
    let ended = ask((known(4, 1, true), of.1), 1, (Step::Unprotect, 4, 1));
    let promise = records(ended).unwrap();
    assert!(
        !known(4, 1, true)
            .then(promise, Step::Unprotect)
            .is_protected
    );
}

#[test]
fn a_renewal_is_answered_for_the_confirmed_holder_and_epoch_alone() {
    let lease = leased(1, NOW);
    let renew = |known, from, epoch| {
        let asked = (member(from), Epoch(epoch));
        rule::renew(&Terms::REAL, (known, lease), asked, NOW)
    };
    let confirmed = known(4, 1, true);
    let ours = renew(Some(confirmed), 1, 4);
    assert_eq!(ours, (RenewAnswer::Ours, leased(1, NOW + LEASE)));
    let newer = RenewAnswer::Newer(confirmed.promise);
    assert_eq!(renew(Some(confirmed), 1, 3), (newer, lease));
    assert_eq!(renew(Some(confirmed), 2, 4), (newer, lease));
    let unprotected = KeptPromise {
        is_protected: false,
        ..confirmed
    };
    for behind in [
        None,
        Some(known(4, 1, false)),
        Some(known(3, 1, true)),
        Some(unprotected),
    ] {
        assert_eq!(renew(behind, 1, 4), (RenewAnswer::Unknown, lease));
    }
}

#[test]
fn a_majority_decides_what_a_renewal_came_to() {
    let (ours, unknown) = (Some(RenewAnswer::Ours), Some(RenewAnswer::Unknown));
    let newer = |epoch| Some(RenewAnswer::Newer(known(epoch, 2, true).promise));
    let of = |answers: [Option<RenewAnswer>; 3]| renewed(answers.into_iter());
    assert_eq!(of([ours, None, ours]), Renewed::Ours);
    assert_eq!(of([ours, newer(5), ours]), Renewed::Ours);
    let lost = Renewed::Newer {
        epoch: Epoch(6),
        holder: member(2),
    };
    assert_eq!(of([newer(5), newer(6), ours]), lost);
    let undecided = |answered| Renewed::Undecided { answered, asked: 3 };
    assert_eq!(of([ours, newer(5), None]), undecided(2));
    assert_eq!(of([ours, unknown, unknown]), undecided(3));
    assert_eq!(of([None, None, None]), undecided(0));
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Promise),
        Just(Step::TakeBack),
        Just(Step::Confirm),
        Just(Step::TakeOver),
        Just(Step::Protect),
        Just(Step::Deleted),
    ]
}

proptest! {
    /// Over any proposals: no epoch gets a second holder, none falls back, and while a lease runs
    /// only its holder's word, or a target's confirmation, changes the epoch.
    #[test]
    fn a_running_lease_gives_way_to_its_holder_alone(
        asked in proptest::collection::vec((0u64..12, 1u8..4, steps(), 1u64..8, 1u8..4), 1..40)
    ) {
        let (mut kept, mut lease) = (known(1, 1, true), leased(1, NOW + LEASE));
        let mut now = NOW;
        for (seconds, from, step, epoch, holder) in asked {
            now += Duration::from_secs(seconds);
            let proposal = Proposal { step, epoch: Epoch(epoch), holder: member(holder) };
            let asked = (member(from), &proposal);
            let judged = rule::judge(&Terms::REAL, (Some(kept), lease), asked, now);
            if let Verdict::Record(new) = judged.verdict {
                let old = kept.promise;
                let is_same = (new.epoch, new.holder) == (old.epoch, old.holder);
                prop_assert!(new.epoch > old.epoch || is_same);
                let runs = kept.is_protected && now < lease.free_at && !is_same;
                let is_holder = lease.holder == Some(member(from));
                let confirms = matches!(step, Step::Confirm | Step::Protect);
                prop_assert!(!runs || is_holder || confirms);
                kept = kept.then(new, step);
            }
            lease = judged.lease;
        }
    }
}
