//! The voter: a thin shell around the rule of leases ([`super::lease`]) and the one of all other
//! VMs ([`super::decide`]). It flushes the log before it answers.

use super::{
    LogError, PROMISE_DOMAIN, SERVICE, VoteLimits, VoteRefusal, VoterLog, VoterSet,
    decide::{KeptPromise, Verdict},
    entry::{Bringer, Day, LogEntry},
    lease::{
        self,
        rule::Judged,
        voter::{Leases, millis},
        wire::{LeaseReply, LeaseRequest},
    },
    promise_message,
    turns::{Turns, may_follow},
    wire::{self, Promise, Proposal, Question, Reply, Request, Step},
};
use crate::options::Clock;
use async_trait::async_trait;
use p2pvm_overlay::{Epoch, Fabric, MemberId, Serve, UnixTime, VmId, chain, identity::Identity};
use std::sync::Arc;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinError,
};

/// The entry to append after a verdict; `None` if the log need not change.
fn entry_after(
    known: Option<&LogEntry>,
    verdict: Verdict,
    proposal: &Proposal,
    first: LogEntry,
    today: Day,
) -> Option<LogEntry> {
    let deleted = (proposal.step == Step::Deleted).then_some(today);
    let Some(known) = known else {
        return (verdict != Verdict::Agree).then_some(first);
    };
    let promise = match verdict {
        Verdict::Record(promise) => promise,
        // A VM with a new request was not deleted after all.
        Verdict::Agree if known.deleted.is_some() => known.promise,
        _ => return None,
    };
    let kept = KeptPromise::of(known).then(promise, proposal.step);
    Some(LogEntry {
        promise,
        was_confirmed: kept.was_confirmed,
        is_protected: kept.is_protected,
        deleted,
        ..*known
    })
}

/// This node's vote: answers the service `vote` for as long as the fabric lives.
pub struct Voter {
    identity: Arc<Identity>,
    limits: VoteLimits,
    clock: Clock,
    turns: Turns,
    /// The lock is granted in the order of the requests, so that no member overtakes another.
    log: Arc<Mutex<VoterLog>>,
    leases: Leases,
}

impl Voter {
    /// Answers requests from now on; signs with `identity` and writes to `log` first.
    pub fn start(fabric: &Arc<dyn Fabric>, identity: Arc<Identity>, log: VoterLog) -> Arc<Self> {
        let clock = Arc::new(UnixTime::now);
        Self::start_limited(fabric, identity, log, VoteLimits::default(), clock)
    }

    /// As [`Voter::start`], with the caller's bounds and clock.
    pub fn start_limited(
        fabric: &Arc<dyn Fabric>,
        identity: Arc<Identity>,
        log: VoterLog,
        limits: VoteLimits,
        clock: Clock,
    ) -> Arc<Self> {
        let voter = Arc::new(Self {
            identity,
            limits,
            clock,
            turns: Turns::default(),
            log: Arc::new(Mutex::new(log)),
            leases: Leases::start(),
        });
        fabric.serve(SERVICE, Arc::new(Service(voter.clone())));
        voter
    }

    /// How many VMs this node has made a promise for.
    pub async fn vms(&self) -> usize {
        self.log.lock().await.vms()
    }

    async fn answer(&self, from: MemberId, request: &Request) -> Result<Reply, VoterError> {
        let Request { set, question } = request;
        if !self.is_voter_of(set) {
            return Ok(Reply::Invalid);
        }
        if let Question::Change(proposal, signature) = question
            && !wire::is_proposal_of(set.vm, proposal, signature)
        {
            return Ok(Reply::Invalid);
        }
        let log = self.log.clone().lock_owned().await;
        let known = log.recall(&set.vm).copied();
        if known.is_some_and(|k| k.voters != hash_of(set)) {
            return Ok(Reply::OtherVoters);
        }
        match question {
            Question::Change(proposal, _) => self.change(from, (log, known), set, proposal).await,
            Question::Newest => Ok(Reply::Newest(known.map(|k| k.promise))),
        }
    }

