//! A revocation: the root's or a delegate's statement that a member or an invite must no longer be
//! trusted.
//!
//! The root revokes anyone. A delegate revokes invites and members, not other delegates. When a
//! delegate is itself revoked, its certificates and its revocations become invalid with it; the
//! root repeats those that shall stay.

use super::{Certificate, InviteId, Issuer, Refusal, certificate::bytes};
use crate::{
    id::{MemberId, NetworkId, UnixTime},
    identity::{Signature, verify},
};
use serde::{Deserialize, Serialize};

const DOMAIN: &str = "p2pvm revocation 1";

/// The target of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// A member: its certificate, and what it issued as a delegate.
    Member(MemberId),
    /// An invite: no machine joins with it any more. Members that have joined stay.
    Invite(InviteId),
}

/// A signed revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    network: NetworkId,
    target: Target,
    at: UnixTime,
    delegate: Option<Certificate>,
    signature: Signature,
}

impl Revocation {
    /// Signs a revocation.
    pub fn issue(issuer: &Issuer<'_>, network: NetworkId, target: Target, at: UnixTime) -> Self {
        let delegate = issuer.certificate().cloned();
        let signature = issuer.keys().sign(DOMAIN, &bytes(&(network, target, at)));
        Self {
            network,
            target,
            at,
            delegate,
            signature,
        }
    }

    /// Its target.
    pub fn target(&self) -> Target {
        self.target
    }

    /// When it was signed.
    pub fn at(&self) -> UnixTime {
        self.at
    }

    /// The delegate that signed it, or `None` if the root did.
    pub fn delegate(&self) -> Option<MemberId> {
        self.delegate.as_ref().map(Certificate::member)
    }

    /// The delegate's name, or `None` if the root signed.
    pub fn delegate_name(&self) -> Option<&str> {
        self.delegate.as_ref().map(Certificate::name)
    }

    /// Whether an issuer with the right to do so signed it. A delegate's certificate need only have
    /// been valid when the revocation was signed: revocations outlive their issuers' certificates.
    ///
    /// # Errors
    /// [`Refusal::OtherNetwork`], [`Refusal::UnknownIssuer`] or [`Refusal::Tampered`].
    pub fn verify(&self, network: NetworkId) -> Result<(), Refusal> {
        if self.network != network {
            return Err(Refusal::OtherNetwork);
        }
        let signer = match &self.delegate {
            None => network.0,
            Some(delegate) => {
                delegate.verify_signatures(network, self.at)?;
                if !delegate.rights().admit {
                    return Err(Refusal::UnknownIssuer);
                }
                delegate.member().0
            }
        };
        let signed = bytes(&(self.network, self.target, self.at));
        verify(&signer, DOMAIN, &signed, &self.signature)
            .then_some(())
            .ok_or(Refusal::Tampered)
    }

    #[cfg(test)]
    pub(super) fn with_target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }
}
