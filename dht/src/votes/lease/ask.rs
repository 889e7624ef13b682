//! The caller's side of leases.

use super::{
    super::{
        NewestEpoch, SERVICE, VoteError, VoterSet, Votes,
        ask::newest_of,
        wire::{Proposal, Step},
    },
    Holding, LeaseView, MAX_RENEWED, Renewed,
    wire::{self, LeaseReply, LeaseRequest, RenewAnswer, VoterView},
};
use crate::votes::{CALL_TIMEOUT, Grant};
use p2pvm_overlay::{Epoch, FabricError, MemberId, VmId, chain, identity::KeyPair};
use std::{collections::BTreeMap, time::Duration};
use tokio::task::JoinSet;

/// What one voter told of all VMs that it was asked for.
type Answers = BTreeMap<(VmId, MemberId), RenewAnswer>;

impl Votes {
    /// Renews the leases of all VMs that this member holds: one answer for each, in their order.
    /// The lease counts from when this was called ([`super::lease_end`]). Ends within
    /// [`CALL_TIMEOUT`].
    pub async fn renew(&self, held: &[Holding]) -> Vec<Renewed> {
        let mut by_voter: BTreeMap<MemberId, Vec<(VmId, Epoch)>> = BTreeMap::new();
        for Holding { set, epoch } in held {
            for voter in &set.voters {
                by_voter.entry(*voter).or_default().push((set.vm, *epoch));
            }
        }
        let mut calls = JoinSet::new();
        for (voter, vms) in by_voter {
            for vms in vms.chunks(MAX_RENEWED) {
                let (votes, vms) = (self.clone(), vms.to_vec());
                calls.spawn(async move {
                    let answers = votes.renew_at(voter, &vms).await;
                    (voter, vms, answers)
                });
            }
        }
        let mut told = Answers::new();
        while let Some(joined) = calls.join_next().await {
            let Ok((voter, vms, answers)) = joined else {
                continue;
            };
            let vms = vms.into_iter().map(|(vm, _)| (vm, voter));
            told.extend(vms.zip(answers));
            if held.iter().all(|h| !is_open(h, &told)) {
                // The other voters' renewals go on: they too are to grant nothing meanwhile.
                calls.detach_all();
                break;
            }
        }
        held.iter().map(|h| outcome(h, &told)).collect()
    }

    async fn renew_at(&self, voter: MemberId, vms: &[(VmId, Epoch)]) -> Vec<RenewAnswer> {
        let request = LeaseRequest::Renew(vms.to_vec());
        match self.ask_lease(voter, &request).await {
            Asked::Reply(LeaseReply::Renewed { answers, .. }) if answers.len() == vms.len() => {
                answers
            }
            _ => Vec::new(),
        }
    }

