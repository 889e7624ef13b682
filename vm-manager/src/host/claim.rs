//! May the VM run here? Asked whenever it is in doubt: after a restart, after a migration that
//! broke, when a peer says the epoch is old. A VM that nobody has confirmed elsewhere is claimed
//! under a new epoch: a majority grants it (phase 1) and confirms it (phase 2) before the answer is
//! yes.

use super::{Entry, Host};
use crate::ballot::{BallotError, Ground, Voted};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

/// Whose a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// This host's, in that epoch, confirmed by a majority.
    Ours(Epoch),
    /// Another's, confirmed.
    Theirs {
        /// Whose.
        holder: MemberId,
        /// In which epoch.
        epoch: Epoch,
    },
}

/// How often a claim that another claim outran is made again before it is left to a later time.
const ROUNDS: usize = 4;

impl Host {
    /// Settles with the voters whose the VM is; claims it if nobody else has it confirmed.
    pub(crate) async fn claim(&self, entry: &Entry) -> Result<Claimed, BallotError> {
        let (keys, ballot) = (entry.secret.keys(), &self.parts.ballot);
        let vm = Voted {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        let mut round = 0;
        loop {
            let newest = ballot.newest(vm).await?;
            let epoch = match newest {
                Some(n) if n.confirmed && n.holder != self.me => {
                    return Ok(Claimed::Theirs {
                        holder: n.holder,
                        epoch: n.epoch,
                    });
                }
                Some(n) if n.confirmed && n.epoch >= entry.epoch => {
                    return Ok(Claimed::Ours(n.epoch));
                }
                Some(n) => n.epoch.max(entry.epoch).next(),
                None => entry.epoch,
            };
            let claimed = async {
                ballot.grant(vm, epoch, self.me, Ground::Doubt).await?;
                ballot.confirm(vm, epoch, self.me).await
            };
            match claimed.await {
                Ok(()) => return Ok(Claimed::Ours(epoch)),
                Err(BallotError::Refused { .. }) if round < ROUNDS => {
                    round += 1;
                    // Two claims that keep outrunning each other part by chance.
                    let pause = rand::random_range(50..400u64 << round);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether the voters hold this VM confirmed for this host right now, claiming nothing.
    pub(crate) async fn is_confirmed_here(
        &self,
        entry: &Entry,
    ) -> Result<Option<Epoch>, BallotError> {
        let keys = entry.secret.keys();
        let newest = self
            .parts
            .ballot
            .newest(Voted {
                keys: &keys,
                voters: &entry.definition.voters,
            })
            .await?;
        Ok(newest
            .filter(|n| n.confirmed && n.holder == self.me)
            .map(|n| n.epoch))
    }
}
