//! Admits a request about a VM, or refuses it with the right that is missing and who can give it.
//! The rule is [`super::rights`]'s.

use super::{
    rights::{Asker, MissingRight, Right, Standing, decide, verb},
    service::Vms,
};
use crate::{
    http::forward::OfVm,
    tokens::{
        service::{HEADER, MAX_SHOWN},
        shares::Share,
    },
};
use axum::{
    Extension,
    body::Body,
    extract::{Path, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::{IntoResponse, Response},
};
use p2pvm_api::{CreateVm, Doing, Failure, Outcome, client::USER_HEADER};
use p2pvm_authority::{
    Amounts, Asked, Principal, ProofError, Refusal, Request as TokenRequest, Resource, Token,
};
use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_vm_manager::host::VmState;
use std::sync::Arc;

/// How many bytes a request for a new VM may have that shows a token.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Passes a request on that asks for a right that the asker has.
pub(super) async fn check(
    State((vms, right)): State<(Arc<Vms>, Right)>,
    Extension(asker): Extension<Asker>,
    vm: Option<Path<OfVm>>,
    mut request: Request,
    next: Next,
) -> Response {
    let name = vm.map(|Path(vm)| vm.name);
    let proved = vms.user_of(asker, &request);
    let tokens = shown(request.headers());
    let mut new = None;
    if right == Right::Create && !tokens.is_empty() {
        (new, request) = match asked(request).await {
            Ok((new, request)) => (Some(new), request),
            Err(failure) => return failure.into_response(),
        };
    }
    let about = name.as_deref().map_or(About::Host(new.as_ref()), About::Vm);
    let shown = Shown { tokens, proved };
    match vms.admit(asker, right, about, &shown).await {
        Ok(share) => {
            // Until the VM is made.
            if let Some(share) = share {
                request.extensions_mut().insert(share);
            }
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

/// The new VM that a request is for, and the request.
async fn asked(request: Request) -> Outcome<(CreateVm, Request)> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, MAX_BODY_BYTES)
        .await
        .doing("reading the request")?;
    let new = serde_json::from_slice(&bytes).map_err(|e| {
        let why = p2pvm_host::chain(&e);
        Failure::usage(format!("the request cannot be read: {why}"))
    })?;
    Ok((new, Request::from_parts(parts, Body::from(bytes))))
}

/// The tokens that a request shows. More than a few, and what is none, are left out.
fn shown(headers: &HeaderMap) -> Vec<Token> {
    let shown = headers.get_all(HEADER).iter().take(MAX_SHOWN);
    shown
        .filter_map(|value| value.to_str().ok()?.parse().ok())
        .collect()
}

/// What a request shows.
struct Shown {
    tokens: Vec<Token>,
    /// The user that proves to ask, if the request has a proof.
    proved: Option<Result<Principal, ProofError>>,
}

impl Shown {
    /// The key that may use a token: the user's, if it is the user's, else the member's.
    fn asker(&self, member: MemberId, token: &Token) -> Principal {
        match self.proved {
            Some(Ok(user)) if token.audience() == user => user,
            _ => member.0,
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy)]
enum About<'r> {
    /// The VM of that name.
    Vm(&'r str),
    /// This host; with a token, the VM that is to be made here.
    Host(Option<&'r CreateVm>),
}

/// The more useful of the reasons against two tokens: that a token is another member's, or is about
/// something else, says little.
fn telling(first: Option<Refusal>, second: Refusal) -> Refusal {
    match (first, second) {
        (Some(first), Refusal::Owner | Refusal::Audience | Refusal::Resource) => first,
        _ => second,
    }
}

impl Vms {
    /// The user that proves to make a member's request.
    fn user_of(&self, asker: Asker, request: &Request) -> Option<Result<Principal, ProofError>> {
        let Asker::Member(MemberId(member)) = asker else {
            return None;
        };
        let proof = request.headers().get(USER_HEADER)?.to_str().ok()?;
        let path = request.uri().path_and_query()?;
        let asked = Asked {
            member,
            method: request.method().as_str(),
            path: path.as_str(),
        };
        Some(self.tokens.users.prove(proof, &asked))
    }

    async fn admit(
        &self,
        asker: Asker,
        right: Right,
        about: About<'_>,
        shown: &Shown,
    ) -> Outcome<Option<Arc<Share>>> {
        let closed = self.policies.is_closed();
        // Where every member may, the VM is not looked up for it.
        if decide(Standing::Other, right, closed).is_ok() {
            return Ok(None);
        }
        let vm = match about {
            About::Vm(vm) => Some(vm),
            About::Host(_) => None,
        };
        let (standing, owner) = match asker {
            Asker::Root => (Standing::Root, None),
            Asker::Member(member) if self.parts.is_issuer(member) => (Standing::Issuer, None),
            Asker::Member(member) => {
                let owner = self.owner_of(vm).await;
                let is_owner = owner == Some(member);
                let standing = if is_owner {
                    Standing::Owner
                } else {
                    Standing::Other
                };
                (standing, owner)
            }
        };
        let Err(missing) = decide(standing, right, closed) else {
            return Ok(None);
        };
        let mut why = None;
        if let Asker::Member(member) = asker {
            for token in &shown.tokens {
                let by = shown.asker(member, token);
                let opened = match about {
                    About::Vm(vm) => self.opens(token, by, right, vm).await.map(|()| None),
                    About::Host(Some(new)) => self.opens_host(token, (member, by), new).map(Some),
                    About::Host(None) => continue,
                };
                match opened {
                    Ok(share) => return Ok(share),
                    Err(refusal) => why = Some(telling(why, refusal)),
                }
            }
        }
        tracing::info!(?asker, %right, vm, "refused a request: the right is missing");
        let mut failure = self.refusal(missing, vm, owner, why);
        if let Some(Err(error)) = shown.proved {
            failure.message = format!("{}; {error}", failure.message);
        }
        Err(failure)
    }

    /// Whether a token of the VM's owner gives a member the right.
    async fn opens(
        &self,
        token: &Token,
        asker: Principal,
        right: Right,
        vm: &str,
    ) -> Result<(), Refusal> {
        let status = self.host.status(vm).await.map_err(|_| Refusal::Resource)?;
        // A VM of a version without owners belongs to the host that has it.
        let owner = status.owner.unwrap_or_else(|| self.parts.me());
        let vm = status.definition.vm;
        let request = TokenRequest {
            asker,
            resource: Resource::Vm(vm),
            right,
            amounts: Amounts::default(),
            now: UnixTime::now().0,
        };
        let revoked = self.host.revoked(vm);
        token.check(&[owner.0], &request, |serial| revoked.has(serial))
    }

    /// Whether a token of this host's root lets a member make a VM here, beside those that it has
    /// here already; if so, the room for it.
    fn opens_host(
        &self,
        token: &Token,
        (member, asker): (MemberId, Principal),
        new: &CreateVm,
    ) -> Result<Arc<Share>, Refusal> {
        let me = self.parts.me();
        let amounts = |cpus, memory_mib, disk_bytes| Amounts {
            cpus: Some(cpus),
            memory_mib: Some(memory_mib),
            disk_bytes,
            bits_per_second: None,
        };
        let list = || {
            let its = self.host.list().into_iter().filter(|vm| {
                let is_here = !matches!(vm.state, VmState::Branch | VmState::Remote);
                is_here && vm.owner == Some(member)
            });
            let has = its.map(|vm| {
                let it = &vm.definition;
                let amounts = amounts(it.cpus, it.memory_mib, Some(it.disk_bytes));
                (vm.name, amounts)
            });
            has.collect()
        };
        let wanted = (
            new.name.as_str(),
            amounts(new.cpus, new.memory_mib, new.disk_bytes),
        );
        self.tokens.shares.take(member, wanted, list, |amounts| {
            let request = TokenRequest {
                asker,
                resource: Resource::Host(me),
                right: Right::Create,
                amounts,
                now: UnixTime::now().0,
            };
            token.check(&[me.0], &request, |serial| self.tokens.has_revoked(serial))
        })
    }

    /// The member that a VM was made for, if it is known. A refusal need not say why it is not.
    async fn owner_of(&self, vm: Option<&str>) -> Option<MemberId> {
        self.host.status(vm?).await.ok()?.owner
    }

    fn refusal(
        &self,
        MissingRight(right): MissingRight,
        vm: Option<&str>,
        owner: Option<MemberId>,
        why: Option<Refusal>,
    ) -> Failure {
        let host = self.parts.name_of(self.parts.me());
        let token = match why {
            Some(why) => format!("; of a token that was shown: {why}"),
            None => ", or for a token ('p2pvm token create')".to_owned(),
        };
        let (what, who) = match vm {
            Some(vm) => {
                let owner = owner.map_or_else(
                    || "the root of its host".to_owned(),
                    |owner| format!("its owner {}", self.parts.name_of(owner)),
                );
                (format!("{} '{vm}'", verb(right)), owner)
            }
            None => (
                format!("{right} VMs on {host}"),
                format!("the root of {host}"),
            ),
        };
        Failure::refused(format!(
            "this member lacks the right to {what}: default = \"deny\" in the network's access \
                rules leaves that to {who}, the founder's machine and delegates; ask one of them\
                {token}"
        ))
    }
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
