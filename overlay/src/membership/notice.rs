//! Notices: signed documents that every member should have and that are replaced, not collected:
//! the network's policy, and a member's offer to the others (subnets of its LAN, guests'
//! multicast). Each issuer has one of each kind, and the newest one counts. [`crate::notices`]
//! keeps and spreads them.
//!
//! Of the policies of several issuers the one with the highest version counts; a revoked delegate's
//! is dropped. So a stolen delegate key does harm only until the root has revoked it, whatever
//! version it has used.

use super::{Certificate, Cidr, Issuer, NetworkPolicy, Refusal, Trust, certificate::bytes};
use crate::{
    id::{MemberId, NetworkId, UnixTime},
    identity::{KeyPair, Signature, verify},
};
use serde::{Deserialize, Serialize};

const POLICY_DOMAIN: &str = "p2pvm network policy 1";
const OFFER_DOMAIN: &str = "p2pvm offer 1";
/// How many subnets one member offers at most.
const MAX_SUBNETS: usize = 32;

/// The network's policy as its issuer signed it, with the person's text and comments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    network: NetworkId,
    version: u64,
    at: UnixTime,
    text: String,
    delegate: Option<Certificate>,
    signature: Signature,
}

impl SignedPolicy {
    /// Signs a policy.
    ///
    /// # Errors
    /// [`Refusal::BadDocument`] with line and reason.
    pub fn issue(
        issuer: &Issuer<'_>,
        network: NetworkId,
        version: u64,
        at: UnixTime,
        text: &str,
    ) -> Result<Self, Refusal> {
        NetworkPolicy::parse(text).map_err(|e| Refusal::BadDocument(e.to_string()))?;
        let delegate = issuer.certificate().cloned();
        let signature = issuer
            .keys()
            .sign(POLICY_DOMAIN, &bytes(&(network, version, at, text)));
        Ok(Self {
            network,
            version,
            at,
            text: text.to_owned(),
            delegate,
            signature,
        })
    }

    /// Its version: the highest one counts.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When it was signed.
    pub fn at(&self) -> UnixTime {
        self.at
    }

    /// The text as the person wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The delegate that signed it, or `None` if the root did.
    pub fn delegate(&self) -> Option<MemberId> {
        self.delegate.as_ref().map(Certificate::member)
    }

    /// The policy itself. It was parsed before it was accepted.
    pub fn policy(&self) -> Option<NetworkPolicy> {
        NetworkPolicy::parse(&self.text).ok()
    }

    /// The sort key of policies of different issuers.
    pub(crate) fn rank(&self) -> (u64, bool, [u8; 32]) {
        (
            self.version,
            self.delegate.is_none(),
            *blake3::hash(&bytes(&self.signature)).as_bytes(),
        )
    }

    fn verify(&self, trust: &Trust) -> Result<(), Refusal> {
        if self.network != trust.network() {
            return Err(Refusal::OtherNetwork);
        }
        let signer = match &self.delegate {
            None => self.network.0,
            Some(delegate) => {
                // A policy outlives its delegate's certificate, but not its revocation.
                trust.verify_at(delegate, self.at)?;
                if !delegate.rights().admit {
                    return Err(Refusal::UnknownIssuer);
                }
                delegate.member().0
            }
        };
        let signed = bytes(&(self.network, self.version, self.at, self.text.as_str()));
        if !verify(&signer, POLICY_DOMAIN, &signed, &self.signature) {
            return Err(Refusal::Tampered);
        }
        NetworkPolicy::parse(&self.text)
            .map(drop)
            .map_err(|e| Refusal::BadDocument(e.to_string()))
    }
}

/// A member's offer to the others, signed by itself. An empty one withdraws everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    certificate: Certificate,
    subnets: Vec<Cidr>,
    multicast: bool,
    /// Since when this is offered: of two offers of one subnet the older is used.
    since: UnixTime,
    seq: u64,
    expires: UnixTime,
    signature: Signature,
}

impl Offer {
    /// Signs an offer. `seq` is incremented with each one of a member; `expires` is when others
    /// forget it unless it is renewed.
    pub fn sign(
        keys: &KeyPair,
        certificate: Certificate,
        (subnets, multicast): (Vec<Cidr>, bool),
        since: UnixTime,
        (seq, expires): (u64, UnixTime),
    ) -> Self {
        let signed = Self::signed(
            certificate.network(),
            &subnets,
            multicast,
            since,
            seq,
            expires,
        );
        Self {
            certificate,
            subnets,
            multicast,
            since,
            seq,
            expires,
            signature: keys.sign(OFFER_DOMAIN, &signed),
        }
    }

    fn signed(
        network: NetworkId,
        subnets: &[Cidr],
        multicast: bool,
        since: UnixTime,
        seq: u64,
        expires: UnixTime,
    ) -> Vec<u8> {
        bytes(&(network, subnets, multicast, since, seq, expires))
    }

    /// The member that offers.
    pub fn member(&self) -> MemberId {
        self.certificate.member()
    }

    /// Its certificate: its name and groups.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The subnets that it forwards into.
    pub fn subnets(&self) -> &[Cidr] {
        &self.subnets
    }

    /// Whether it has guests that receive others' multicast.
    pub fn multicast(&self) -> bool {
        self.multicast
    }

    /// Since when this is offered.
    pub fn since(&self) -> UnixTime {
        self.since
    }

    /// When it ends unless renewed.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    fn verify(&self, trust: &Trust) -> Result<(), Refusal> {
        if self.subnets.len() > MAX_SUBNETS {
            return Err(Refusal::BadDocument(format!(
                "{} subnets are more than {MAX_SUBNETS}",
                self.subnets.len()
            )));
        }
        trust.verify(&self.certificate)?;
        let signed = Self::signed(
            trust.network(),
            &self.subnets,
            self.multicast,
            self.since,
            self.seq,
            self.expires,
        );
        verify(&self.member().0, OFFER_DOMAIN, &signed, &self.signature)
            .then_some(())
            .ok_or(Refusal::Tampered)
    }
}

/// A notice of one kind or the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The network's policy.
    Policy(Box<SignedPolicy>),
    /// A member's offer.
    Offer(Box<Offer>),
}

/// The kind and issuer of a notice: a newer one replaces it.
pub(crate) type NoticeKey = (u8, Option<MemberId>);

impl Notice {
    pub(crate) fn key(&self) -> NoticeKey {
        match self {
            Self::Policy(policy) => (0, policy.delegate()),
            Self::Offer(offer) => (1, Some(offer.member())),
        }
    }

    /// The sort key of an issuer's notices: the number, then a hash, so that all members prefer the
    /// same one.
    pub(crate) fn order(&self) -> (u64, [u8; 32]) {
        match self {
            Self::Policy(policy) => (
                policy.version,
                *blake3::hash(&bytes(&policy.signature)).as_bytes(),
            ),
            Self::Offer(offer) => (
                offer.seq,
                *blake3::hash(&bytes(&offer.signature)).as_bytes(),
            ),
        }
    }

    /// Whether it has expired.
    pub(crate) fn expired(&self, now: UnixTime) -> bool {
        matches!(self, Self::Offer(offer) if offer.expires <= now)
    }

    /// Whether an issuer with the right to do so signed it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn verify(&self, trust: &Trust) -> Result<(), Refusal> {
        match self {
            Self::Policy(policy) => policy.verify(trust),
            Self::Offer(offer) => offer.verify(trust),
        }
    }
}
