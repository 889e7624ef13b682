//! A token: links from the owner's key to the asker's, each signed by the key that the previous
//! link is for.
//!
//! Wire format, version 1: the byte 1, then postcard of the links. The text form is `p2pvmtoken1`
//! and lower-case base32 of these bytes. A link's signature covers the previous link's, so that no
//! link can be put into another chain.

use crate::{Amounts, Principal, Resource, Right, Rights};
use data_encoding::BASE32_NOPAD;
use p2pvm_overlay::identity::{KeyPair, Signature, verify};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// The domain of a link's signature.
const DOMAIN: &str = "p2pvm token link 1";
const PREFIX: &str = "p2pvmtoken1";
const VERSION: u8 = 1;
/// How many links a token has at most, so that it is passed on three times at most.
/// Reason: each link costs the receiver one signature check.
const MAX_LINKS: usize = 4;
/// How many bytes a token has at most.
/// Reason: four links have about 1000.
const MAX_BYTES: usize = 2048;
/// How long a link is valid at most, whatever it claims.
/// Reason: a right that was given and forgotten ends by itself.
pub const MAX_LIFE: Duration = Duration::from_secs(366 * 86400);

/// A link's own random number, by which it is revoked.
pub type Serial = [u8; 16];

/// What one key allows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The resource that it is about.
    pub resource: Resource,
    /// The rights that it gives.
    pub rights: Rights,
    /// The key that may use it.
    pub audience: Principal,
    /// From this time on, in seconds since 1970.
    pub from: u64,
    /// Before this time.
    pub until: u64,
    /// How much each request may take.
    pub amounts: Amounts,
}

/// A grant with its giver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The key that gives.
    pub issuer: Principal,
    /// What it gives.
    pub grant: Grant,
    /// The number by which it is revoked.
    pub serial: Serial,
    signature: Signature,
}

impl Link {
    fn sign(key: &KeyPair, grant: Grant, before: Option<&Link>) -> Link {
        let (issuer, serial) = (key.public(), rand::random());
        let message = signed(&issuer, &grant, &serial, before);
        Link {
            issuer,
            grant,
            serial,
            signature: key.sign(DOMAIN, &message),
        }
    }

    fn is_signed(&self, before: Option<&Link>) -> bool {
        let message = signed(&self.issuer, &self.grant, &self.serial, before);
        verify(&self.issuer, DOMAIN, &message, &self.signature)
    }
}

fn signed(issuer: &Principal, grant: &Grant, serial: &Serial, before: Option<&Link>) -> Vec<u8> {
    postcard::to_stdvec(&(before.map(|link| link.signature), issuer, grant, serial))
        .expect("a link has nothing that postcard cannot write")
}

/// A request, as its receiver sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The key that asks, proved by the connection.
    pub asker: Principal,
    /// The resource.
    pub resource: Resource,
    /// The right that it needs.
    pub right: Right,
    /// How much of the resource it takes.
    pub amounts: Amounts,
    /// The receiver's time, in seconds since 1970.
    pub now: u64,
}

/// Why a token does not allow a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its first link is not an owner's.
    #[error("the token was not given by the owner")]
    Owner,
    /// It was changed, or put together from parts.
    #[error("the token is forged or damaged: a signature does not fit")]
    Forged,
    /// Another key may use it.
    #[error("the token was given to another member")]
    Audience,
    /// It is about something else.
    #[error("the token is for another resource")]
    Resource,
    /// It does not have the right.
    #[error("the token does not have the right '{0}'")]
    Right(Right),
    /// It allows less.
    #[error("the token allows less {0}")]
    Amount(&'static str),
    /// It is too early.
    #[error("the token is valid only in {} s", .0.as_secs())]
    Early(Duration),
    /// It is too late.
    #[error("the token expired {} s ago", .0.as_secs())]
    Expired(Duration),
    /// A link of it was taken back.
    #[error("the token was revoked")]
    Revoked,
}

/// Why a text or bytes are not a token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseTokenError {
    /// It is something else.
    #[error("not a token: a token begins with '{PREFIX}'")]
    Prefix,
    /// It was cut or changed.
    #[error("the token is damaged or incomplete")]
    Damaged,
    /// A newer p2pvm made it.
    #[error("the token has version {0} and this p2pvm reads only {VERSION}; update p2pvm")]
    Version(u8),
}

/// Rights that were given, and perhaps passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Never empty.
    links: Vec<Link>,
}

impl Token {
    /// A token by which the owner of a resource gives rights on it.
    pub fn issue(owner: &KeyPair, grant: Grant) -> Token {
        Token {
            links: vec![Link::sign(owner, grant, None)],
        }
    }

