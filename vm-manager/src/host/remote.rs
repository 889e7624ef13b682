//! What members ask each other about VMs, service "vm": what each has, and whether a VM's guest runs there. Operations on a
//! VM that another member holds are no business of this service: the control API forwards them to the holder's own.

use super::{Host, VmState, VmStatus};
use crate::{
    Error,
    migrate::{
        target::Doorman,
        wire::{SERVICE as MIGRATE, peer},
    },
};
use async_trait::async_trait;
use p2pvm_overlay::{FabricError, MemberId, Serve, VmId};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// The service's name.
pub const SERVICE: &str = "vm";

/// How long a member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A question to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmRequest {
    /// Which VMs has it?
    List,
    /// Does the VM's guest run there?
    Runs(VmId),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmAnswer {
    /// Its VMs.
    Vms(Vec<VmStatus>),
    /// Whether the guest runs; `None`: it has no such VM.
    Runs(Option<bool>),
}

struct Clerk(Weak<Host>);

#[async_trait]
impl Serve for Clerk {
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let host = self.0.upgrade().ok_or("this host is shutting down")?;
        let request = postcard::from_bytes(&body).map_err(|e| format!("the request cannot be read: {e}"))?;
        let answer = host.reply(&request);
        postcard::to_allocvec(&answer).map_err(|e| format!("the answer cannot be written: {e}"))
    }
}

impl Host {
    pub(super) fn serve_members(&self) {
        let fabric = &self.parts.fabric;
        fabric.serve(SERVICE, Arc::new(Clerk(self.this.clone())));
        fabric.serve(MIGRATE, Arc::new(Doorman(self.this.clone())));
        self.accept_migration_streams();
    }

    fn reply(&self, request: &VmRequest) -> VmAnswer {
        match request {
            VmRequest::List => VmAnswer::Vms(self.list()),
            VmRequest::Runs(id) => {
                VmAnswer::Runs(self.slot_of(*id).map(|slot| !matches!(slot.status(self.me).state, VmState::Stopped | VmState::Branch)))
            }
        }
    }

    /// Asks a member, which may be this one.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub(crate) async fn ask_member(&self, member: MemberId, request: &VmRequest) -> Result<VmAnswer, Error> {
        if member == self.me {
            return Ok(self.reply(request));
        }
        let body = postcard::to_allocvec(request).expect("plain fields always serialize");
        let step = "asking a member about its VMs";
        let answer = self.parts.fabric.call(member, SERVICE, body, TIMEOUT).await.map_err(peer(step))?;
        postcard::from_bytes(&answer).map_err(|e| peer(step)(FabricError::Refused(member, format!("its answer cannot be read: {e}"))))
    }

    /// The VMs of this host and of every connected member, by name; members that do not answer in time are left out and named.
    pub async fn list_all(&self) -> (Vec<VmStatus>, Vec<MemberId>) {
        let members = self.parts.fabric.connected();
        let asked =
            futures::future::join_all(members.iter().map(|m| async move { (*m, self.ask_member(*m, &VmRequest::List).await) })).await;
        let (mut vms, mut silent) = (self.list(), Vec::new());
        for (member, answer) in asked {
            match answer {
                Ok(VmAnswer::Vms(theirs)) => vms.extend(theirs),
                _ => silent.push(member),
            }
        }
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        (vms, silent)
    }
}
