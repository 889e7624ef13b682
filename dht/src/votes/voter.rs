//! The voter: one pure rule ([`decide`]) over its newest promise, and a thin shell that flushes the
//! log before it answers. The rule is the promise of Paxos (Lamport 1998) with the epoch as the
//! ballot: never an older epoch, and one holder for each epoch.

use super::{
    LogError, PROMISE_DOMAIN, SERVICE, VoterLog, VoterSet,
    log::LogEntry,
    promise_message,
    wire::{self, Promise, Proposal, Question, Reply, Request, Step},
};
use async_trait::async_trait;
use p2pvm_overlay::{Fabric, MemberId, Serve, chain, identity::Identity};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinError;

/// What a voter does about a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write this promise to the log, then agree.
    Record(Promise),
    /// Agree: it is in the log already.
    Agree,
    /// Refuse because of this promise.
    Refuse(Promise),
}

/// The rule. A proposal at the epoch already promised to the same holder is agreed to again; a
/// confirmation also counts as a promise where the promise itself never arrived.
pub(crate) fn decide(known: Option<Promise>, proposal: &Proposal) -> Verdict {
    let confirmed = proposal.step == Step::Confirm;
    let new = Verdict::Record(Promise {
        epoch: proposal.epoch,
        holder: proposal.holder,
        confirmed,
    });
    let Some(known) = known else { return new };
    let same = known.epoch == proposal.epoch && known.holder == proposal.holder;
    match proposal.step {
        _ if same && (known.confirmed || !confirmed) => Verdict::Agree,
        Step::Confirm if same => new,
        Step::TakeBack if known.confirmed && known.holder != proposal.holder => {
            Verdict::Refuse(known)
        }
        _ if proposal.epoch > known.epoch => new,
        _ => Verdict::Refuse(known),
    }
}

/// This node's vote: answers the service `vote` for as long as the fabric lives.
pub struct Voter {
    identity: Arc<Identity>,
    log: Mutex<VoterLog>,
}

impl Voter {
    /// Answers requests from now on; signs with `identity` and writes to `log` first.
    pub fn start(fabric: &Arc<dyn Fabric>, identity: Arc<Identity>, log: VoterLog) -> Arc<Self> {
        let voter = Arc::new(Self {
            identity,
            log: Mutex::new(log),
        });
        fabric.serve(SERVICE, Arc::new(Service(voter.clone())));
        voter
    }

    /// How many VMs this node has made a promise for.
    pub fn vms(&self) -> usize {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .vms()
    }

    fn answer(&self, request: &Request) -> Result<Reply, LogError> {
        let Request { set, question } = request;
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
        let (proposal, signature) = match question {
            Question::Newest => return Ok(Reply::Newest(known.map(|k| k.promise))),
            Question::Change(proposal, signature) => (proposal, signature),
        };
        if !wire::is_proposal_of(set.vm, proposal, signature) {
            return Ok(Reply::Invalid);
        }
        match decide(known.map(|k| k.promise), proposal) {
            Verdict::Refuse(promise) => return Ok(Reply::Refused(promise)),
            Verdict::Record(promise) => log.remember(set.vm, LogEntry { promise, voters })?,
            Verdict::Agree => {}
        }
        drop(log);
        Ok(match proposal.step {
            Step::Confirm => Reply::Confirmed,
            Step::Promise | Step::TakeBack => {
                let message = promise_message(set.vm, proposal.epoch, proposal.holder, &set.voters);
                Reply::Promised(self.identity.sign(PROMISE_DOMAIN, &message))
            }
        })
    }
}

fn hash_of(set: &VoterSet) -> [u8; 32] {
    blake3::derive_key("p2pvm 2026 voters of a VM", &super::bytes(&set.voters))
}

/// Why a voter does not answer.
#[derive(Debug, thiserror::Error)]
enum VoterError {
    #[error("not a vote request")]
    Malformed,
    #[error("the voter failed")]
    Panicked(#[source] JoinError),
    #[error(transparent)]
    Log(#[from] LogError),
}

struct Service(Arc<Voter>);

impl Service {
    async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, VoterError> {
        let request: Request = wire::parse(body).ok_or(VoterError::Malformed)?;
        let voter = self.0.clone();
        // The flush blocks for milliseconds: not on a thread that others wait for.
        let answered = tokio::task::spawn_blocking(move || voter.answer(&request)).await;
        let reply = answered
            .map_err(VoterError::Panicked)?
            .inspect_err(|e| tracing::error!(error = %chain(e), "cannot vote"))?;
        Ok(wire::emit(&reply))
    }
}

#[async_trait]
impl Serve for Service {
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.answer(&body).await.map_err(|e| chain(&e))
    }

    /// No VM starts, moves or is restored without votes.
    fn is_vital(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::Epoch;
    use proptest::prelude::*;

    fn proposals() -> impl Strategy<Value = Proposal> {
        (
            prop_oneof![
                Just(Step::Promise),
                Just(Step::TakeBack),
                Just(Step::Confirm)
            ],
            1u64..6,
            1u8..4,
        )
            .prop_map(|(step, epoch, holder)| Proposal {
                step,
                epoch: Epoch(epoch),
                holder: MemberId([holder; 32]),
            })
    }

    proptest! {
        #[test]
        fn a_voter_promises_an_epoch_to_one_holder_and_never_an_older_one(
            proposals in proptest::collection::vec(proposals(), 1..30)
        ) {
            let mut known: Option<Promise> = None;
            for proposal in proposals {
                match decide(known, &proposal) {
                    Verdict::Record(new) => {
                        prop_assert_eq!((new.epoch, new.holder), (proposal.epoch, proposal.holder));
                        if let Some(old) = known {
                            let is_same = new.epoch == old.epoch && new.holder == old.holder;
                            prop_assert!(new.epoch > old.epoch || (is_same && new.confirmed));
                            let is_taken_back =
                                proposal.step == Step::TakeBack && old.holder != new.holder;
                            prop_assert!(!(is_taken_back && old.confirmed));
                        }
                        known = Some(new);
                    }
                    Verdict::Agree => prop_assert_eq!(
                        known.map(|k| (k.epoch, k.holder)), Some((proposal.epoch, proposal.holder))
                    ),
                    Verdict::Refuse(why) => prop_assert_eq!(Some(why), known),
                }
            }
        }
    }
}