    /// Takes over a protected VM whose host's lease has run out: `epoch` is promised to `holder`,
    /// the calling member, and confirmed in one round. The new lease counts from when this was
    /// called.
    ///
    /// # Errors
    /// [`VoteError::Leased`] while the lease runs; [`VoteError::Invalid`] if the VM is not
    /// protected; otherwise as [`Votes::grant`].
    pub async fn take_over(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, VoteError> {
        let step = Step::TakeOver;
        let proposal = Proposal {
            step,
            epoch,
            holder,
        };
        self.promises(keys, set, proposal).await
    }

    /// As [`Votes::grant`] for the calling member, at a person's word: also the lease of a
    /// protected VM's host gives way. See [`Self::lease`] for how long it may still run there.
    ///
    /// # Errors
    /// As [`Votes::grant`].
    pub async fn force(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, VoteError> {
        match self.grant(keys, set, epoch, holder).await {
            // What only voters of a protected VM say: the epoch asked for is a newer one.
            Err(VoteError::Refused { newest, .. }) if newest < epoch => {
                let step = Step::Forced;
                let proposal = Proposal {
                    step,
                    epoch,
                    holder,
                };
                self.promises(keys, set, proposal).await
            }
            granted => granted,
        }
    }

    /// What a majority says about the VM's lease; changes nothing.
    ///
    /// # Errors
    /// [`VoteError::NoMajority`], also if too many voters are of the previous release.
    pub async fn lease(&self, set: &VoterSet) -> Result<LeaseView, VoteError> {
        let (told, answered) = self.views(set, set.majority()).await?;
        let asked = set.voters.len();
        if told.len() < set.majority() {
            return Err(VoteError::NoMajority { answered, asked });
        }
        Ok(view_of(set, &told))
    }

    /// Tells the voters that `holder`, the calling member, runs the VM in `epoch`, and that it is
    /// protected from now on or no longer. A VM becomes protected only when every voter has
    /// written it down. Repeating it tells voters that were away; their answers are then not needed
    /// if a majority has the VM as protected already. A granted lease counts from the calling.
    ///
    /// # Errors
    /// [`VoteError::Declined`] names a voter of the previous release; [`VoteError::NoMajority`] if
    /// voters are missing: the VM is then as before. [`VoteError::Refused`] if a newer epoch was
    /// promised.
    pub async fn protect(
        &self,
        keys: &KeyPair,
        set: &VoterSet,
        epoch: Epoch,
        holder: MemberId,
        on: bool,
    ) -> Result<(), VoteError> {
        let claim = (epoch, holder);
        if !on {
            return self.tell(keys, set, Step::Unprotect, claim).await;
        }
        let all = set.voters.len();
        let (views, answered) = self.views(set, all).await?;
        let flagged = views.values().filter(|v| v.is_protected).count();
        if flagged >= set.majority() {
            return self.tell(keys, set, Step::Protect, claim).await;
        }
        if views.len() < all {
            return Err(VoteError::NoMajority {
                answered,
                asked: all,
            });
        }
        let told = self.tell_all(keys, set, Step::Protect, claim).await;
        if told.is_err() {
            // Some may have written it down, so none is to keep it.
            let undone = self.tell(keys, set, Step::Unprotect, claim).await;
            if let Err(e) = undone {
                tracing::warn!(vm = %set.vm.short(), error = %chain(&e), "some voters may have \
                    the VM as protected: protect it again, or end its protection");
            }
        }
        told
    }

    /// The views of `enough` voters, or of all that answer, and how many did.
    async fn views(
        &self,
        set: &VoterSet,
        enough: usize,
    ) -> Result<(BTreeMap<MemberId, VoterView>, usize), VoteError> {
        let mut calls = JoinSet::new();
        for voter in set.voters.clone() {
            let (votes, request) = (self.clone(), LeaseRequest::View(set.clone()));
            calls.spawn(async move { (voter, votes.ask_lease(voter, &request).await) });
        }
        let (mut told, mut answered, mut declined) = (BTreeMap::new(), 0, None);
        while let Some(joined) = calls.join_next().await {
            let Ok((voter, asked)) = joined else {
                continue;
            };
            answered += usize::from(!matches!(asked, Asked::Missing));
            match asked {
                Asked::Reply(LeaseReply::View(view)) => drop(told.insert(voter, view)),
                Asked::Reply(LeaseReply::OtherVoters) => {
                    return Err(VoteError::Invalid("the VM has other voters"));
                }
                Asked::Reply(_) => {
                    return Err(VoteError::Invalid(
                        "a voter does not accept the voter set or the VM's signature",
                    ));
                }
                Asked::Declined(reason) => declined = Some(VoteError::Declined { voter, reason }),
                Asked::Missing => {}
            }
            if told.len() >= enough {
                break;
            }
        }
        match declined {
            Some(e) if told.len() < enough => Err(e),
            _ => Ok((told, answered)),
        }
    }

    async fn ask_lease(&self, voter: MemberId, request: &LeaseRequest) -> Asked {
        let body = wire::emit(request);
        match self.fabric().call(voter, SERVICE, body, CALL_TIMEOUT).await {
            Ok(body) => wire::parse_reply(&body).map_or(Asked::Missing, Asked::Reply),
            Err(FabricError::Refused(_, reason)) => Asked::Declined(format!(
                "it may be of a release that knows no leases: upgrade it ({reason})"
            )),
            Err(e) => {
                tracing::debug!(voter = %voter.short(), error = %chain(&e), "a voter did not \
                    answer about leases");
                Asked::Missing
            }
        }
    }
}

/// One voter's answer.
enum Asked {
    Reply(LeaseReply),
    /// The voter does not answer this, for this reason.
    Declined(String),
    Missing,
}

fn view_of(set: &VoterSet, told: &BTreeMap<MemberId, VoterView>) -> LeaseView {
    let promises = told.values().filter_map(|v| v.promise);
    let newest: Option<NewestEpoch> = newest_of(set, promises);
    let ms = told.values().map(|v| v.free_in_ms).max().unwrap_or(0);
    LeaseView {
        newest,
        // Of three voters two may have answered, and the third one have the VM as protected too.
        protected: told.values().filter(|v| !v.is_protected).count() < set.majority(),
        free_in: Duration::from_millis(ms.into()),
    }
}

/// Whether more answers may still decide.
fn is_open(held: &Holding, told: &Answers) -> bool {
    matches!(outcome(held, told), Renewed::Undecided { answered, asked } if answered < asked)
}

fn outcome(Holding { set, .. }: &Holding, told: &Answers) -> Renewed {
    let answers = set.voters.iter().map(|voter| told.get(&(set.vm, *voter)));
    renewed(answers.map(Option::<&RenewAnswer>::copied))
}

/// What the answers of all voters of a VM say together; `None`: the voter has not answered.
pub(crate) fn renewed(answers: impl Iterator<Item = Option<RenewAnswer>>) -> Renewed {
    let (mut asked, mut answered, mut ours, mut newer) = (0, 0, 0, Vec::new());
    for answer in answers {
        asked += 1;
        answered += usize::from(answer.is_some());
        match answer {
            Some(RenewAnswer::Ours) => ours += 1,
            Some(RenewAnswer::Newer(promise)) => newer.push(promise),
            Some(RenewAnswer::Unknown) | None => {}
        }
    }
    if ours > asked / 2 {
        return Renewed::Ours;
    }
    match newer.iter().max_by_key(|p| p.epoch) {
        Some(newest) if newer.len() > asked / 2 => Renewed::Newer {
            epoch: newest.epoch,
            holder: newest.holder,
        },
        _ => Renewed::Undecided { answered, asked },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_a_majority_may_have_protected_counts_as_protected() {
        let keys = KeyPair::generate();
        let voters = [1, 2, 3].map(|n| MemberId([n; 32]));
        let set = VoterSet::sign(&keys, &voters);
        let view = |flags: &[bool]| {
            let told = voters.iter().zip(flags).map(|(voter, &is_protected)| {
                let one = VoterView {
                    promise: None,
                    is_protected,
                    free_in_ms: 0,
                };
                (*voter, one)
            });
            view_of(&set, &told.collect()).protected
        };
        assert!(view(&[true, true]));
        assert!(view(&[true, false]), "the third voter may have it");
        assert!(view(&[false, true, true]));
        assert!(!view(&[false, false]));
        assert!(!view(&[true, false, false]));
    }
}
