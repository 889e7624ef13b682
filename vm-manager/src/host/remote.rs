//! What members ask each other about VMs, service "vm": which ones each has, and whether a VM's
//! guest runs there. This service does no operations on VMs: the control API forwards those to the
//! holder's own.

use super::{Activity, Host, ReplicationStatus, Role, Standstill, VmState, VmStatus};
use crate::{
    Error,
    error::peer,
    hypervisor::RunState,
    sealed::{KeyShare, ShareLetter},
};
use async_trait::async_trait;
use p2pvm_authority::Revocations;
use p2pvm_dht::VoterSet;
use p2pvm_overlay::{FabricError, MemberId, Serve, VmId, chain};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// The service's name.
pub const SERVICE: &str = "vm";

/// How long a member may take to answer before it counts as silent.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The same where it looks the VM up for its answer. Reason: records are asked for from several
/// members, of which some, such as the host that is to be replaced, may not answer in their time.
const LOOKING_UP: Duration = Duration::from_secs(15);

/// A question to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmRequest {
    /// The member's VMs.
    List,
    /// Whether the VM's guest is there: running, paused, arriving or in doubt.
    Runs(VmId),
    /// Whether the asking member may restore the VM, which is stopped there; the copy there is then
    /// removed. Older members refuse this request.
    GiveWay(VmId),
    /// The asking member runs the VM now: ask its voters.
    Took(VmId),
    /// The asking member restores a VM: the asked one, a voter of it, has an envelope in the VM's
    /// snapshot. Older members refuse this request.
    Share {
        /// The envelope.
        envelope: Vec<u8>,
        /// What shows that the asking member may restore the VM.
        proofs: Vec<Vec<u8>>,
    },
    /// The asking member has the VM of that voter set, and the asked one is an heir of it by the
    /// VM's record. Older members refuse this request.
    Heir(VoterSet),
    /// As [`VmRequest::Share`], by an heir that is to start the VM unasked. Older members refuse
    /// this request.
    ShareForHeir {
        /// The envelope.
        envelope: Vec<u8>,
        /// The VM's voters, whom the asked one asks whether its lease has run out.
        set: VoterSet,
    },
    /// Whether the protected VM could come to the asked member. Older members refuse this request.
    Guards(VmId),
}

