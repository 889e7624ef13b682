//! Which member may run a VM in which epoch: what must never be decided twice. A VM's record names
//! its voters (three members); each voter promises an epoch to at most one holder and never an
//! older one, durably, before it answers. A majority of promises is a [`Grant`].
//!
//! A grant made for a migration is *provisional*: the target may run at once, but must confirm it
//! with a majority within its window or freeze. The member that takes the VM back
//! ([`Votes::take_back`]) first waits until that window has passed, and a voter that has seen the
//! confirmation refuses the take-back. A voter that promised the newer epoch refuses the late
//! confirmation, so by the majorities' overlap only one of the two can succeed.
//!
//! The voters are named once, in a [`VoterSet`] signed with the VM's key; a voter pins the first
//! set that it gets. It decides over a bounded number of VMs for each member ([`VoteLimits`]), and
//! forgets a VM some time after its holder reported that it was deleted ([`Votes::deleted`]).
//!
//! A VM may be *protected*: its holder then renews a [`lease`], and another member is granted the
//! next epoch without the holder once the lease has run out.

use p2pvm_overlay::{
    Epoch, MemberId, VmId,
    identity::{self, KeyPair, Signature},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

mod ask;
mod decide;
mod entry;
#[cfg(test)]
mod golden_tests;
pub mod lease;
mod log;
mod turns;
mod voter;
mod wire;

pub use ask::{CALL_TIMEOUT, Votes};
pub use lease::{Holding, LEASE, LeaseView, RENEW_EVERY, Renewed, lease_end};
pub use log::{LogError, VoterLog};
pub use turns::{LAST_EPOCH, MAX_STEP, VoteLimits, VoteRefusal, after};
pub use voter::{Voter, parse_request};

/// The service that voters answer.
pub const SERVICE: &str = "vote";

/// How many voters a VM names at most; three is usual.
pub const MAX_VOTERS: usize = 7;

const SET_DOMAIN: &str = "p2pvm voter set 1";
const PROMISE_DOMAIN: &str = "p2pvm promise 1";

fn bytes<T: Serialize>(fields: &T) -> Vec<u8> {
    postcard::to_allocvec(fields).expect("plain fields always serialize")
}

/// The members that decide over a VM. The VM's own key signs it, so that no other member can name
/// voters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterSet {
    /// The VM.
    pub vm: VmId,
    /// Its voters, sorted, without repetition.
    pub voters: Vec<MemberId>,
    /// The VM key's signature over both.
    pub signature: Signature,
}

impl VoterSet {
    /// Names `voters` for the VM of `keys`. They are sorted here, and repeated ones dropped.
    pub fn sign(keys: &KeyPair, voters: &[MemberId]) -> Self {
        let mut voters = voters.to_vec();
        voters.sort();
        voters.dedup();
        let vm = keys.vm_id();
        let signature = keys.sign(SET_DOMAIN, &bytes(&(vm, &voters)));
        Self {
            vm,
            voters,
            signature,
        }
    }

    /// Whether the VM's key signed it and it names 1 to [`MAX_VOTERS`] voters in order.
    pub fn is_authentic(&self) -> bool {
        are_voters(&self.voters)
            && identity::verify(
                &self.vm.0,
                SET_DOMAIN,
                &bytes(&(self.vm, &self.voters)),
                &self.signature,
            )
    }

    /// How many voters decide.
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

fn are_voters(voters: &[MemberId]) -> bool {
    (1..=MAX_VOTERS).contains(&voters.len()) && voters.is_sorted_by(|a, b| a < b)
}

/// A majority's promise that `holder` alone may run `vm` in `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The VM.
    pub vm: VmId,
    /// The epoch granted.
    pub epoch: Epoch,
    /// The member that may run it.
    pub holder: MemberId,
    /// The VM's voters, sorted; a majority of them signed.
    pub voters: Vec<MemberId>,
    /// Voters and their signatures over (vm, epoch, holder, voters).
    pub promises: Vec<(MemberId, Signature)>,
}

pub(crate) fn promise_message(
    vm: VmId,
    epoch: Epoch,
    holder: MemberId,
    voters: &[MemberId],
) -> Vec<u8> {
    bytes(&(vm, epoch, holder, voters))
}

impl Grant {
    /// Whether a majority of the named voters signed. [`Grant::is_by`] also checks that they are
    /// the VM's.
    pub fn verify(&self) -> bool {
        if !are_voters(&self.voters) {
            return false;
        }
        let message = promise_message(self.vm, self.epoch, self.holder, &self.voters);
        let signed = |voter: &MemberId| {
            self.promises.iter().any(|(by, signature)| {
                by == voter && identity::verify(&voter.0, PROMISE_DOMAIN, &message, signature)
            })
        };
        self.promises.len() <= self.voters.len()
            && self.voters.iter().filter(|v| signed(v)).count() > self.voters.len() / 2
    }

    /// Whether it is a valid grant by exactly these voters.
    pub fn is_by(&self, set: &VoterSet) -> bool {
        self.vm == set.vm && self.voters == set.voters && set.is_authentic() && self.verify()
    }
}

/// The newest epoch that any voter of an answering majority has promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewestEpoch {
    /// The epoch.
    pub epoch: Epoch,
    /// The member that it was promised to.
    pub holder: MemberId,
    /// A voter has seen the holder's confirmation.
    pub confirmed: bool,
    /// Whether a majority answered that it has promised it. If not, it may be an attempt that
    /// failed half way, or one whose other promises were not among the answers: the holder of an
    /// older epoch then asks for the epoch after it, and runs on if that is granted.
    pub granted: bool,
}

/// Why the voters did not grant or confirm.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum VoteError {
    /// Too many voters promised this or a newer epoch to another holder for a majority to remain.
    #[error("the voters promised epoch {newest} to {}", .holder.short())]
    Refused {
        /// The newest epoch a refusing voter promised.
        newest: Epoch,
        /// The member that it was promised to.
        holder: MemberId,
    },
    /// Fewer voters than a majority answered.
    #[error("only {answered} of {asked} voters answered: a majority is needed")]
    NoMajority {
        /// How many answered.
        answered: usize,
        /// How many were asked.
        asked: usize,
    },
    /// Too few voters agreed for a majority, and one of them said why it does not decide: its disk
    /// is full, or a limit is reached.
    #[error("{} does not decide: {reason}", .voter.short())]
    Declined {
        /// The voter.
        voter: MemberId,
        /// Its reason.
        reason: String,
    },
    /// The VM is protected, and the lease of its host still runs at too many voters for a majority.
    #[error("the host's lease runs for {} s more: ask again then", .free_in.as_secs() + 1)]
    Leased {
        /// How long until each voter that said so is free.
        free_in: Duration,
    },
    /// No voter can grant the request: the key is wrong, the voter set is forged or empty, or it
    /// names other voters than those pinned.
    #[error("the request is invalid: {0}")]
    Invalid(&'static str),
}
