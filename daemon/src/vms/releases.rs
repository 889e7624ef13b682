//! This host as a voter of a VM: it releases its share of the key of the VM's snapshots to members
//! that may restore the VM, by the rule of [`super::rights`].
//!
//! A host that restores a VM at another member's request shows the voters a token of that member,
//! which came with the request ([`PASSED`]).

use super::rights::{Right, Standing, decide};
use crate::{access::policy::Policies, parts::Parts, tokens::service::MAX_SHOWN};
use axum::http::HeaderMap;
use p2pvm_authority::{Amounts, Request, Resource, Revocations, Token};
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use p2pvm_vm_manager::ReleaseRule;
use std::sync::Arc;

/// The header of a request to restore a VM on another host that has a token for that host.
pub(crate) const PASSED: &str = "p2pvm-token-for-host";
/// How many tokens are looked at: those that came with the request, and the host's own.
const MAX_PROOFS: usize = 2 * MAX_SHOWN;

/// The rule in this network.
pub(crate) struct Releases {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
}

impl Releases {
    pub(crate) fn new(parts: Arc<Parts>, policies: Arc<Policies>) -> Arc<Self> {
        Arc::new(Self { parts, policies })
    }
}

impl ReleaseRule for Releases {
    fn may_open(
        &self,
        asker: MemberId,
        vm: VmId,
        owner: MemberId,
        proofs: &[Vec<u8>],
        revoked: &Revocations,
    ) -> Result<(), String> {
        let is_issuer = |member| self.parts.is_issuer(member);
        let standing = if asker == self.parts.me() {
            Standing::Root
        } else if is_issuer(asker) {
            Standing::Issuer
        } else if asker == owner {
            Standing::Owner
        } else {
            Standing::Other
        };
        if decide(standing, Right::Restore, self.policies.is_closed()).is_ok() {
            return Ok(());
        }
        let request = Request {
            asker: asker.0,
            resource: Resource::Vm(vm),
            right: Right::Restore,
            amounts: Amounts::default(),
            now: UnixTime::now().0,
        };
        judge(&request, owner, (proofs, revoked), is_issuer).map_err(|why| {
            tracing::info!(%vm, asker = %asker.short(), "refused a share of a snapshot key: {why}");
            format!(
                "this member lacks the right to restore it, which its owner {} has; {why}",
                self.parts.name_of(owner)
            )
        })
    }
}

/// Whether a token of the VM's owner, of the founder's machine or of a delegate allows the request.
fn judge(
    request: &Request,
    owner: MemberId,
    (proofs, revoked): (&[Vec<u8>], &Revocations),
    is_issuer: impl Fn(MemberId) -> bool,
) -> Result<(), String> {
    let mut why = "no token was shown".to_owned();
    for token in proofs.iter().take(MAX_PROOFS) {
        let Ok(token) = Token::from_bytes(token) else {
            continue;
        };
        let first = token.links().first().map(|link| link.issuer);
        let issuer = first.filter(|key| is_issuer(MemberId(*key)));
        let owners: Vec<_> = [owner.0].into_iter().chain(issuer).collect();
        match token.check(&owners, request, |serial| revoked.has(serial)) {
            Ok(()) => return Ok(()),
            Err(refusal) => why = format!("of a token that was shown: {refusal}"),
        }
    }
    Err(why)
}

/// The tokens for this host that came with a request.
pub(super) fn passed(headers: &HeaderMap) -> Vec<Vec<u8>> {
    let passed = headers.get_all(PASSED).iter().take(MAX_SHOWN);
    passed
        .filter_map(|value| value.to_str().ok()?.parse::<Token>().ok())
        .map(|token| token.to_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_authority::{Grant, Rights};
    use p2pvm_overlay::identity::KeyPair;

    const VM: VmId = VmId([7; 32]);

    fn member(keys: &KeyPair) -> MemberId {
        MemberId(keys.public())
    }

    fn grant(may: &[Right], to: &KeyPair) -> Grant {
        Grant {
            resource: Resource::Vm(VM),
            rights: may.iter().copied().collect::<Rights>(),
            audience: to.public(),
            from: 100,
            until: 200,
            amounts: Amounts::default(),
        }
    }

    fn request(asker: &KeyPair) -> Request {
        Request {
            asker: asker.public(),
            resource: Resource::Vm(VM),
            right: Right::Restore,
            amounts: Amounts::default(),
            now: 150,
        }
    }

    #[test]
    fn a_host_restores_with_a_token_of_the_member_that_asked() {
        let [owner, issuer, friend, host] = std::array::from_fn(|_| KeyPair::generate());
        let is_issuer = |one: MemberId| one == member(&issuer);
        let judged = |token: &Token| {
            let proofs = [vec![9], token.to_bytes()];
            judge(
                &request(&host),
                member(&owner),
                (&proofs, &Revocations::NONE),
                is_issuer,
            )
        };
        let restore = grant(&[Right::Restore], &host);
        assert_eq!(judged(&Token::issue(&owner, restore)), Ok(()));
        assert_eq!(judged(&Token::issue(&issuer, restore)), Ok(()));
        let theirs = Token::issue(&owner, grant(&[Right::Restore], &friend));
        let passed = theirs.pass_on(&friend, restore).unwrap();
        assert_eq!(judged(&passed), Ok(()));
        for (token, said) in [
            (Token::issue(&friend, restore), "not given by the owner"),
            (
                Token::issue(&owner, grant(&[Right::Start], &host)),
                "right 'restore'",
            ),
            (theirs, "another member"),
        ] {
            let why = judged(&token).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }

    #[test]
    fn bytes_that_are_no_token_prove_nothing() {
        let [owner, host] = std::array::from_fn(|_| KeyPair::generate());
        let proofs = [vec![], vec![1, 2, 3]];
        let judged = judge(
            &request(&host),
            member(&owner),
            (&proofs, &Revocations::NONE),
            |_| true,
        );
        assert_eq!(judged, Err("no token was shown".to_owned()));
    }
}
