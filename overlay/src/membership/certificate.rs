//! A member's certificate: the root's or a delegate's statement that a key is a member, with its
//! name, link key and rights.

use super::{Groups, NetworkConfig, Refusal, groups::Grant};
use crate::{
    id::{MemberId, NetworkId, UnixTime},
    identity::{KeyPair, LinkKey, Signature, verify},
};
use serde::{Deserialize, Serialize};

const DOMAIN: &str = "p2pvm certificate 1";

/// The canonical bytes of what is signed.
pub(super) fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data in memory always encodes")
}

/// Whether `name` can be one label of a host name (RFC 1123): 1 to 63 of a-z, 0-9 and inner
/// hyphens.
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The rights of a member beyond taking part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Issue invites, admit members and revoke them: a delegate. Only the root grants this.
    pub admit: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    network: NetworkId,
    member: MemberId,
    name: String,
    link_key: LinkKey,
    rights: Grant,
    issued: UnixTime,
    expires: UnixTime,
    issuer: [u8; 32],
}

/// A proof of membership, of use only to the holder of the key in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    body: Body,
    signature: Signature,
    /// The delegate's own certificate, if a delegate signed this one.
    delegate: Option<Box<(Body, Signature)>>,
}

/// An issuer for a network: the root, or a delegate with its certificate.
pub struct Issuer<'a> {
    keys: &'a KeyPair,
    certificate: Option<&'a Certificate>,
}

impl<'a> Issuer<'a> {
    /// The root of a network.
    pub fn root(keys: &'a KeyPair) -> Self {
        Self {
            keys,
            certificate: None,
        }
    }

    /// A delegate: its keys and its certificate, which the root signed.
    pub fn delegate(keys: &'a KeyPair, certificate: &'a Certificate) -> Self {
        Self {
            keys,
            certificate: Some(certificate),
        }
    }

    pub(super) fn keys(&self) -> &KeyPair {
        self.keys
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.certificate.is_none()
    }

    /// Whether other members accept its statement that the bearer of `certificate` is no longer a
    /// member.
    pub fn may_expel(&self, certificate: &Certificate) -> bool {
        self.is_root() || certificate.falls_to_delegates()
    }

    pub(super) fn certificate(&self) -> Option<&Certificate> {
        self.certificate
    }

    /// Certifies a member of `network` that is in no group: [`Issuer::certify_in`].
    ///
    /// # Errors
    /// As [`Issuer::certify_in`].
    pub fn certify(
        &self,
        network: &NetworkConfig,
        who: (MemberId, LinkKey),
        name: &str,
        rights: Rights,
        lasts: (UnixTime, UnixTime),
    ) -> Result<Certificate, Refusal> {
        self.certify_in(network, who, name, (rights, Groups::default()), lasts)
    }

    /// Certifies a member of `network` with its rights and groups, between the given times.
    ///
    /// # Errors
    /// [`Refusal::BadName`]; [`Refusal::UnknownIssuer`] if these keys have no right to, as when a
    /// delegate would make another delegate.
    pub fn certify_in(
        &self,
        network: &NetworkConfig,
        (member, link_key): (MemberId, LinkKey),
        name: &str,
        (rights, groups): (Rights, Groups),
        (issued, expires): (UnixTime, UnixTime),
    ) -> Result<Certificate, Refusal> {
        if !valid_name(name) {
            return Err(Refusal::BadName);
        }
        let delegate = match self.certificate {
            None => None,
            Some(own) if own.delegate.is_none() && !rights.admit => {
                Some(Box::new((own.body.clone(), own.signature)))
            }
            Some(_) => return Err(Refusal::UnknownIssuer),
        };
        let rights = Grant {
            admit: rights.admit,
            groups,
        };
        let body = Body {
            network: network.id,
            member,
            name: name.to_owned(),
            link_key,
            rights,
            issued,
            expires,
            issuer: self.keys.public(),
        };
        let signature = self.keys.sign(DOMAIN, &bytes(&body));
        let certificate = Certificate {
            body,
            signature,
            delegate,
        };
        // No certificate is issued that others would refuse: the chain is checked as they will
        // check it.
        certificate
            .verify_signatures(network.id, issued)
            .map(|()| certificate)
    }
}

impl Certificate {
    /// The member certified.
    pub fn member(&self) -> MemberId {
        self.body.member
    }

    /// The network that it is a member of.
    pub fn network(&self) -> NetworkId {
        self.body.network
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.body.name
    }

    /// Its public key for the packet plane's links.
    pub fn link_key(&self) -> LinkKey {
        self.body.link_key
    }

    /// Its rights.
    pub fn rights(&self) -> Rights {
        Rights {
            admit: self.body.rights.admit,
        }
    }

    /// Its groups.
    pub fn groups(&self) -> &Groups {
        &self.body.rights.groups
    }

    /// When it was signed.
    pub fn issued(&self) -> UnixTime {
        self.body.issued
    }

    /// When it ends.
    pub fn expires(&self) -> UnixTime {
        self.body.expires
    }

    /// The delegate that signed it, or `None` if the root did.
    pub fn delegate(&self) -> Option<MemberId> {
        self.delegate.as_ref().map(|d| d.0.member)
    }

    /// Whether it is revoked with `member`: it is that member's own, signed by that member, or that
    /// of a machine that came out of that member's copied state.
    pub fn hangs_on(&self, member: MemberId) -> bool {
        self.member() == member
            || self.delegate() == Some(member)
            || self.groups().copied_from().any(|origin| origin == member)
    }

    /// Whether a delegate may expel its bearer: only the root may expel another delegate.
    pub fn falls_to_delegates(&self) -> bool {
        !self.rights().admit
    }

    /// Whether the signatures lead to the root of `network` and hold at `now`.
    /// [`Trust`](super::Trust) knows the revocations.
    ///
    /// # Errors
    /// The first of: other network, unknown issuer, tampered, expired.
    pub fn verify_signatures(&self, network: NetworkId, now: UnixTime) -> Result<(), Refusal> {
        if self.body.network != network {
            return Err(Refusal::OtherNetwork);
        }
        if let Some(delegate) = &self.delegate {
            let (body, signature) = delegate.as_ref();
            let linked = body.member.0 == self.body.issuer
                && body.network == network
                && body.issuer == network.0;
            if !linked || !body.rights.admit || self.body.rights.admit {
                return Err(Refusal::UnknownIssuer);
            }
            Self::verify_link(body, signature, now)?;
        } else if self.body.issuer != network.0 {
            return Err(Refusal::UnknownIssuer);
        }
        Self::verify_link(&self.body, &self.signature, now)
    }

    fn verify_link(body: &Body, signature: &Signature, now: UnixTime) -> Result<(), Refusal> {
        if !verify(&body.issuer, DOMAIN, &bytes(body), signature) || !valid_name(&body.name) {
            Err(Refusal::Tampered)
        } else if body.expires <= now {
            Err(Refusal::Expired)
        } else {
            Ok(())
        }
    }

    #[cfg(test)]
    pub(super) fn with_groups(mut self, groups: Groups) -> Self {
        self.body.rights.groups = groups;
        self
    }

    #[cfg(test)]
    pub(super) fn with_name(mut self, name: &str) -> Self {
        self.body.name = name.to_owned();
        self
    }
}
