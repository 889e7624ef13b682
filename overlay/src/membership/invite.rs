//! An invite: one line of text, which is all a machine needs in order to join.
//!
//! It holds the network's facts, addresses to dial, and the issuer's signed promise. The text is
//! `p2pvm1` and base32 of a version byte and postcard: letters and digits only, so that a double
//! click selects it whole and no shell or chat alters it. Case does not matter.

use super::{
    Certificate, Groups, Issuer, NetworkConfig, Refusal, certificate::bytes, groups::Grant,
};
use crate::{
    id::{MemberId, UnixTime},
    identity::{Signature, verify},
};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

const DOMAIN: &str = "p2pvm invite 1";
const PREFIX: &str = "p2pvm1";
/// How many bytes a text has at most. Reason: any invite with [`MAX_BOOTSTRAP`] addresses and a
/// delegate's certificate is shorter.
const MAX_TEXT_BYTES: usize = 8 << 10;
const MAX_BOOTSTRAP: usize = 16;

/// An invite's random id, by which it is counted and revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InviteId(pub [u8; 16]);

impl std::fmt::Display for InviteId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl std::str::FromStr for InviteId {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| Refusal::NotAnInvite)?;
        bytes.try_into().map(Self).map_err(|_| Refusal::NotAnInvite)
    }
}

/// An issuer's promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Terms", from = "Terms")]
pub struct InviteTerms {
    /// How many members it may admit.
    pub uses: u32,
    /// When it ends.
    pub expires: UnixTime,
    /// Whether the members that join become delegates. Only the root can promise this.
    pub delegate: bool,
    /// The groups of the members that join.
    pub groups: Groups,
}

/// The terms on the wire: those of invites from before there were groups read the same.
#[derive(Serialize, Deserialize)]
struct Terms {
    uses: u32,
    expires: UnixTime,
    grant: Grant,
}

impl From<InviteTerms> for Terms {
    fn from(terms: InviteTerms) -> Self {
        Self {
            uses: terms.uses,
            expires: terms.expires,
            grant: Grant {
                admit: terms.delegate,
                groups: terms.groups,
            },
        }
    }
}

impl From<Terms> for InviteTerms {
    fn from(terms: Terms) -> Self {
        Self {
            uses: terms.uses,
            expires: terms.expires,
            delegate: terms.grant.admit,
            groups: terms.grant.groups,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    network: NetworkConfig,
    bootstrap: Vec<String>,
    id: InviteId,
    terms: InviteTerms,
    issuer: Option<Certificate>,
}

/// A signed invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    body: Body,
    signature: Signature,
}

impl Invite {
    /// Signs an invite with the addresses `bootstrap` to dial (multiaddresses with `/p2p/`; at most
    /// 16 are kept).
    ///
    /// # Errors
    /// [`Refusal::UnknownIssuer`] if a delegate would promise delegates.
    pub fn issue(
        issuer: &Issuer<'_>,
        network: &NetworkConfig,
        bootstrap: &[String],
        terms: InviteTerms,
    ) -> Result<Self, Refusal> {
        if terms.delegate && issuer.certificate().is_some() {
            return Err(Refusal::UnknownIssuer);
        }
        let id = InviteId(rand::random());
        Ok(Self::sign(issuer, network, bootstrap, terms, id))
    }

    pub(super) fn sign(
        issuer: &Issuer<'_>,
        network: &NetworkConfig,
        bootstrap: &[String],
        terms: InviteTerms,
        id: InviteId,
    ) -> Self {
        let body = Body {
            network: network.clone(),
            bootstrap: bootstrap.iter().take(MAX_BOOTSTRAP).cloned().collect(),
            id,
            terms,
            issuer: issuer.certificate().cloned(),
        };
        let signature = issuer.keys().sign(DOMAIN, &bytes(&body));
        Self { body, signature }
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        format!(
            "{PREFIX}{}",
            BASE32_NOPAD.encode(&bytes(self)).to_ascii_lowercase()
        )
    }