    async fn change(
        &self,
        from: MemberId,
        (mut log, known): (OwnedMutexGuard<VoterLog>, Option<LogEntry>),
        set: &VoterSet,
        proposal: &Proposal,
    ) -> Result<Reply, VoterError> {
        let kept = known.as_ref().map(KeptPromise::of);
        let Judged { verdict, lease } = self.leases.judge(set.vm, kept, from, proposal);
        match verdict {
            Verdict::Record(_) | Verdict::Agree => {}
            Verdict::Refuse(promise) => return Ok(Reply::Refused(promise)),
            Verdict::Leased(free_in) => return Ok(Reply::Leased(millis(free_in))),
            Verdict::Unprotected => return Ok(Reply::Unprotected),
            Verdict::NotNamed => return Err(VoteRefusal::NotNamed.into()),
        }
        let by = Bringer::of(&from);
        self.admit(&mut log, known.as_ref(), proposal, from, by)?;
        let first = LogEntry {
            promise: Promise {
                epoch: proposal.epoch,
                holder: proposal.holder,
                confirmed: matches!(verdict, Verdict::Record(promise) if promise.confirmed),
            },
            was_confirmed: false,
            voters: hash_of(set),
            by,
            deleted: None,
            is_protected: proposal.step == Step::Protect,
        };
        let entry = entry_after(known.as_ref(), verdict, proposal, first, self.today());
        let is_protected = entry.or(known).is_some_and(|e| e.is_protected);
        // Before the entry is written and the log's lock given back: no other member may find the
        // new epoch with the old lease.
        self.leases
            .set(set.vm, Some(lease).filter(|_| is_protected));
        if let Some(entry) = entry {
            remember(log, set.vm, entry).await?;
        }
        Ok(match proposal.step {
            Step::Confirm | Step::Deleted | Step::Protect | Step::Unprotect => Reply::Confirmed,
            Step::Promise | Step::TakeBack | Step::TakeOver | Step::Forced => {
                let message = promise_message(set.vm, proposal.epoch, proposal.holder, &set.voters);
                Reply::Promised(self.identity.sign(PROMISE_DOMAIN, &message))
            }
        })
    }

    /// Answers the second version's questions, which write nothing.
    async fn answer_lease(&self, from: MemberId, request: &LeaseRequest) -> LeaseReply {
        let log = self.log.lock().await;
        let kept = |vm| log.recall(vm).map(KeptPromise::of);
        match request {
            LeaseRequest::Renew(vms) => LeaseReply::Renewed {
                clock_ms: self.leases.clock_ms(),
                answers: vms
                    .iter()
                    .map(|(vm, epoch)| self.leases.renew(*vm, kept(vm), from, *epoch))
                    .collect(),
            },
            LeaseRequest::View(set) if !self.is_voter_of(set) => LeaseReply::Invalid,
            LeaseRequest::View(set) => match log.recall(&set.vm) {
                Some(known) if known.voters != hash_of(set) => LeaseReply::OtherVoters,
                known => LeaseReply::View(self.leases.view(set.vm, known.map(KeptPromise::of))),
            },
        }
    }

    fn is_voter_of(&self, set: &VoterSet) -> bool {
        set.is_authentic() && set.voters.contains(&self.identity.member_id())
    }

    /// Checks that the member may make this proposal here.
    fn admit(
        &self,
        log: &mut VoterLog,
        known: Option<&LogEntry>,
        proposal: &Proposal,
        from: MemberId,
        by: Bringer,
    ) -> Result<(), VoteRefusal> {
        if proposal.step == Step::Deleted {
            let is_holder = from == proposal.holder;
            return is_holder.then_some(()).ok_or(VoteRefusal::NotHolder);
        }
        let newest = known.map_or(Epoch(0), |k| k.promise.epoch);
        if proposal.epoch > newest {
            may_follow(proposal.epoch, newest)?;
        }
        if known.is_some() {
            return Ok(());
        }
        log.forget_deleted(self.today());
        let VoteLimits {
            vms, member_vms, ..
        } = self.limits;
        if log.brought_by(by) >= member_vms {
            return Err(VoteRefusal::MemberLimit(member_vms));
        }
        if log.vms() >= vms {
            return Err(VoteRefusal::Full(vms));
        }
        Ok(())
    }

