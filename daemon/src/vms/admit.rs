//! Admits a request about a VM, or refuses it with the right that is missing and who can give it.
//! The rule is [`super::rights`]'s.

use super::{
    rights::{Asker, MissingRight, Right, Standing, decide, verb},
    service::Vms,
};
use crate::{
    http::forward::PerhapsOfVm,
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
use p2pvm_api::{CreateVm, Doing, EventKind, Failure, Outcome, client::USER_HEADER};
use p2pvm_authority::{
    Amounts, Asked, Principal, ProofError, Refusal, Request as TokenRequest, Resource, Subject,
    Token,
};
use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_vm_manager::host::VmState;
use std::sync::Arc;

/// How many bytes a request for a new VM may have that shows a token.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The least that a request can take: what a token does not even allow this of, it does not allow.
const NOTHING: Amounts = Amounts {
    cpus: Some(0),
    memory_mib: Some(0),
    disk_bytes: Some(0),
    bits_per_second: Some(0),
};

/// Passes a request on that asks for a right that the asker has. Its body is read only once a token
/// gives the right: a request without the right says nothing about what it would have been told.
pub(super) async fn check(
    State((vms, right)): State<(Arc<Vms>, Right)>,
    Extension(asker): Extension<Asker>,
    Path(PerhapsOfVm { name }): Path<PerhapsOfVm>,
    request: Request,
    next: Next,
) -> Response {
    let Some(lack) = vms.lacks(asker, right, name.as_deref()).await else {
        return next.run(request).await;
    };
    let shown = Shown {
        tokens: shown(request.headers()),
        proved: vms.user_of(asker, &request),
    };
    match vms.admit(&lack, &shown, request).await {
        Ok(request) => next.run(request).await,
        Err(failure) => {
            vms.refused(asker, right, name.as_deref());
            failure.into_response()
        }
    }
}

/// How much a VM that a token lets its asker make may send, and how much receive, bits a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRate(pub Option<u64>);

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

/// A right that a member does not have by itself.
struct Lack<'r> {
    member: MemberId,
    missing: MissingRight,
    /// The VM's name; `None` for this host.
    vm: Option<&'r str>,
    /// The VM's owner, if it is known.
    owner: Option<MemberId>,
    /// The user that the VM is for.
    user: Option<Principal>,
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
    /// Records that a member was refused.
    fn refused(&self, asker: Asker, right: Right, vm: Option<&str>) {
        let Asker::Member(member) = asker else { return };
        let name = self.parts.name_of(member);
        let what = vm.unwrap_or("a VM of this host");
        let text = format!("{name} asked to {} {what} and was refused.", verb(right));
        let fields = [("right", right.word().to_owned())];
        let subject = Subject::Member(member, name);
        self.parts
            .events
            .record(EventKind::RequestRefused, subject, &fields, text);
    }

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

    /// What the asker lacks to use the right; `None` if it has it by itself.
    async fn lacks<'r>(&self, asker: Asker, right: Right, vm: Option<&'r str>) -> Option<Lack<'r>> {
        let closed = self.policies.is_closed();
        // Where every member may, the VM is not looked up for it.
        if decide(Standing::Other, right, closed).is_ok() {
            return None;
        }
        let Asker::Member(member) = asker else {
            return None;
        };
        if self.parts.is_issuer(member) {
            return None;
        }
        let (owner, user) = self.owners_of(vm).await;
        let standing = match owner == Some(member) {
            true => Standing::Owner,
            false => Standing::Other,
        };
        let missing = decide(standing, right, closed).err()?;
        Some(Lack {
            member,
            missing,
            vm,
            owner,
            user,
        })
    }

    /// The request, if a token that it shows gives its asker what it lacks.
    async fn admit(
        &self,
        lack: &Lack<'_>,
        shown: &Shown,
        mut request: Request,
    ) -> Outcome<Request> {
        let MissingRight(right) = lack.missing;
        if lack.user.is_some() && shown.proved.and_then(Result::ok) == lack.user {
            return Ok(request);
        }
        let mut why = None;
        let mut fitting = vec![];
        for token in &shown.tokens {
            let by = shown.asker(lack.member, token);
            let opened = match lack.vm {
                Some(vm) => self.opens(token, by, right, vm).await,
                None => self.opens_host(token, by, right, NOTHING),
            };
            match opened {
                Ok(()) => fitting.push((token, by)),
                Err(refusal) => why = Some(telling(why, refusal)),
            }
        }
        if lack.vm.is_some() && !fitting.is_empty() {
            return Ok(request);
        }
        if !fitting.is_empty() {
            let new;
            (new, request) = asked(request).await?;
            for (token, by) in fitting {
                match self.room_for(token, (lack.member, by), &new) {
                    Ok(share) => {
                        // Until the VM is made.
                        request.extensions_mut().insert(share);
                        let rate = TokenRate(token.amounts().bits_per_second);
                        request.extensions_mut().insert(rate);
                        return Ok(request);
                    }
                    Err(refusal) => why = Some(telling(why, refusal)),
                }
            }
        }
        tracing::info!(member = %lack.member.short(), %right, vm = lack.vm, "refused a request: \
            the right is missing");
        let mut failure = self.refusal(lack, why);
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

    /// Whether a token of this host's root gives a member the right on so much of this host.
    fn opens_host(
        &self,
        token: &Token,
        asker: Principal,
        right: Right,
        amounts: Amounts,
    ) -> Result<(), Refusal> {
        let me = self.parts.me();
        let request = TokenRequest {
            asker,
            resource: Resource::Host(me),
            right,
            amounts,
            now: UnixTime::now().0,
        };
        token.check(&[me.0], &request, |serial| self.tokens.has_revoked(serial))
    }

    /// The room for a VM that a token of this host's root lets a member make here, beside those
    /// that it has here already.
    fn room_for(
        &self,
        token: &Token,
        (member, asker): (MemberId, Principal),
        new: &CreateVm,
    ) -> Result<Arc<Share>, Refusal> {
        let amounts = |cpus, memory_mib, disk_bytes| Amounts {
            cpus: Some(cpus),
            memory_mib: Some(memory_mib),
            disk_bytes,
            // Each VM has it by itself: the sum is not bounded.
            bits_per_second: Some(0),
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
            self.opens_host(token, asker, Right::Create, amounts)
        })
    }

    /// The member and the user that a VM was made for, if they are known. A refusal need not say
    /// why they are not.
    async fn owners_of(&self, vm: Option<&str>) -> (Option<MemberId>, Option<Principal>) {
        let Some(vm) = vm else { return (None, None) };
        let found = self.host.status(vm).await;
        found.map_or((None, None), |found| (found.owner, found.user))
    }

    fn refusal(&self, lack: &Lack<'_>, why: Option<Refusal>) -> Failure {
        let MissingRight(right) = lack.missing;
        let (vm, owner) = (lack.vm, lack.owner);
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
