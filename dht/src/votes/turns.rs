//! How many VMs a voter decides over, and how many requests of one member wait for it: a flood uses
//! up the share of the member that makes it, not the others'.

use super::VoteError;
use p2pvm_overlay::lock;
use p2pvm_overlay::{Epoch, MemberId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// How many epochs one request may skip.
/// Reason: a voter may have missed thousands of moves; without a bound, a member that once had the
/// VM's key could ask for an epoch near the last one and so end the VM's moves for good.
pub const MAX_STEP: u64 = 1 << 16;

/// The last epoch.
/// Reason: packets and the versions of records have 32 bits for it.
pub const LAST_EPOCH: Epoch = Epoch(u32::MAX as u64);

/// The epoch after one, for a new holder.
///
/// # Errors
/// [`VoteError::Invalid`] after the last.
pub fn after(epoch: Epoch) -> Result<Epoch, VoteError> {
    if epoch < LAST_EPOCH {
        return Ok(epoch.next());
    }
    Err(VoteError::Invalid("the VM has reached the last epoch"))
}

/// The bounds of a voter.
#[derive(Clone, Copy, Debug)]
pub struct VoteLimits {
    /// VMs with a promise. Each takes 256 bytes on the disk, and up to four times that until the
    /// log is compacted.
    pub vms: usize,
    /// VMs that the requests of one member have brought: a quarter of all.
    pub member_vms: usize,
    /// Requests of one member that wait at a time.
    pub waiting: usize,
}

impl Default for VoteLimits {
    fn default() -> Self {
        Self {
            vms: 16_384,
            member_vms: 4096,
            waiting: 32,
        }
    }
}

/// Why a voter does not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoteRefusal {
    /// The member has brought its share of VMs.
    #[error(
        "this voter decides over {0} VMs for this member, as many as one may have: delete some \
        VMs, or make them on another member"
    )]
    MemberLimit(usize),
    /// The voter has its number of VMs.
    #[error("this voter decides over {0} VMs, the most it can: delete some VMs")]
    Full(usize),
    /// Too many of the member's requests wait already.
    #[error("{0} requests of this member wait here already: ask again later")]
    TooFast(usize),
    /// The epoch is too far beyond the newest one known.
    #[error(
        "epoch {wanted} is more than {MAX_STEP} beyond epoch {known}, the newest here, or \
        beyond the last one: ask for the next epoch"
    )]
    TooFar {
        /// The epoch asked for.
        wanted: Epoch,
        /// The newest promised.
        known: Epoch,
    },
    /// A member other than the VM's holder reports that the VM was deleted.
    #[error("only the member that holds the VM may say that it was deleted")]
    NotHolder,
    /// A member asks in another one's name.
    #[error("only the member that is to hold the VM may ask for this: ask from there")]
    NotNamed,
}

/// Whether an epoch may follow another one.
pub(super) fn may_follow(wanted: Epoch, known: Epoch) -> Result<(), VoteRefusal> {
    if wanted <= LAST_EPOCH && wanted.0 <= known.0.saturating_add(MAX_STEP) {
        return Ok(());
    }
    Err(VoteRefusal::TooFar { wanted, known })
}

/// The requests that wait, by member.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<MemberId, usize>>>);

/// One waiting request of a member, until it is dropped.
pub(super) struct Turn(Turns, MemberId);

impl Turns {
    /// Counts one more waiting request of the member, of at most `most`.
    pub(super) fn take(&self, member: MemberId, most: usize) -> Result<Turn, VoteRefusal> {
        let mut waiting = self.waiting();
        let count = waiting.entry(member).or_default();
        if *count >= most {
            return Err(VoteRefusal::TooFast(*count));
        }
        *count += 1;
        Ok(Turn(self.clone(), member))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<MemberId, usize>> {
        lock(&self.0)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        let count = waiting
            .get_mut(&self.1)
            .expect("a turn is counted until it ends");
        *count -= 1;
        if *count == 0 {
            waiting.remove(&self.1);
        }
    }
}