    /// Passes the token on from `holder` to another key. The result allows what all links allow,
    /// whatever `grant` says. `None` if `holder` does not hold the token, or it was passed on too
    /// often.
    pub fn pass_on(&self, holder: &KeyPair, grant: Grant) -> Option<Token> {
        let last = self.last();
        if last.grant.audience != holder.public() || self.links.len() >= MAX_LINKS {
            return None;
        }
        let mut links = self.links.clone();
        links.push(Link::sign(holder, grant, Some(last)));
        Some(Token { links })
    }

    /// The links, the owner's first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    fn last(&self) -> &Link {
        self.links.last().expect("a token has at least one link")
    }

    /// The number by which it is revoked: its last link's.
    pub fn serial(&self) -> Serial {
        self.last().serial
    }

    /// The resource that it is about.
    pub fn resource(&self) -> Resource {
        self.last().grant.resource
    }

    /// The key that may use it.
    pub fn audience(&self) -> Principal {
        self.last().grant.audience
    }

    /// The rights that all links have.
    pub fn rights(&self) -> Rights {
        let grants = self.links.iter().map(|link| link.grant.rights);
        grants.reduce(Rights::and).unwrap_or_default()
    }

    /// How much all links allow.
    pub fn amounts(&self) -> Amounts {
        let grants = self.links.iter().map(|link| link.grant.amounts);
        grants.reduce(Amounts::and).unwrap_or_default()
    }

    /// The time before which it can be used, in seconds since 1970.
    pub fn until(&self) -> u64 {
        let ends = self.links.iter().map(|link| link.grant.end());
        ends.min().unwrap_or_default()
    }

    /// Whether it allows a request; `owners` are the keys that own the resource.
    /// Signatures are checked last: all other reasons for a refusal cost next to nothing.
    pub fn check(
        &self,
        owners: &[Principal],
        request: &Request,
        is_revoked: impl Fn(&Serial) -> bool,
    ) -> Result<(), Refusal> {
        if !owners.contains(&self.links[0].issuer) {
            return Err(Refusal::Owner);
        }
        if self.audience() != request.asker {
            return Err(Refusal::Audience);
        }
        for link in &self.links {
            link.grant.allows(request)?;
            if is_revoked(&link.serial) {
                return Err(Refusal::Revoked);
            }
        }
        let mut before: Option<&Link> = None;
        for link in &self.links {
            let follows = before.is_none_or(|before| before.grant.audience == link.issuer);
            if !follows || !link.is_signed(before) {
                return Err(Refusal::Forged);
            }
            before = Some(link);
        }
        Ok(())
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(
            postcard::to_stdvec(&self.links)
                .expect("links have nothing that postcard cannot write"),
        );
        bytes
    }

    /// Reads the wire form. The token is not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Token, ParseTokenError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) if bytes.len() <= MAX_BYTES => {
                let (links, left): (Vec<Link>, _) =
                    postcard::take_from_bytes(rest).map_err(|_| ParseTokenError::Damaged)?;
                if !left.is_empty() || !(1..=MAX_LINKS).contains(&links.len()) {
                    return Err(ParseTokenError::Damaged);
                }
                Ok(Token { links })
            }
            Some((&version, _)) if version > VERSION => Err(ParseTokenError::Version(version)),
            _ => Err(ParseTokenError::Damaged),
        }
    }
}

impl Grant {
    fn allows(&self, request: &Request) -> Result<(), Refusal> {
        if self.resource != request.resource {
            return Err(Refusal::Resource);
        }
        if !self.rights.has(request.right) {
            return Err(Refusal::Right(request.right));
        }
        if let Some(what) = request.amounts.excess(&self.amounts) {
            return Err(Refusal::Amount(what));
        }
        if request.now < self.from {
            return Err(Refusal::Early(Duration::from_secs(self.from - request.now)));
        }
        let end = self.end();
        if request.now >= end {
            return Err(Refusal::Expired(Duration::from_secs(request.now - end)));
        }
        Ok(())
    }

    /// When it ends: a grant that claims a longer life than [`MAX_LIFE`] ends after that.
    fn end(&self) -> u64 {
        self.until.min(self.from.saturating_add(MAX_LIFE.as_secs()))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = BASE32_NOPAD.encode(&self.to_bytes()).to_ascii_lowercase();
        write!(f, "{PREFIX}{text}")
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;
    fn from_str(text: &str) -> Result<Token, ParseTokenError> {
        let coded = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(ParseTokenError::Prefix)?;
        if coded.len() > MAX_BYTES * 2 {
            return Err(ParseTokenError::Damaged);
        }
        let bytes = BASE32_NOPAD
            .decode(coded.to_ascii_uppercase().as_bytes())
            .map_err(|_| ParseTokenError::Damaged)?;
        Token::from_bytes(&bytes)
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
