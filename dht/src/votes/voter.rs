//! The voter: one pure rule ([`decide`]) over what it remembers, and a thin shell that flushes the
//! log before it answers. The rule is Paxos' promise (Lamport 1998) with the epoch as the ballot:
//! never an older epoch, one holder an epoch.

use super::{
    LogError, PROMISE_DOMAIN, SERVICE, VoterLog, VoterSet,
    log::Memory,
    promise_message,
    wire::{self, Ask, Promise, Reply, Request, Step, Wish},
};
use async_trait::async_trait;
use p2pvm_overlay::{Fabric, MemberId, Serve, chain, identity::Identity};
use std::sync::{Arc, Mutex, PoisonError};

/// What a voter does about a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Remember this promise durably, then agree.
    Record(Promise),
    /// Agree: it is already remembered.
    Agree,
    /// Refuse because of this promise.
    Refuse(Promise),
}

/// The rule. A wish at the epoch already promised to the same holder is agreed to again; a
/// confirmation also counts as a promise where the promise itself never arrived.
pub(crate) fn decide(known: Option<Promise>, wish: &Wish) -> Decision {
    let confirmed = wish.step == Step::Confirm;
    let new = Decision::Record(Promise {
        epoch: wish.epoch,
        holder: wish.holder,
        confirmed,
    });
    let Some(known) = known else { return new };
    let same = known.epoch == wish.epoch && known.holder == wish.holder;
    match wish.step {
        _ if same && (known.confirmed || !confirmed) => Decision::Agree,
        Step::Confirm if same => new,
        Step::TakeBack if known.confirmed && known.holder != wish.holder => Decision::Refuse(known),
        _ if wish.epoch > known.epoch => new,
        _ => Decision::Refuse(known),
    }
}

/// This node's vote: answers the service "vote" as long as the fabric does.
pub struct Voter {
    identity: Arc<Identity>,
    log: Mutex<VoterLog>,
}

impl Voter {
    /// Serves votes from now on, signed by `identity`, remembered in `log`.
    pub fn start(fabric: &Arc<dyn Fabric>, identity: Arc<Identity>, log: VoterLog) -> Arc<Self> {
        let voter = Arc::new(Self {
            identity,
            log: Mutex::new(log),
        });
        fabric.serve(SERVICE, Arc::new(Service(voter.clone())));
        voter
    }

    /// How many VMs this node has promised something about.
    pub fn vms(&self) -> usize {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .vms()
    }

    fn answer(&self, request: &Request) -> Result<Reply, LogError> {
        let Request { set, ask } = request;
        let me = self.identity.member_id();
        if !set.is_authentic() || !set.voters.contains(&me) {
            return Ok(Reply::Invalid);
        }
        let voters = hash_of(set);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let known = log.recall(&set.vm).copied();
        if known.is_some_and(|k| k.voters != voters) {
            return Ok(Reply::OtherVoters);
        }
        let (wish, signature) = match ask {
            Ask::Newest => return Ok(Reply::Newest(known.map(|k| k.promise))),
            Ask::Change(wish, signature) => (wish, signature),
        };
        if !wire::is_wish_of(set.vm, wish, signature) {
            return Ok(Reply::Invalid);
        }
        match decide(known.map(|k| k.promise), wish) {
            Decision::Refuse(promise) => return Ok(Reply::Refused(promise)),
            Decision::Record(promise) => log.remember(set.vm, Memory { promise, voters })?,
            Decision::Agree => {}
        }
        drop(log);
        Ok(match wish.step {
            Step::Confirm => Reply::Confirmed,
            Step::Promise | Step::TakeBack => {
                let message = promise_message(set.vm, wish.epoch, wish.holder, &set.voters);
                Reply::Promised(self.identity.sign(PROMISE_DOMAIN, &message))
            }
        })
    }
}

fn hash_of(set: &VoterSet) -> [u8; 32] {
    blake3::derive_key("p2pvm 2026 voters of a VM", &super::bytes(&set.voters))
}

struct Service(Arc<Voter>);

#[async_trait]
impl Serve for Service {
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let request: Request = wire::parse(&body).ok_or("not a vote request")?;
        let voter = self.0.clone();
        // The flush blocks for milliseconds: not on a thread that others wait for.
        let answered = tokio::task::spawn_blocking(move || voter.answer(&request)).await;
        let reply = answered
            .map_err(|e| format!("the voter failed: {e}"))?
            .map_err(|e| {
                let why = chain(&e);
                tracing::error!(error = %why, "cannot vote");
                why
            })?;
        Ok(wire::emit(&reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::Epoch;
    use proptest::prelude::*;

    fn wishes() -> impl Strategy<Value = Wish> {
        (
            prop_oneof![
                Just(Step::Promise),
                Just(Step::TakeBack),
                Just(Step::Confirm)
            ],
            1u64..6,
            1u8..4,
        )
            .prop_map(|(step, epoch, holder)| Wish {
                step,
                epoch: Epoch(epoch),
                holder: MemberId([holder; 32]),
            })
    }

    proptest! {
        #[test]
        fn a_voter_promises_an_epoch_to_one_holder_and_never_an_older_one(
            wishes in proptest::collection::vec(wishes(), 1..30)
        ) {
            let mut known: Option<Promise> = None;
            for wish in wishes {
                match decide(known, &wish) {
                    Decision::Record(new) => {
                        prop_assert_eq!((new.epoch, new.holder), (wish.epoch, wish.holder));
                        if let Some(old) = known {
                            prop_assert!(
                                new.epoch > old.epoch || (
                                    new.epoch == old.epoch && new.holder == old.holder && new.confirmed
                                )
                            );
                            prop_assert!(
                                !(
                                    wish.step == Step::TakeBack && old.confirmed && old.holder != new.holder
                                )
                            );
                        }
                        known = Some(new);
                    }
                    Decision::Agree => prop_assert_eq!(
                        known.map(|k| (k.epoch, k.holder)), Some((wish.epoch, wish.holder))
                    ),
                    Decision::Refuse(why) => prop_assert_eq!(Some(why), known),
                }
            }
        }
    }
}
