//! Whether a VM may run here. A host asks its voters whenever that is in doubt: after a restart,
//! after a migration that broke, when a peer reports that the epoch is old. A VM that is confirmed
//! for no other member is claimed under a new epoch: a majority grants it (phase 1) and confirms it
//! (phase 2) before the answer is yes.

use super::{Entry, Host};
use crate::ballot::{BallotError, Ground, VmVoters, after};
use p2pvm_dht::{
    VoterSet,
    votes::lease::{Holding, Renewed},
};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

/// Which member a VM belongs to, by its voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This host's, in that epoch, confirmed by a majority.
    Ours(Epoch),
    /// Another member's, confirmed.
    Theirs {
        /// That member.
        holder: MemberId,
        /// In which epoch.
        epoch: Epoch,
    },
}

/// How many times a claim is repeated after another one has overtaken it. Reason: random pauses end
/// a race of two within a few rounds.
const ROUNDS: usize = 4;

impl Host {
    /// Asks the voters which member the VM belongs to; claims it unless another has it confirmed.
    pub(crate) async fn claim(&self, entry: &Entry) -> Result<Ownership, BallotError> {
        let (keys, ballot) = (entry.secret.keys(), &self.parts.ballot);
        let vm = VmVoters {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        let mut round = 0;
        loop {
            let newest = ballot.newest(vm).await?;
            let epoch = match newest {
                Some(n) if n.confirmed && n.holder != self.me => {
                    if entry.leased && self.is_renewed(entry).await {
                        return Ok(Ownership::Ours(entry.epoch));
                    }
                    return Ok(Ownership::Theirs {
                        holder: n.holder,
                        epoch: n.epoch,
                    });
                }
                Some(n) if n.confirmed && n.epoch >= entry.epoch => {
                    return Ok(Ownership::Ours(n.epoch));
                }
                Some(n) => after(n.epoch.max(entry.epoch))?,
                None => entry.epoch,
            };
            let claimed = async {
                ballot.grant(vm, epoch, self.me, Ground::Doubt).await?;
                ballot.confirm(vm, epoch, self.me).await
            };
            match claimed.await {
                Ok(()) => return Ok(Ownership::Ours(epoch)),
                Err(BallotError::Refused { .. }) if round < ROUNDS => {
                    round += 1;
                    // Random pauses end a race of two claims.
                    let pause = rand::random_range(50..400u64 << round);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether a majority of the voters renews the VM's lease, in the entry's own epoch. A newer
    /// epoch that one of them confirmed was then refused by the others: an heir's take-over is
    /// promise and confirmation in one, and may reach a minority only.
    async fn is_renewed(&self, entry: &Entry) -> bool {
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        let epoch = entry.epoch;
        let said = self.parts.ballot.renew(&[Holding { set, epoch }]).await;
        said.first() == Some(&Renewed::Ours)
    }

    /// Whether the voters hold this VM confirmed for this host in the entry's own epoch; claims
    /// nothing. In another one, it is another incarnation's here.
    pub(crate) async fn is_confirmed_here(&self, entry: &Entry) -> Result<bool, BallotError> {
        let keys = entry.secret.keys();
        let newest = self
            .parts
            .ballot
            .newest(VmVoters {
                keys: &keys,
                voters: &entry.definition.voters,
            })
            .await?;
        Ok(newest.is_some_and(|n| n.confirmed && n.holder == self.me && n.epoch == entry.epoch))
    }
}
