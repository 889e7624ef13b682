//! Admits a request about a VM, or refuses it with the right that is missing and who can give it.
//! The rule is [`super::rights`]'s.

use super::{
    rights::{Asker, Missing, Right, Standing, decide},
    service::Vms,
};
use axum::{
    Extension,
    extract::{Path, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use p2pvm_api::Failure;
use p2pvm_overlay::MemberId;
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
    match vms.admit(asker, right, name.as_deref()).await {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

impl Vms {
    async fn admit(&self, asker: Asker, right: Right, vm: Option<&str>) -> Result<(), Failure> {
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
        decide(standing, right, closed).map_err(|missing| {
            tracing::info!(?asker, %right, vm, "refused: the right is missing");
            self.refusal(missing, vm, owner)
        })
    }

    /// The member that a VM was made for, if it is known. Whoever is asked to say no need not say
    /// why it does not know.
    async fn owner_of(&self, vm: Option<&str>) -> Option<MemberId> {
        self.host.status(vm?).await.ok()?.owner
    }

    fn refusal(
        &self,
        Missing(right): Missing,
        vm: Option<&str>,
        owner: Option<MemberId>,
    ) -> Failure {
        let host = self.parts.name_of(self.parts.me());
        let (what, who) = match vm {
            Some(vm) => {
                let owner = owner.map_or_else(
                    || "the root of its host".to_owned(),
                    |owner| format!("its owner {}", self.parts.name_of(owner)),
                );
                (format!("{right} '{vm}'"), owner)
            }
            None => (
                format!("{right} VMs on {host}"),
                format!("the root of {host}"),
            ),
        };
        Failure::refused(format!(
            "this member lacks the right to {what}: default = \"deny\" in the network's access \
                rules leaves that to {who}, the founder's machine and delegates; ask one of them"
        ))
    }
}
