//! The voter's rule. For a VM that is not protected it is [`decide`], and who
//! asks is not looked at. For a protected one a request counts only from the member that it names,
//! and whether a newer epoch is given depends on who holds the VM now and how long its lease runs.

use super::{
    super::{
        decide::{KeptPromise, Verdict, decide},
        wire::{Promise, Proposal, Step},
    },
    Mutant, Terms,
    wire::RenewAnswer,
};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

/// What a voter knows of a VM's lease. It is in memory only: a voter that restarted waits a whole
/// lease, so that no renewal needs a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    /// From when on an unasked take-over is granted, by the voter's clock.
    pub(crate) free_at: Duration,
    /// The member that this lease was granted to; `None` after the voter's restart.
    pub(crate) holder: Option<MemberId>,
}

impl Lease {
    /// What a voter that started at `started` has to assume of every VM.
    pub(crate) fn after_start(terms: &Terms, started: Duration) -> Self {
        let wait = if terms.has(Mutant::NoQuarantine) {
            Duration::ZERO
        } else {
            terms.lease
        };
        Self {
            free_at: started + wait,
            holder: None,
        }
    }

    fn granted(terms: &Terms, now: Duration, holder: MemberId) -> Self {
        Self {
            free_at: now + terms.lease,
            holder: Some(holder),
        }
    }
}

/// A voter's answer to a proposal, and the lease afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    pub(crate) lease: Lease,
}

/// Whether a request for this step counts only from the member that it names.
pub(crate) fn is_personal(step: Step, is_protected: bool) -> bool {
    match step {
        Step::TakeOver | Step::Protect | Step::Unprotect | Step::Forced => true,
        Step::Confirm | Step::TakeBack => is_protected,
        // A source promises its VM to the target; `Deleted` has its own check.
        Step::Promise | Step::Deleted => false,
    }
}

/// Decides over a proposal of the member `from`, which came at `now`.
pub(crate) fn judge(
    terms: &Terms,
    (known, lease): (Option<KeptPromise>, Lease),
    (from, proposal): (MemberId, &Proposal),
    now: Duration,
) -> Judged {
    let is_protected = known.is_some_and(|k| k.is_protected);
    if is_personal(proposal.step, is_protected) && from != proposal.holder {
        return Judged {
            verdict: Verdict::NotNamed,
            lease,
        };
    }
    let verdict = match (known, proposal.step) {
        (Some(known), Step::Promise | Step::TakeBack | Step::Confirm | Step::TakeOver)
            if is_protected =>
        {
            protected(terms, (&known, lease), (from, proposal), now)
        }
        (Some(known), Step::Forced) if is_protected => by_a_person(&known, proposal),
        (_, Step::TakeOver) => Verdict::Unprotected,
        (known, Step::Protect | Step::Unprotect) => with_flag(known, proposal),
        _ => decide(known, proposal),
    };
    let agreed = matches!(verdict, Verdict::Record(_) | Verdict::Agree);
    let lease = match proposal.step {
        Step::Deleted | Step::Unprotect => lease,
        Step::Promise if agreed && terms.has(Mutant::PromiseEndsLease) => Lease {
            free_at: now,
            ..lease
        },
        Step::Promise => lease,
        Step::Protect if agreed => Lease::granted(terms, now, from),
        _ if agreed && is_protected => Lease::granted(terms, now, from),
        _ => lease,
    };
    Judged { verdict, lease }
}

fn protected(
    terms: &Terms,
    (known, lease): (&KeptPromise, Lease),
    (from, proposal): (MemberId, &Proposal),
    now: Duration,
) -> Verdict {
    let newest = known.promise;
    let is_newer = proposal.epoch > newest.epoch;
    let same = proposal.epoch == newest.epoch && proposal.holder == newest.holder;
    let is_free = now >= lease.free_at || terms.has(Mutant::IgnoresLease);
    let record = |confirmed| {
        Verdict::Record(Promise {
            epoch: proposal.epoch,
            holder: proposal.holder,
            confirmed,
        })
    };
    match proposal.step {
        Step::Promise if same => Verdict::Agree,
        Step::Promise => {
            let is_holders = newest.holder == from && newest.confirmed;
            if is_newer && (is_holders || terms.has(Mutant::UnaskedPromise)) {
                record(false)
            } else {
                Verdict::Refuse(newest)
            }
        }
        _ if same && newest.confirmed => Verdict::Agree,
        Step::Confirm if same || is_newer => record(true),
        Step::TakeBack if is_newer && may_take_back(known, lease, from, is_free) => record(true),
        Step::TakeOver if is_newer && is_free => record(true),
        Step::TakeOver if is_newer => Verdict::Leased(lease.free_at.saturating_sub(now)),
        _ => Verdict::Refuse(newest),
    }
}

/// Whether the asking member runs the newest epoch or the one before it, or the newest one's holder
/// has not confirmed it: such a one gives way to the member whose lease still runs here. A target
/// that was promised the VM is not yet its holder.
fn may_take_back(known: &KeptPromise, lease: Lease, from: MemberId, is_free: bool) -> bool {
    if known.promise.confirmed || known.was_confirmed {
        return known.promise.holder == from;
    }
    is_free || lease.holder == Some(from)
}

/// A person's word needs no lease to end.
fn by_a_person(known: &KeptPromise, proposal: &Proposal) -> Verdict {
    let newest = known.promise;
    let same = proposal.epoch == newest.epoch && proposal.holder == newest.holder;
    if same && newest.confirmed {
        return Verdict::Agree;
    }
    if same || proposal.epoch > newest.epoch {
        return Verdict::Record(Promise {
            epoch: proposal.epoch,
            holder: proposal.holder,
            confirmed: true,
        });
    }
    Verdict::Refuse(newest)
}

/// A confirmation that also sets whether the VM is protected.
fn with_flag(known: Option<KeptPromise>, proposal: &Proposal) -> Verdict {
    let confirm = Proposal {
        step: Step::Confirm,
        ..*proposal
    };
    let wanted = proposal.step == Step::Protect;
    match decide(known, &confirm) {
        Verdict::Agree if known.is_some_and(|k| k.is_protected != wanted) => {
            Verdict::Record(Promise {
                epoch: proposal.epoch,
                holder: proposal.holder,
                confirmed: true,
            })
        }
        verdict => verdict,
    }
}

/// Decides over a renewal; the lease afterwards.
pub(crate) fn renew(
    terms: &Terms,
    (known, lease): (Option<KeptPromise>, Lease),
    (from, epoch): (MemberId, Epoch),
    now: Duration,
) -> (RenewAnswer, Lease) {
    let granted = Lease::granted(terms, now, from);
    let Some(KeptPromise {
        promise,
        is_protected,
        ..
    }) = known
    else {
        return (RenewAnswer::Unknown, lease);
    };
    let is_same = promise.epoch == epoch && promise.holder == from;
    if is_same && promise.confirmed && is_protected {
        return (RenewAnswer::Ours, granted);
    }
    if promise.epoch > epoch && terms.has(Mutant::RenewAfterNewer) {
        return (RenewAnswer::Ours, granted);
    }
    if promise.epoch >= epoch && !is_same {
        return (RenewAnswer::Newer(promise), lease);
    }
    (RenewAnswer::Unknown, lease)
}