impl VmRequest {
    /// How long the member may take to answer.
    fn limit(&self) -> Duration {
        match self {
            Self::Share { proofs, .. } if !proofs.is_empty() => LOOKING_UP,
            Self::Heir(_) | Self::ShareForHeir { .. } => LOOKING_UP,
            _ => TIMEOUT,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmAnswer {
    /// Its VMs.
    Vms(Vec<VmStatus>),
    /// Whether the guest is there; `None`: the member has no such VM.
    Runs(Option<bool>),
    /// Whether the VM is stopped there and given away.
    GivesWay(bool),
    /// The request was understood.
    Heard,
    /// The share that was in the envelope, or why it is not released.
    Share(Result<KeyShare, String>),
    /// Whether the asked member is an heir from now on, or why not.
    Heir(Result<(), String>),
    /// Why the VM could not come, if it could not.
    Guards(Option<String>),
}

struct VmService(Weak<Host>);

#[async_trait]
impl Serve for VmService {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let host = self.0.upgrade().ok_or("this host is shutting down")?;
        let request = postcard::from_bytes(&body)
            .map_err(|e| format!("the request cannot be read: {}", chain(&e)))?;
        let answer = host.reply(from, &request).await;
        encode(&answer).map_err(|e| format!("the answer cannot be written: {}", chain(&e)))
    }
}

/// Encodes an answer. A list is followed by the reasons why guests are paused, then by how well
/// disks are replicated, each with its place in the list: previous releases read no further than
/// the list, or the reasons.
fn encode(answer: &VmAnswer) -> postcard::Result<Vec<u8>> {
    let mut body = postcard::to_allocvec(answer)?;
    if let VmAnswer::Vms(vms) = answer {
        let still: Vec<(u32, &Standstill)> = (0..)
            .zip(vms)
            .filter_map(|(at, vm)| Some((at, vm.still.as_ref()?)))
            .collect();
        body.extend(postcard::to_allocvec(&still)?);
        let replication: Vec<(u32, &ReplicationStatus)> = (0..)
            .zip(vms)
            .filter_map(|(at, vm)| Some((at, vm.replication.as_ref()?)))
            .collect();
        if !replication.is_empty() {
            body.extend(postcard::to_allocvec(&replication)?);
        }
    }
    Ok(body)
}

/// Decodes an answer.
fn decode(body: &[u8]) -> postcard::Result<VmAnswer> {
    let (mut answer, behind) = postcard::take_from_bytes::<VmAnswer>(body)?;
    if let VmAnswer::Vms(vms) = &mut answer {
        // Previous releases send no reasons.
        let read = postcard::take_from_bytes::<Vec<(u32, Standstill)>>(behind);
        let (all_still, behind) = read.unwrap_or_default();
        for (at, still) in all_still {
            if let Some(vm) = vms.get_mut(at as usize) {
                vm.still = Some(still);
            }
        }
        let read = postcard::from_bytes::<Vec<(u32, ReplicationStatus)>>(behind);
        for (at, replication) in read.unwrap_or_default() {
            if let Some(vm) = vms.get_mut(at as usize) {
                vm.replication = Some(replication);
            }
        }
    }
    Ok(answer)
}

impl Host {
    /// Answers other members from now on.
    pub(crate) fn serve_members(&self) {
        let service = VmService(self.this.clone());
        self.parts.fabric.serve(SERVICE, Arc::new(service));
    }

    async fn reply(&self, from: MemberId, request: &VmRequest) -> VmAnswer {
        match request {
            VmRequest::List => VmAnswer::Vms(self.list()),
            VmRequest::Runs(id) => VmAnswer::Runs(self.slot_of(*id).map(|slot| {
                !matches!(
                    self.status_of(&slot).state,
                    VmState::Stopped | VmState::Branch
                )
            })),
            VmRequest::GiveWay(id) => VmAnswer::GivesWay(match self.slot_of(*id) {
                Some(slot) => self.give_way(&slot, from).await,
                None => false,
            }),
            VmRequest::Took(id) => {
                if let Some(slot) = self.slot_of(*id) {
                    self.check_soon(slot);
                }
                VmAnswer::Heard
            }
            VmRequest::Share { envelope, proofs } => {
                VmAnswer::Share(self.release(from, envelope, proofs).await)
            }
            VmRequest::Guards(vm) => VmAnswer::Guards(self.cannot_guard(*vm).await),
            VmRequest::Heir(set) => VmAnswer::Heir(self.become_heir(from, set).await),
            VmRequest::ShareForHeir { envelope, set } => {
                VmAnswer::Share(self.release_to_heir(from, envelope, set).await)
            }
        }
    }

    /// Opens a voter's envelope for a member that may restore the VM.
    async fn release(
        &self,
        to: MemberId,
        envelope: &[u8],
        proofs: &[Vec<u8>],
    ) -> Result<KeyShare, String> {
        let letter = ShareLetter::open(&self.parts.identity, envelope)
            .ok_or("the envelope is not for this member, or damaged")?;
        // The host that had the VM last published which tokens are revoked.
        let record = match proofs {
            [] => None,
            _ => self.directory.record(letter.vm).await.unwrap_or_default(),
        };
        let revoked = record.map_or(Revocations::NONE, |record| {
            super::revoked::checked(letter.vm, &record.revoked)
        });
        let rule = &self.parts.releases;
        rule.may_open(to, letter.vm, letter.owner, proofs, &revoked)?;
        tracing::info!(vm = %letter.vm, to = %to.short(), "released a share of a snapshot's key");
        Ok(letter.share)
    }

    /// Asks a member, which may be this one.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub(crate) async fn ask_member(
        &self,
        member: MemberId,
        request: &VmRequest,
    ) -> Result<VmAnswer, Error> {
        if member == self.me {
            return Ok(self.reply(member, request).await);
        }
        let body = postcard::to_allocvec(request).expect("plain fields always serialize");
        let step = "asking a member about its VMs";
        let answer = self
            .parts
            .fabric
            .call(member, SERVICE, body, request.limit())
            .await
            .map_err(peer(step))?;
        decode(&answer).map_err(|e| {
            peer(step)(FabricError::Refused(
                member,
                format!("its answer cannot be read: {}", chain(&e)),
            ))
        })
    }

    /// Lets `to` restore a VM that is stopped here. The voters decide whether it does; this decides
    /// whether the copy here is then removed.
    async fn give_way(&self, slot: &Arc<super::Slot>, to: MemberId) -> bool {
        let Ok(_operation) = slot.begin_after_check(Activity::GivingWay).await else {
            return false;
        };
        if slot.entry().role != Role::Held || slot.run_state() != RunState::Stopped {
            return false;
        }
        let given = self.update(slot, |e| e.gives_way = Some(to));
        given
            .inspect_err(|e| {
                tracing::warn!(error = %chain(e), "cannot write down that a VM may be \
                    restored elsewhere")
            })
            .is_ok()
    }

    /// Whether a member says that the VM's guest runs there.
    pub(super) async fn runs_at(&self, member: MemberId, vm: VmId) -> bool {
        matches!(
            self.ask_member(member, &VmRequest::Runs(vm)).await,
            Ok(VmAnswer::Runs(Some(true)))
        )
    }

    /// The VMs that one member says it has.
    ///
    /// # Errors
    /// [`Error::Peer`] if it does not answer.
    pub async fn list_of(&self, member: MemberId) -> Result<Vec<VmStatus>, Error> {
        match self.ask_member(member, &VmRequest::List).await? {
            VmAnswer::Vms(theirs) => Ok(theirs),
            _ => Err(peer("asking a member about its VMs")(FabricError::Refused(
                member,
                "it answers something else".into(),
            ))),
        }
    }

    /// The VMs of this host and of every connected member, by name; members that do not answer in
    /// time are left out and named.
    pub async fn list_all(&self) -> (Vec<VmStatus>, Vec<MemberId>) {
        let members = self.parts.fabric.connected();
        let asked = futures::future::join_all(
            members
                .iter()
                .map(|m| async move { (*m, self.list_of(*m).await) }),
        )
        .await;
        let (mut vms, mut silent) = (self.list(), Vec::new());
        for (member, answer) in asked {
            match answer {
                Ok(theirs) => vms.extend(theirs),
                Err(_) => silent.push(member),
            }
        }
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        (vms, silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{directory::RunGoal, host::registry::tests::entry, hypervisor::Halt};
    use p2pvm_overlay::Epoch;

    fn status(name: &str, still: Option<Standstill>) -> VmStatus {
        VmStatus {
            name: name.into(),
            state: VmState::Paused,
            holder: MemberId([4; 32]),
            epoch: Epoch(1),
            wanted: RunGoal::Running,
            activity: None,
            definition: entry(name).definition,
            snapshots: vec![],
            note: None,
            still,
            replication: None,
            owner: None,
            restart: None,
            user: None,
            backups: Default::default(),
        }
    }

    #[test]
    fn a_list_says_how_well_disks_are_replicated() {
        let replication = ReplicationStatus {
            every_s: 60,
            age_s: Some(38),
            copies: 1,
            wanted: 2,
            is_late: false,
            why: Some("no room".into()),
            rounds: 3,
            new_bytes: 9 << 20,
            last_new_bytes: 7,
        };
        let with = VmStatus {
            replication: Some(replication),
            ..status("b", None)
        };
        let vms = VmAnswer::Vms(vec![status("a", None), with]);
        let body = encode(&vms).unwrap();
        assert_eq!(decode(&body).unwrap(), vms);
        for length in 0..body.len() {
            let _ = decode(&body[..length]);
        }
    }

    #[test]
    fn a_voter_has_time_to_look_for_revoked_tokens_past_dead_members() {
        let share = |proofs| {
            let envelope = Vec::new();
            VmRequest::Share { envelope, proofs }.limit()
        };
        let dead = p2pvm_dht::DhtOptions::default().call_timeout;
        assert!(share(vec![vec![1]]) > dead * 3);
        assert_eq!((share(vec![]), VmRequest::List.limit()), (TIMEOUT, TIMEOUT));
    }

    #[test]
    fn older_members_read_a_list_that_says_why_guests_stand_still() {
        let still = Standstill {
            why: Halt::DiskFull,
            path: "/x".into(),
            free_bytes: 3 << 20,
            needed_bytes: 64 << 20,
        };
        let vms = vec![status("a", None), status("b", Some(still))];
        let body = encode(&VmAnswer::Vms(vms.clone())).unwrap();
        assert_eq!(decode(&body).unwrap(), VmAnswer::Vms(vms.clone()));
        let plain: Vec<_> = vms
            .into_iter()
            .map(|vm| VmStatus { still: None, ..vm })
            .collect();
        assert_eq!(
            postcard::from_bytes::<VmAnswer>(&body).unwrap(),
            VmAnswer::Vms(plain.clone()),
            "as it was read before"
        );
        let before = postcard::to_allocvec(&VmAnswer::Vms(plain.clone())).unwrap();
        assert_eq!(decode(&before).unwrap(), VmAnswer::Vms(plain));
    }
}

#[cfg(test)]
#[path = "remote_golden_tests.rs"]
mod golden_tests;
