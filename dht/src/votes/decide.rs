//! What a voter decides about a proposal for a VM that is not protected: one pure rule over its
//! newest promise. It is the promise of Paxos (Lamport 1998) with the epoch as the ballot: never an
//! older epoch, and one holder for each epoch.

use super::{
    entry::LogEntry,
    wire::{Promise, Proposal, Step},
};
use std::time::Duration;

/// What a voter does about a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write this promise to the log, then agree.
    Record(Promise),
    /// Agree: it is in the log already.
    Agree,
    /// Refuse because of this promise.
    Refuse(Promise),
    /// Refuse: the VM's lease runs for so long.
    Leased(Duration),
    /// Refuse: the VM is not protected, so that no lease says when its host is gone.
    Unprotected,
    /// Refuse: the request came from another member than it names.
    NotNamed,
}

/// What a voter's log has of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KeptPromise {
    /// The newest promise.
    pub(crate) promise: Promise,
    /// Its holder has confirmed an older epoch, and runs in that one until it runs in the new one.
    pub(crate) was_confirmed: bool,
    /// The VM is protected.
    pub(crate) is_protected: bool,
}

impl KeptPromise {
    /// Of an entry of the log.
    pub(crate) fn of(entry: &LogEntry) -> Self {
        Self {
            promise: entry.promise,
            was_confirmed: entry.was_confirmed,
            is_protected: entry.is_protected,
        }
    }

    /// What is kept after a step that ended with this promise.
    pub(crate) fn then(self, promise: Promise, step: Step) -> Self {
        let is_same_holder = promise.holder == self.promise.holder;
        Self {
            promise,
            was_confirmed: is_same_holder && (self.promise.confirmed || self.was_confirmed),
            is_protected: match step {
                Step::Protect => true,
                Step::Unprotect | Step::Deleted => false,
                _ => self.is_protected,
            },
        }
    }
}

/// The rule for a VM that is not protected. A proposal at the epoch already promised to the same
/// holder is agreed to again; a confirmation also counts as a promise where the promise itself
/// never arrived. Only the newest holder may report that the VM was deleted.
pub(crate) fn decide(known: Option<KeptPromise>, proposal: &Proposal) -> Verdict {
    let confirmed = proposal.step == Step::Confirm;
    let new = Verdict::Record(Promise {
        epoch: proposal.epoch,
        holder: proposal.holder,
        confirmed,
    });
    let Some(known) = known else {
        return if proposal.step == Step::Deleted {
            Verdict::Agree
        } else {
            new
        };
    };
    let KeptPromise {
        promise,
        was_confirmed,
        ..
    } = known;
    let is_same_holder = promise.holder == proposal.holder;
    let same = promise.epoch == proposal.epoch && is_same_holder;
    match proposal.step {
        Step::Deleted if is_same_holder => Verdict::Record(promise),
        Step::Deleted => Verdict::Refuse(promise),
        _ if same && (promise.confirmed || !confirmed) => Verdict::Agree,
        Step::Confirm if same => new,
        Step::TakeBack if (promise.confirmed || was_confirmed) && !is_same_holder => {
            Verdict::Refuse(promise)
        }
        _ if proposal.epoch > promise.epoch => new,
        _ => Verdict::Refuse(promise),
    }
}
