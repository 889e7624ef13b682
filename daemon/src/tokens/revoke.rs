//! Taking tokens back. The VM's host checks tokens for the VM, so it must know revocations: the
//! member that revokes signs a revocation, keeps it and sends it to the host. It also tells each
//! later host of the VM. Reason: such a host has the revocation from the previous one, unless that
//! one ran a version without revocations, or the VM's record is older than the revocation.
//!
//! A host keeps revocations by the VM's owner, the founder's machine and delegates.

use super::{kept::id_of, service::Tokens};
use crate::{
    failure::{OrFailure, fabric},
    parts::Parts,
};
use async_trait::async_trait;
use p2pvm_api::{EventKind, Failure, Kind, Outcome, RevokeToken, TokenRevoked};
use p2pvm_authority::{Resource, Revocation, Serial, Subject};
use p2pvm_host::lock;
use p2pvm_overlay::{Epoch, FabricError, MemberId, Serve, UnixTime, VmId};
use p2pvm_vm_manager::{
    directory::Directory,
    host::{Host, VmState, VmStatus},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

/// The service by which a VM's host is told. The body is [`Revocation::to_message`]'s. The answer
/// has no bytes, or is [`NOT_HERE`]; a refusal has its reason.
const SERVICE: &str = "token";
/// The answer of a host that does not have the VM.
const NOT_HERE: [u8; 1] = [1];
/// How long the host may take to answer.
const TELL_LIMIT: Duration = Duration::from_secs(5);
/// How long between two checks whether a VM has come to a host that was not told.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Revokes tokens, and keeps what others revoke.
pub(crate) struct Revoker {
    parts: Arc<Parts>,
    host: Arc<Host>,
    tokens: Arc<Tokens>,
    directory: Directory,
    /// Which stay of the VM was told of a revocation last, and whether its host keeps it.
    told: Mutex<BTreeMap<Serial, (Stay, bool)>>,
}

/// A VM's holder, and the epoch in which it has the VM.
type Stay = (MemberId, Epoch);

impl Revoker {
    /// Answers other members from now on.
    pub(crate) fn new(parts: Arc<Parts>, host: Arc<Host>, tokens: Arc<Tokens>) -> Arc<Self> {
        let fabric = parts.fabric();
        let revoker = Arc::new(Self {
            directory: Directory::new(parts.records.clone()),
            parts,
            host,
            tokens,
            told: Mutex::default(),
        });
        let service = Service(Arc::downgrade(&revoker));
        fabric.serve(SERVICE, Arc::new(service));
        revoker
    }

    /// Takes a token back, and with it what was passed on from it.
    pub(crate) async fn revoke(&self, r: &RevokeToken) -> Outcome<TokenRevoked> {
        let token = self.tokens.find(&r.token)?;
        let (resource, serial, until) = (token.resource(), token.serial(), token.until());
        if until <= UnixTime::now().0 {
            return Err(Failure::refused(
                "the token has expired: nothing is left to revoke",
            ));
        }
        self.is_ours(resource)?;
        let revocation = Revocation::sign(self.parts.identity.keys(), resource, serial, until);
        let was_kept = self.tokens.has_revoked(&serial);
        // Kept first: whatever happens now, the host is told in the end.
        self.tokens.keep_revocation(resource, revocation)?;
        let told = match resource {
            Resource::Vm(vm) => self.tell(vm, revocation).await,
            _ => Ok(self.parts.me()),
        };
        let (host, note) = match told {
            Ok(host) => (Some(self.parts.name_of(host)), None),
            Err(failure) if failure.kind == Kind::Refused => {
                // One that a host before this one took stays: the VM may go back there.
                if !was_kept {
                    self.tokens.drop_revocation(&serial);
                }
                return Err(failure);
            }
            Err(failure) => (None, Some(failure.message)),
        };
        let id = id_of(&token);
        let text = format!("The token {id} was revoked.");
        let (events, fields) = (&self.parts.events, [("token", id)]);
        events.record(EventKind::TokenRevoked, Subject::Host, &fields, text);
        Ok(TokenRevoked {
            host,
            note,
            on: self.tokens.resource(resource).await,
            revoked: id_of(&token),
        })
    }

    /// Whether this member can revoke a token for the resource. A VM's host decides on its own.
    fn is_ours(&self, resource: Resource) -> Outcome<()> {
        match resource {
            Resource::Vm(_) => Ok(()),
            Resource::Host(host) if host == self.parts.me() => Ok(()),
            Resource::Host(host) => Err(Failure::refused(format!(
                "the token is for the host {0}: revoke it there",
                self.parts.name_of(host)
            ))),
            Resource::Image(_) | Resource::Network(_) => {
                Err(Failure::refused("this version gives no such tokens"))
            }
        }
    }

    /// Tells the VM's host, which may be this one, and notes that; returns it.
    async fn tell(&self, vm: VmId, revocation: Revocation) -> Outcome<MemberId> {
        let stay = self.stay_of(vm).await?;
        let host = stay.0;
        if host == self.parts.me() {
            self.keep(Resource::Vm(vm), revocation)?;
        } else {
            let message = revocation.to_message(Resource::Vm(vm));
            let asked = self.parts.fabric();
            match asked.call(host, SERVICE, message, TELL_LIMIT).await {
                Ok(answer) if answer.is_empty() => {}
                Ok(_) => {
                    return Err(Failure::not_found("the VM changes hosts at this moment"));
                }
                Err(FabricError::NoSuchService(..)) => {
                    return Err(Failure::new(Kind::Failed, self.too_old(host)));
                }
                Err(error) => return Err(fabric(error)),
            }
        }
        self.note(revocation.serial, stay, true);
        Ok(host)
    }

    /// Notes whether a stay's host keeps a revocation; false if that was noted already.
    fn note(&self, serial: Serial, stay: Stay, keeps: bool) -> bool {
        let mut told = lock(&self.told);
        told.insert(serial, (stay, keeps)) != Some((stay, keeps))
    }

    fn too_old(&self, host: MemberId) -> String {
        format!(
            "its host {} has an earlier version of p2pvm, which knows no revocations: update it, \
                or move the VM to another host",
            self.parts.name_of(host)
        )
    }

    /// Where the VM is: here, or where its record says.
    async fn stay_of(&self, vm: VmId) -> Outcome<Stay> {
        if let Some(here) = self.here(vm) {
            return Ok((self.parts.me(), here.epoch));
        }
        let record = self.directory.record(vm).await.or_failure()?;
        record
            .map(|record| (record.holder, record.epoch))
            .ok_or_else(|| Failure::not_found("there is no such VM any more"))
    }

    fn here(&self, vm: VmId) -> Option<VmStatus> {
        let is_it = |one: &VmStatus| one.definition.vm == vm && one.state != VmState::Branch;
        self.host.list().into_iter().find(is_it)
    }

    /// Keeps a revocation by a VM's owner, the founder's machine or a delegate with a VM here.
    fn keep(&self, resource: Resource, revocation: Revocation) -> Outcome<()> {
        let Resource::Vm(vm) = resource else {
            return Err(Failure::refused(
                "only tokens for VMs are revoked elsewhere",
            ));
        };
        let here = self.here(vm);
        let here = here.ok_or_else(|| Failure::not_found("the VM is not on this host"))?;
        // It came with the VM: a host before this one knew that its signer counts.
        if self
            .host
            .revoked(vm)
            .iter()
            .any(|known| *known == revocation)
        {
            return Ok(());
        }
        // A VM of a version without owners belongs to the host that has it.
        let owner = here.owner.unwrap_or_else(|| self.parts.me());
        let signer = MemberId(revocation.signer);
        let counts = |signer: MemberId| signer == owner || self.parts.is_issuer(signer);
        if !counts(signer) {
            return Err(Failure::refused(format!(
                "this member may not revoke tokens for '{}': that is left to its owner {}, the \
                    founder's machine and delegates",
                here.name,
                self.parts.name_of(owner)
            )));
        }
        let revoked = self
            .host
            .revoke(vm, revocation, |signer| counts(MemberId(*signer)));
        if revoked.or_failure()? {
            let by = self.parts.name_of(signer);
            tracing::info!(vm = %here.name, %by, "a token was revoked");
        }
        Ok(())
    }

    /// Tells hosts to which VMs have come, until the daemon ends.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look().await;
        }
    }

    async fn look(&self) {
        let left = self.tokens.revocations();
        lock(&self.told).retain(|serial, _| left.iter().any(|(_, one)| one.serial == *serial));
        let mut stays: BTreeMap<VmId, Option<Stay>> = BTreeMap::new();
        for (resource, revocation) in left {
            let Resource::Vm(vm) = resource else { continue };
            let stay = match stays.get(&vm) {
                Some(stay) => *stay,
                None => {
                    let stay = self.stay_of(vm).await.ok();
                    stays.insert(vm, stay);
                    stay
                }
            };
            let Some(stay) = stay.filter(|_| self.was_told(&revocation.serial) != stay) else {
                continue;
            };
            match self.tell(vm, revocation).await {
                // It is kept: this host may learn who its signer is, and the VM may move on.
                Err(failure) if failure.kind == Kind::Refused => {
                    if self.note(revocation.serial, stay, false) {
                        tracing::warn!(%failure, vm = %vm.short(), "a VM's host does not accept \
                            that a token was revoked");
                    }
                }
                Err(failure) => tracing::debug!(%failure, vm = %vm.short(), "a VM's host does \
                    not know yet that a token was revoked"),
                Ok(_) => {}
            }
        }
    }

    /// The stay whose host keeps a revocation, as far as this member knows.
    fn was_told(&self, serial: &Serial) -> Option<Stay> {
        let told = lock(&self.told);
        let (stay, keeps) = *told.get(serial)?;
        keeps.then_some(stay)
    }
}

struct Service(Weak<Revoker>);

#[async_trait]
impl Serve for Service {
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        // A host that is shutting down decides nothing: it is told again.
        let Some(revoker) = self.0.upgrade() else {
            return Ok(NOT_HERE.to_vec());
        };
        let (resource, revocation) =
            Revocation::from_message(&body).ok_or("the revocation cannot be read")?;
        match revoker.keep(resource, revocation) {
            Ok(()) => Ok(Vec::new()),
            Err(failure) if failure.kind == Kind::NotFound => Ok(NOT_HERE.to_vec()),
            Err(failure) => Err(failure.message),
        }
    }
}

#[cfg(test)]
#[path = "revoke_tests.rs"]
mod tests;
