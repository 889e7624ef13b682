//! What must never happen twice is decided here: which member may run a VM in which epoch. A VM's record
//! names its voters (three members); each voter promises an epoch to at most one holder and never an older
//! one, durably, before it answers. A majority of promises is a [`Grant`].
//!
//! A grant made for a migration is *provisional*: the target may run at once, but has to confirm it with a
//! majority within its window or freeze; whoever asks for the next epoch first waits that window out.

use p2pvm_overlay::{Epoch, MemberId, VmId, identity::Signature};
use serde::{Deserialize, Serialize};

/// A majority's promise that `holder` alone may run `vm` in `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The VM.
    pub vm: VmId,
    /// The epoch granted.
    pub epoch: Epoch,
    /// Who may run it.
    pub holder: MemberId,
    /// The VM's voters, sorted, of whom a majority signed.
    pub voters: Vec<MemberId>,
    /// Voters and their signatures over (vm, epoch, holder, voters).
    pub promises: Vec<(MemberId, Signature)>,
}
