//! Admits a request about a VM, or refuses it with the right that is missing and who can give it.
//! The rule is [`super::rights`]'s.

use super::{
    rights::{Asker, MissingRight, Right, Standing, decide, verb},
    service::Vms,
};
use crate::tokens::service::{HEADER, MAX_SHOWN};
use axum::{
    Extension,
    extract::{Path, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::{IntoResponse, Response},
};
use p2pvm_api::Failure;
use p2pvm_authority::{Amounts, Refusal, Request as TokenRequest, Resource, Token};
use p2pvm_overlay::{MemberId, UnixTime};
use std::sync::Arc;

/// Passes a request on that asks for a right that the asker has.
pub(super) async fn check(
    State((vms, right)): State<(Arc<Vms>, Right)>,
    Extension(asker): Extension<Asker>,
    vm: Option<Path<String>>,
    request: Request,
    next: Next,
) -> Response {
    let name = vm.map(|Path(name)| name);
    let tokens = shown(request.headers());
    match vms.admit(asker, right, name.as_deref(), &tokens).await {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// The tokens that a request shows. More than a few, and what is none, are left out.
fn shown(headers: &HeaderMap) -> Vec<Token> {
    let shown = headers.get_all(HEADER).iter().take(MAX_SHOWN);
    shown
        .filter_map(|value| value.to_str().ok()?.parse().ok())
        .collect()
}

impl Vms {
    async fn admit(
        &self,
        asker: Asker,
        right: Right,
        vm: Option<&str>,
        tokens: &[Token],
    ) -> Result<(), Failure> {
        let closed = self.policies.is_closed();
        // Where every member may, the VM is not looked up for it.
        if decide(Standing::Other, right, closed).is_ok() {
            return Ok(());
        }
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
            return Ok(());
        };
        let mut why = None;
        if let (Asker::Member(member), Some(vm)) = (asker, vm) {
            for token in tokens {
                match self.opens(token, member, right, vm).await {
                    Ok(()) => return Ok(()),
                    Err(refusal) => why = Some(refusal),
                }
            }
        }
        tracing::info!(?asker, %right, vm, "refused a request: the right is missing");
        Err(self.refusal(missing, vm, owner, why))
    }

    /// Whether a token of the VM's owner gives a member the right.
    async fn opens(
        &self,
        token: &Token,
        member: MemberId,
        right: Right,
        vm: &str,
    ) -> Result<(), Refusal> {
        let status = self.host.status(vm).await.map_err(|_| Refusal::Resource)?;
        // A VM of a version without owners belongs to the host that has it.
        let owner = status.owner.unwrap_or_else(|| self.parts.me());
        let request = TokenRequest {
            asker: member.0,
            resource: Resource::Vm(status.definition.vm),
            right,
            amounts: Amounts::default(),
            now: UnixTime::now().0,
        };
        token.check(&[owner.0], &request, |_| false)
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
        let token = match (vm, why) {
            (Some(_), Some(why)) => format!("; of a token that was shown: {why}"),
            (Some(_), None) => ", or for a token ('p2pvm token create')".to_owned(),
            (None, _) => String::new(),
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
