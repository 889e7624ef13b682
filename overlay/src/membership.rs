//! Membership: networks, certificates, invites and revocations, all signed, and verifiable offline
//! with the network's root key.
//!
//! The root is the network: its public key is the [`NetworkId`](crate::NetworkId). It certifies
//! members itself or through delegates (one level: root → delegate → member). An invite is a signed
//! promise to admit its bearer, a given number of times until a given time. A revocation is signed
//! like a certificate and spreads by gossip. It is never withdrawn: a revoked machine returns with
//! a new identity.
//!
//! Only [`Trust::load`] and its like do IO here. An [`Admission`] counts an invite's uses, because
//! that takes the agreement of the other members.

mod certificate;
mod cidr;
#[cfg(test)]
pub(crate) mod golden_tests;
mod groups;
mod invite;
mod network;
mod notice;
pub mod policy;
mod revocation;
mod trust;

pub use certificate::{Certificate, Issuer, Rights, valid_name};
pub use cidr::{Cidr, ParseCidrError};
pub use groups::Groups;
pub use invite::{Invite, InviteId, InviteTerms};
pub use network::{Ipv4Subnet, NetworkConfig, vm_mac};
pub(crate) use notice::NoticeKey;
pub use notice::{Notice, Offer, SignedPolicy};
pub use policy::NetworkPolicy;
pub use revocation::{Revocation, Target};
pub use trust::{DifferingRevocations, KnownRevocations, RevocationDigests, Trust};

use crate::id::MemberId;
use crate::lock;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Mutex;

/// Why a proof of membership, an invite or a request to join is refused. It is sent to the refused
/// side, so each reason says what a person can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It has expired.
    #[error("it has expired: ask for a new one")]
    Expired,
    /// The invite has admitted as many members as it may.
    #[error("the invite is used up: ask for a new one")]
    UsedUp,
    /// A signature does not fit what it signs.
    #[error("it was altered after it was signed, or signed with another key")]
    Tampered,
    /// It belongs to another network.
    #[error("it is of another network")]
    OtherNetwork,
    /// The member, its issuer or the invite has been revoked.
    #[error("it has been revoked")]
    Revoked,
    /// The text or message is no invite at all, or an incomplete one.
    #[error("this is not an invite: it may have been cut off when it was copied")]
    NotAnInvite,
    /// Its issuer has no right to issue it.
    #[error("its issuer may not admit members")]
    UnknownIssuer,
    /// Another member has the name already.
    #[error("the name is taken by another member: choose another")]
    NameTaken,
    /// The name cannot be a host name.
    #[error("the name is no host name: use up to 63 lower-case letters, digits and inner hyphens")]
    BadName,
    /// The certificate is somebody else's.
    #[error("the certificate belongs to another key")]
    NotYours,
    /// The member asked can neither admit nor pass the request on to one that can.
    #[error(
        "this member cannot admit anyone and reaches nobody who can: try another bootstrap address"
    )]
    CannotAdmit,
    /// The admission could not be decided now, for this reason.
    #[error("the admission could not be decided: {0}")]
    Undecided(String),
    /// A group's name cannot be one, or there are too many.
    #[error("groups are up to 16 names of lower-case letters, digits and inner hyphens")]
    BadGroup,
    /// A document for the network is invalid, for this reason.
    #[error("{0}")]
    BadDocument(String),
}

/// Decides whether a valid invite may be used (once more) by `joiner`. The signature, the expiry
/// and revocations have been checked before; only the count is left, which must be durable and
/// agreed.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Counts one use for `joiner`, unless it was counted before: the same joiner asking again
    /// after a lost answer costs nothing. `name` is the host name that it asks for.
    ///
    /// # Errors
    /// [`Refusal::UsedUp`], [`Refusal::NameTaken`], or [`Refusal::Undecided`] if the others cannot
    /// be asked.
    async fn admit(&self, invite: &Invite, joiner: MemberId, name: &str) -> Result<(), Refusal>;
}

/// An [`Admission`] that counts in this process only: for tests and for a network of one.
#[derive(Default)]
pub struct LocalAdmission(Mutex<HashMap<InviteId, HashMap<MemberId, String>>>);

#[async_trait]
impl Admission for LocalAdmission {
    async fn admit(&self, invite: &Invite, joiner: MemberId, name: &str) -> Result<(), Refusal> {
        let mut used = lock(&self.0);
        if used
            .values()
            .flatten()
            .any(|(member, taken)| *member != joiner && taken == name)
        {
            return Err(Refusal::NameTaken);
        }
        let joiners = used.entry(invite.id()).or_default();
        if !joiners.contains_key(&joiner) && joiners.len() >= invite.uses() as usize {
            return Err(Refusal::UsedUp);
        }
        joiners.insert(joiner, name.to_owned());
        Ok(())
    }
}
