//! Taking a token back before it expires: a signed statement that names one link of it by its
//! serial number. Every token that was passed on from a link has that link and is revoked with it.
//!
//! The receiver of a request checks tokens by itself, so it must have the statement: the owner
//! sends it to the VM's host, and it goes with the VM from there on. The host that receives it
//! first decides whether its signer may revoke. A host keeps a statement until the token expires.
//!
//! Wire format, version 1: the byte 1, then postcard of the resource and the statement. The
//! statements of one resource are kept and sent without it, each by itself.

use crate::{MAX_LIFE, Principal, Resource, Serial};
use p2pvm_overlay::identity::{KeyPair, Signature, verify};
use serde::{Deserialize, Serialize};

/// The domain of a statement's signature.
const DOMAIN: &str = "p2pvm token revocation 1";
const VERSION: u8 = 1;
/// How many statements are kept for one resource.
/// Reason: they are part of the VM's record, which has room for about 4 KiB of them.
pub const MAX_REVOCATIONS: usize = 32;
/// How long after the longest token's end a statement may claim to count.
/// Reason: the clocks of its signer and of the receiver differ.
const SLACK: u64 = 86400;

/// The statement that a link of a token is no longer valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The link.
    pub serial: Serial,
    /// When the token ends by itself, in seconds since 1970.
    pub until: u64,
    /// The key that takes it back.
    pub signer: Principal,
    signature: Signature,
}

/// Why a statement is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// It was changed, or is about another resource.
    #[error("the revocation is forged or damaged: its signature does not fit")]
    Forged,
    /// The token has ended by itself.
    #[error("the token has expired: there is nothing to revoke")]
    Ended,
    /// It would be kept for longer than any token lives.
    #[error("the revocation claims to count for longer than any token is valid")]
    Endless,
    /// Others fill the room.
    #[error(
        "{MAX_REVOCATIONS} tokens of it are revoked already: wait until one of them would have \
            expired"
    )]
    Full,
}

impl Revocation {
    /// Takes back the link `serial` of a token for `resource` that ends at `until`.
    pub fn sign(key: &KeyPair, resource: Resource, serial: Serial, until: u64) -> Revocation {
        let signer = key.public();
        let message = signed(&resource, &serial, until, &signer);
        Revocation {
            serial,
            until,
            signer,
            signature: key.sign(DOMAIN, &message),
        }
    }

    /// Whether its signature is its signer's, over this resource.
    pub fn is_signed(&self, resource: Resource) -> bool {
        let message = signed(&resource, &self.serial, self.until, &self.signer);
        verify(&self.signer, DOMAIN, &message, &self.signature)
    }

    /// The wire form, with its resource.
    pub fn to_message(&self, resource: Resource) -> Vec<u8> {
        postcard::to_extend(&(resource, self), vec![VERSION])
            .expect("a statement has nothing that postcard cannot write")
    }

    /// Reads the wire form; `None` for anything else. The signature is not checked.
    pub fn from_message(bytes: &[u8]) -> Option<(Resource, Revocation)> {
        let (&VERSION, rest) = bytes.split_first()? else {
            return None;
        };
        let (read, left) = postcard::take_from_bytes(rest).ok()?;
        left.is_empty().then_some(read)
    }

    /// The bytes of a field that holds it.
    pub fn to_field(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a statement has nothing that postcard cannot write")
    }

    /// Reads the bytes of such a field; `None` for anything else. The signature is not checked.
    pub fn from_field(bytes: &[u8]) -> Option<Revocation> {
        let (read, left) = postcard::take_from_bytes(bytes).ok()?;
        left.is_empty().then_some(read)
    }
}

fn signed(resource: &Resource, serial: &Serial, until: u64, signer: &Principal) -> Vec<u8> {
    postcard::to_stdvec(&(resource, serial, until, signer))
        .expect("a statement has nothing that postcard cannot write")
}

/// The statements about one resource's tokens: at most [`MAX_REVOCATIONS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revocations(Vec<Revocation>);

impl Revocations {
    /// No statement.
    pub const NONE: Revocations = Revocations(Vec::new());

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.0.iter()
    }

    /// Keeps a statement about `resource`; one that is kept already stays. Says whether it is new.
    ///
    /// # Errors
    /// Why it is not kept.
    pub fn add(
        &mut self,
        resource: Resource,
        new: Revocation,
        now: u64,
    ) -> Result<bool, RevokeError> {
        self.add_over(resource, new, now, |_| true)
    }

    /// As [`Revocations::add`], but without room the oldest statement goes whose signer does not
    /// count. Reason: another member that told the statements may have signed any number of them.
    ///
    /// # Errors
    /// Why it is not kept.
    pub fn add_over(
        &mut self,
        resource: Resource,
        new: Revocation,
        now: u64,
        counts: impl Fn(&Principal) -> bool,
    ) -> Result<bool, RevokeError> {
        if new.until <= now {
            return Err(RevokeError::Ended);
        }
        if new.until > now.saturating_add(MAX_LIFE.as_secs() + SLACK) {
            return Err(RevokeError::Endless);
        }
        let is_same = |old: &Revocation| (old.serial, old.signer) == (new.serial, new.signer);
        if self
            .0
            .iter()
            .any(|old| is_same(old) && old.until >= new.until)
        {
            return Ok(false);
        }
        if !new.is_signed(resource) {
            return Err(RevokeError::Forged);
        }
        self.drop_ended(now);
        self.0.retain(|old| !is_same(old));
        if self.0.len() >= MAX_REVOCATIONS {
            let spare = self.0.iter().position(|old| !counts(&old.signer));
            self.0.remove(spare.ok_or(RevokeError::Full)?);
        }
        self.0.push(new);
        Ok(true)
    }

    /// Those of `told` that are signed, have not expired, and have room. Another member sent them
    /// with a resource that comes here.
    pub fn of_told(
        resource: Resource,
        told: impl IntoIterator<Item = Revocation>,
        now: u64,
    ) -> Revocations {
        let mut kept = Revocations::default();
        for one in told.into_iter().take(MAX_REVOCATIONS) {
            // One that is not kept has no effect, or no room.
            let _ = kept.add(resource, one, now);
        }
        kept
    }

    /// Drops those whose tokens have ended by themselves; says whether there were any.
    pub fn drop_ended(&mut self, now: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|one| one.until > now);
        self.0.len() != before
    }

    /// Whether the link was taken back.
    pub fn has(&self, serial: &Serial) -> bool {
        self.0.iter().any(|one| one.serial == *serial)
    }

    /// Collects statements that were read and are not checked yet, as many as are kept.
    pub fn unchecked(read: impl IntoIterator<Item = Revocation>) -> Revocations {
        Revocations(read.into_iter().take(MAX_REVOCATIONS).collect())
    }
}

#[cfg(test)]
#[path = "revocation_tests.rs"]
mod tests;