    fn today(&self) -> Day {
        Day::of((self.clock)())
    }
}

/// Writes an entry, on a blocking thread: the flush takes milliseconds.
async fn remember(
    mut log: OwnedMutexGuard<VoterLog>,
    vm: VmId,
    entry: LogEntry,
) -> Result<(), VoterError> {
    tokio::task::spawn_blocking(move || log.remember(vm, entry))
        .await
        .map_err(VoterError::Panicked)?
        .inspect_err(|e| tracing::error!(error = %chain(e), "cannot vote"))?;
    Ok(())
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
    Refused(#[from] VoteRefusal),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Whether the bytes are a request. A plain function of bytes over all parsers, for the fuzzer.
pub fn parse_request(body: &[u8]) -> bool {
    let _ = (wire::parse::<Reply>(body), lease::wire::parse_reply(body));
    wire::parse::<Request>(body).is_some() || lease::wire::parse_request(body).is_some()
}

struct Service(Arc<Voter>);

impl Service {
    async fn answer(&self, from: MemberId, body: &[u8]) -> Result<Vec<u8>, VoterError> {
        if let Some(request) = lease::wire::parse_request(body) {
            let _turn = self.0.turns.take(from, self.0.limits.waiting)?;
            let reply = self.0.answer_lease(from, &request).await;
            return Ok(lease::wire::emit(&reply));
        }
        let request: Request = wire::parse(body).ok_or(VoterError::Malformed)?;
        let _turn = self.0.turns.take(from, self.0.limits.waiting)?;
        Ok(wire::emit(&self.0.answer(from, &request).await?))
    }
}

#[async_trait]
impl Serve for Service {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.answer(from, &body).await.map_err(|e| chain(&e))
    }

    /// No VM starts, moves or is restored without votes.
    fn is_vital(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{super::decide::decide, *};
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
        fn a_voter_promises_each_epoch_once_and_never_an_older_one(
            proposals in proptest::collection::vec(proposals(), 1..30)
        ) {
            let mut log: Option<LogEntry> = None;
            // The holder that has confirmed an epoch, until another member is promised one.
            let mut runs: Option<MemberId> = None;
            for proposal in proposals {
                let known = log.as_ref().map(KeptPromise::of);
                let verdict = decide(known, &proposal);
                match verdict {
                    Verdict::Record(new) => {
                        prop_assert_eq!((new.epoch, new.holder), (proposal.epoch, proposal.holder));
                        if let Some(old) = log.map(|k| k.promise) {
                            let is_same = new.epoch == old.epoch && new.holder == old.holder;
                            prop_assert!(new.epoch > old.epoch || (is_same && new.confirmed));
                            let is_taken_back =
                                proposal.step == Step::TakeBack && old.holder != new.holder;
                            prop_assert!(!(is_taken_back && runs == Some(old.holder)));
                        }
                        runs = runs.filter(|holder| *holder == new.holder);
                        if new.confirmed {
                            runs = Some(new.holder);
                        }
                    }
                    Verdict::Agree => prop_assert_eq!(
                        log.map(|k| (k.promise.epoch, k.promise.holder)),
                        Some((proposal.epoch, proposal.holder))
                    ),
                    Verdict::Refuse(why) => prop_assert_eq!(Some(why), log.map(|k| k.promise)),
                    other => prop_assert!(false, "{:?}", other),
                }
                let promise = Promise {
                    epoch: proposal.epoch,
                    holder: proposal.holder,
                    confirmed: proposal.step == Step::Confirm,
                };
                let first = LogEntry {
                    promise,
                    was_confirmed: false,
                    voters: [0; 32],
                    by: Bringer::default(),
                    deleted: None,
                    is_protected: false,
                };
                log = entry_after(log.as_ref(), verdict, &proposal, first, Day::of(UnixTime(0)))
                    .or(log);
            }
        }
    }
}
