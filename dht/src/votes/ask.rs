//! The caller's side: one request to all voters at once, and an answer as soon as a majority has
//! decided. The remaining calls go on in the background, so that slower voters learn of the change
//! too.

use super::{
    Grant, NewestEpoch, PROMISE_DOMAIN, SERVICE, VoteError, VoterSet, promise_message,
    wire::{self, Promise, Proposal, Question, Reply, Request, Step},
};
use p2pvm_overlay::{
    Epoch, Fabric, FabricError, MemberId,
    identity::{self, KeyPair},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::JoinSet};

/// How long to wait for a voter's answer.
/// Reason: dialling over a 200 ms path and one flush, with a margin.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// One voter's answer.
enum VoterReply {
    Reply(Reply),
    /// The voter does not decide, for this reason.
    Declined(String),
    /// No answer came.
    Missing,
}

/// Asks voters. Cheap to clone.
#[derive(Clone)]
pub struct Votes {
    fabric: Arc<dyn Fabric>,
}

impl Votes {
    /// Asks over `fabric`.
    pub fn new(fabric: Arc<dyn Fabric>) -> Self {
        Self { fabric }
    }

    /// Obtains `epoch` of the VM of `keys` for `holder`. Repeating a granted request succeeds
    /// again.
    ///
    /// # Errors
    /// [`VoteError::Refused`] if the epoch, or a newer one, is promised to another holder: ask for
    /// `newest.next()`; [`VoteError::NoMajority`] if too few answered: nothing is decided, ask
    /// again.
    pub async fn grant(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, VoteError> {
        self.promises(
            keys,
            set,
            Proposal {
                step: Step::Promise,
                epoch,
                holder,
            },
        )
        .await
    }

    /// As [`Self::grant`], but a voter refuses if the newest epoch's holder is another member that
    /// has confirmed it, or an older epoch before it. The source of a migration takes its VM back
    /// with this, after the target's window has passed.
    ///
    /// # Errors
    /// As [`Self::grant`].
    pub async fn take_back(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, VoteError> {
        self.promises(
            keys,
            set,
            Proposal {
                step: Step::TakeBack,
                epoch,
                holder,
            },
        )
        .await
    }

    /// Tells the voters that `holder` runs the VM in `epoch`; from then on no take-back succeeds.
    ///
    /// # Errors
    /// [`VoteError::Refused`] if a newer epoch was promised: the holder must freeze;
    /// [`VoteError::NoMajority`] if too few answered.
    pub async fn confirm(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<(), VoteError> {
        self.tell(keys, set, Step::Confirm, (epoch, holder)).await
    }

    /// Tells the voters that `holder`, the calling member, has deleted the VM, so that they may
    /// forget it some time later.
    ///
    /// # Errors
    /// [`VoteError::Refused`] if another member was promised an epoch; [`VoteError::NoMajority`] if
    /// too few answered, or are of the first release.
    pub async fn deleted(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<(), VoteError> {
        self.tell(keys, set, Step::Deleted, (epoch, holder)).await
    }

    pub(super) async fn tell(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        step: Step,
        (epoch, holder): (Epoch, MemberId),
    ) -> Result<(), VoteError> {
        let enough = set.majority();
        self.tell_some(keys, set, (step, epoch, holder), enough)
            .await
    }

    /// Tells the voters, and needs all of them.
    pub(super) async fn tell_all(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        step: Step,
        (epoch, holder): (Epoch, MemberId),
    ) -> Result<(), VoteError> {
        let all = set.voters.len();
        self.tell_some(keys, set, (step, epoch, holder), all).await
    }

    async fn tell_some(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        (step, epoch, holder): (Step, Epoch, MemberId),
        enough: usize,
    ) -> Result<(), VoteError> {
        check(keys, set)?;
        let proposal = Proposal {
            step,
            epoch,
            holder,
        };
        let request = Request::change(keys, set, proposal);
        self.agreed(set, &request, enough, |_, reply| {
            (reply == Reply::Confirmed).then_some(())
        })
        .await
        .map(|_| ())
    }

    pub(super) fn fabric(&self) -> &Arc<dyn Fabric> {
        &self.fabric
    }

    /// The newest epoch that any voter of an answering majority has promised; `None` if they have
    /// promised none.
    ///
    /// # Errors
    /// [`VoteError::NoMajority`] if too few answered.
    pub async fn newest(&self, set: &VoterSet) -> Result<Option<NewestEpoch>, VoteError> {
        let request = Request {
            set: set.clone(),
            question: Question::Newest,
        };
        let told = self
            .majority(set, &request, |_, reply| match reply {
                Reply::Newest(promise) => Some(promise),
                _ => None,
            })
            .await?;
        Ok(newest_of(set, told.into_values().flatten()))
    }

    /// Which of these members answer as voters. Each is asked for what it has promised about a new
    /// VM, the one of `keys`, with itself as the only voter: it writes down nothing, and a voter of
    /// any release answers.
    pub async fn answering(&self, keys: &KeyPair, members: &[MemberId]) -> Vec<MemberId> {
        let mut asked = JoinSet::new();
        for member in members.iter().copied() {
            let request = Request {
                set: VoterSet::sign(keys, &[member]),
                question: Question::Newest,
            };
            let (fabric, body) = (self.fabric.clone(), wire::emit(&request));
            asked.spawn(async move {
                let reply = fabric.call(member, SERVICE, body, CALL_TIMEOUT).await;
                let reply = reply.ok().and_then(|body| wire::parse(&body));
                matches!(reply, Some(Reply::Newest(_))).then_some(member)
            });
        }
        let answered = asked.join_all().await;
        answered.into_iter().flatten().collect()
    }

    pub(super) async fn promises(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        proposal: Proposal,
    ) -> Result<Grant, VoteError> {
        check(keys, set)?;
        let message = promise_message(set.vm, proposal.epoch, proposal.holder, &set.voters);
        let request = Request::change(keys, set, proposal);
        let promises = self
            .majority(set, &request, |voter, reply| match reply {
                Reply::Promised(signature) => {
                    identity::verify(&voter.0, PROMISE_DOMAIN, &message, &signature)
                        .then_some(signature)
                }
                _ => None,
            })
            .await?;
        Ok(Grant {
            vm: set.vm,
            epoch: proposal.epoch,
            holder: proposal.holder,
            voters: set.voters.clone(),
            promises: promises.into_iter().collect(),
        })
    }

    async fn majority<T>(
        &self,
        set: &VoterSet,
        request: &Request,
        accept: impl Fn(MemberId, Reply) -> Option<T>,
    ) -> Result<BTreeMap<MemberId, T>, VoteError> {
        self.agreed(set, request, set.majority(), accept).await
    }

    /// Asks every voter and returns as soon as `accept` has taken the answers of `enough` of them,
    /// or so many are not possible any more.
    async fn agreed<T>(
        &self,
        set: &VoterSet,
        request: &Request,
        enough: usize,
        accept: impl Fn(MemberId, Reply) -> Option<T>,
    ) -> Result<BTreeMap<MemberId, T>, VoteError> {
        let asked = set.voters.len();
        let (mut accepted, mut answered, mut waiting) = (BTreeMap::new(), 0, asked);
        let (mut refusal, mut invalid): (Option<Promise>, _) = (None, None);
        let (mut declined, mut leased) = (None, None);
        let mut replies = self.ask_all(set, wire::emit(request));
        while accepted.len() < enough && accepted.len() + waiting >= enough {
            let Some((voter, reply)) = replies.recv().await else {
                break;
            };
            waiting -= 1;
            let reply = match reply {
                VoterReply::Reply(reply) => reply,
                VoterReply::Declined(reason) => {
                    declined = Some(VoteError::Declined { voter, reason });
                    continue;
                }
                VoterReply::Missing => continue,
            };
            answered += 1;
            match reply {
                Reply::Refused(promise) => {
                    refusal = refusal.into_iter().chain([promise]).max_by_key(|p| p.epoch)
                }
                Reply::Leased(ms) => leased = leased.max(Some(Duration::from_millis(ms.into()))),
                Reply::Unprotected => invalid = Some("the voters have the VM as not protected"),
                Reply::OtherVoters => invalid = Some("the VM has other voters"),
                Reply::Invalid => {
                    invalid = Some("a voter does not accept the voter set or the VM's signature")
                }
                reply => accepted.extend(accept(voter, reply).map(|t| (voter, t))),
            }
        }
        if accepted.len() >= enough {
            return Ok(accepted);
        }
        Err(match (refusal, invalid, leased) {
            (Some(Promise { epoch, holder, .. }), ..) => VoteError::Refused {
                newest: epoch,
                holder,
            },
            (None, Some(why), _) => VoteError::Invalid(why),
            (None, None, Some(free_in)) => VoteError::Leased { free_in },
            (None, None, None) => declined.unwrap_or(VoteError::NoMajority { answered, asked }),
        })
    }

    fn ask_all(&self, set: &VoterSet, body: Vec<u8>) -> mpsc::Receiver<(MemberId, VoterReply)> {
        let (sender, receiver) = mpsc::channel(set.voters.len());
        for voter in set.voters.clone() {
            let (fabric, body, sender) = (self.fabric.clone(), body.clone(), sender.clone());
            tokio::spawn(async move {
                let reply = match fabric.call(voter, SERVICE, body, CALL_TIMEOUT).await {
                    Ok(body) => wire::parse(&body).map_or(VoterReply::Missing, VoterReply::Reply),
                    Err(FabricError::Refused(_, reason)) => VoterReply::Declined(reason),
                    Err(e) => {
                        tracing::debug!(
                            voter = %voter.short(),
                            error = %p2pvm_overlay::chain(&e),
                            "a voter did not answer"
                        );
                        VoterReply::Missing
                    }
                };
                // Sending fails if the caller has its majority already.
                let _ = sender.send((voter, reply)).await;
            });
        }
        receiver
    }
}

fn check(keys: &KeyPair, set: &VoterSet) -> Result<(), VoteError> {
    if keys.vm_id() != set.vm {
        return Err(VoteError::Invalid("the key is not the VM's"));
    }
    if !set.is_authentic() {
        return Err(VoteError::Invalid(
            "the voter set is not signed by the VM's key, or names no or too many voters",
        ));
    }
    Ok(())
}

/// The newest of the epochs that a majority has answered with.
pub(super) fn newest_of(
    set: &VoterSet,
    told: impl Iterator<Item = Promise>,
) -> Option<NewestEpoch> {
    let mut by_holder: BTreeMap<(Epoch, MemberId), (usize, bool)> = BTreeMap::new();
    for promise in told {
        let seen = by_holder
            .entry((promise.epoch, promise.holder))
            .or_default();
        *seen = (seen.0 + 1, seen.1 | promise.confirmed);
    }
    let newest = by_holder
        .into_iter()
        .max_by_key(|((epoch, _), (count, confirmed))| (*epoch, *confirmed, *count));
    newest.map(|((epoch, holder), (count, confirmed))| NewestEpoch {
        epoch,
        holder,
        confirmed,
        granted: count >= set.majority(),
    })
}