    /// Parses the text form; white space around and inside it, as mail adds it, is ignored.
    ///
    /// # Errors
    /// [`Refusal::NotAnInvite`], or [`Refusal::Tampered`] if it reads well but a signature does not
    /// fit.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let compact: String = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .take(MAX_TEXT_BYTES + 1)
            .collect();
        if compact.len() > MAX_TEXT_BYTES {
            return Err(Refusal::NotAnInvite);
        }
        let lower = compact.to_ascii_lowercase();
        let encoded = lower.strip_prefix(PREFIX).ok_or(Refusal::NotAnInvite)?;
        let raw = BASE32_NOPAD
            .decode(encoded.to_ascii_uppercase().as_bytes())
            .map_err(|_| Refusal::NotAnInvite)?;
        let (invite, rest): (Self, _) =
            postcard::take_from_bytes(&raw).map_err(|_| Refusal::NotAnInvite)?;
        if !rest.is_empty() {
            return Err(Refusal::NotAnInvite);
        }
        invite.verify()?;
        Ok(invite)
    }

    /// Whether an issuer with the right to do so signed exactly this. Time, uses and revocation are
    /// not checked.
    ///
    /// # Errors
    /// [`Refusal::Tampered`], [`Refusal::UnknownIssuer`], [`Refusal::OtherNetwork`] for a chain of
    /// another network.
    pub fn verify(&self) -> Result<(), Refusal> {
        let body = &self.body;
        body.network.verify()?;
        let signer = match &body.issuer {
            None => body.network.id.0,
            Some(issuer) => {
                // An expired certificate of a delegate ends its invites, but as `Expired`, by
                // `check`.
                issuer.verify_signatures(body.network.id, issuer.issued())?;
                if !issuer.rights().admit || body.terms.delegate {
                    return Err(Refusal::UnknownIssuer);
                }
                issuer.member().0
            }
        };
        verify(&signer, DOMAIN, &bytes(body), &self.signature)
            .then_some(())
            .ok_or(Refusal::Tampered)
    }

    /// Whether it is signed and has not expired at `now`.
    ///
    /// # Errors
    /// As [`Invite::verify`], or [`Refusal::Expired`].
    pub fn check(&self, now: UnixTime) -> Result<(), Refusal> {
        self.verify()?;
        let issuer_ended = self
            .body
            .issuer
            .as_ref()
            .is_some_and(|c| c.expires() <= now);
        if self.body.terms.expires <= now || issuer_ended {
            Err(Refusal::Expired)
        } else {
            Ok(())
        }
    }

    /// The network that it admits to.
    pub fn network(&self) -> &NetworkConfig {
        &self.body.network
    }

    /// Multiaddresses of members to dial.
    pub fn bootstrap(&self) -> &[String] {
        &self.body.bootstrap
    }

    /// Its id.
    pub fn id(&self) -> InviteId {
        self.body.id
    }

    /// How many members it may admit.
    pub fn uses(&self) -> u32 {
        self.body.terms.uses
    }

    /// Its terms.
    pub fn terms(&self) -> &InviteTerms {
        &self.body.terms
    }

    /// The delegate that issued it, or `None` if the root did.
    pub fn delegate(&self) -> Option<MemberId> {
        self.body.issuer.as_ref().map(Certificate::member)
    }

    /// The addresses to dial, with `other` ones in place of its own, for a joiner that was given
    /// one by hand. The signature does not cover them; the original invite is presented.
    pub fn knock_at<'a>(&'a self, other: &'a [String]) -> impl Iterator<Item = &'a String> {
        other.iter().chain(&self.body.bootstrap)
    }

    #[cfg(test)]
    pub(super) fn with_uses(mut self, uses: u32) -> Self {
        self.body.terms.uses = uses;
        self
    }
}
