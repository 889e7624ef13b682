//! Envelopes: bytes that one member alone can open, sealed without asking it anything.
//!
//! The sender makes an X25519 key for this envelope and agrees with the receiver's ed25519 key in
//! its Montgomery form, so that a member's id is enough to write to it; that one key pair may both
//! sign and agree on keys is shown in Thormarker 2021 (eprint 2021/509). The agreed key seals one
//! message by ChaCha20-Poly1305. An envelope does not say who wrote it.

use super::Identity;
use crate::id::MemberId;
use ed25519_dalek::VerifyingKey;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

/// How long the sender's public key is, which comes first.
const KEY_BYTES: usize = 32;

/// Seals `content` for `to`, for the purpose `domain`; `None` if `to` is no key.
pub fn seal_for(to: MemberId, domain: &str, content: &[u8]) -> Option<Vec<u8>> {
    let mut secret = Zeroizing::new([0u8; 32]);
    rand::fill(&mut secret[..]);
    seal_by(StaticSecret::from(*secret), to, domain, content)
}

fn seal_by(secret: StaticSecret, to: MemberId, domain: &str, content: &[u8]) -> Option<Vec<u8>> {
    let theirs = VerifyingKey::from_bytes(&to.0).ok()?.to_montgomery();
    let theirs = PublicKey::from(theirs.to_bytes());
    let mine = PublicKey::from(&secret);
    let key = agreed(domain, &mine, &theirs, &secret.diffie_hellman(&theirs))?;
    Some([&mine.as_bytes()[..], seal_once(&key, content).as_slice()].concat())
}

/// Seals `content` with a key that seals nothing else, ever.
pub fn seal_once(key: &[u8; 32], content: &[u8]) -> Vec<u8> {
    let mut sealed = content.to_vec();
    cipher(key)
        .seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
        .expect("the content is far shorter than what the cipher seals");
    sealed
}

/// What [`seal_once`] sealed with the key; `None` for anything else.
pub fn open_once(key: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    let mut content = sealed.to_vec();
    let length = cipher(key)
        .open_in_place(nonce(), Aad::empty(), &mut content)
        .ok()?
        .len();
    content.truncate(length);
    Some(content)
}

impl Identity {
    /// What was sealed for this member and `domain`; `None` for anything else.
    pub fn open_envelope(&self, domain: &str, envelope: &[u8]) -> Option<Vec<u8>> {
        let (theirs, sealed) = envelope.split_first_chunk::<KEY_BYTES>()?;
        let theirs = PublicKey::from(*theirs);
        let secret = StaticSecret::from(self.signing.0.to_scalar_bytes());
        let mine = PublicKey::from(&secret);
        let key = agreed(domain, &theirs, &mine, &secret.diffie_hellman(&theirs))?;
        open_once(&key, sealed)
    }
}

/// The key that both sides agree on; `None` if one side's key is of small order, so that anybody
/// could know it.
fn agreed(
    domain: &str,
    sender: &PublicKey,
    receiver: &PublicKey,
    shared: &SharedSecret,
) -> Option<Zeroizing<[u8; 32]>> {
    if !shared.was_contributory() {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 key of an envelope");
    hasher.update(&(domain.len() as u32).to_be_bytes());
    hasher.update(domain.as_bytes());
    for part in [sender.as_bytes(), receiver.as_bytes(), shared.as_bytes()] {
        hasher.update(part);
    }
    Some(Zeroizing::new(*hasher.finalize().as_bytes()))
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key);
    LessSafeKey::new(key.expect("the cipher takes keys of 32 bytes"))
}

/// Each key seals one message, so that one nonce is enough.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOMAIN: &str = "p2pvm test";

    #[test]
    fn an_envelope_is_opened_by_its_receiver_alone() {
        let (to, other) = (Identity::generate(), Identity::generate());
        let envelope = seal_for(to.member_id(), DOMAIN, b"share").unwrap();
        assert_eq!(to.open_envelope(DOMAIN, &envelope).unwrap(), b"share");
        assert_eq!(other.open_envelope(DOMAIN, &envelope), None);
        assert_eq!(to.open_envelope("p2pvm other", &envelope), None);
        let again = seal_for(to.member_id(), DOMAIN, b"share").unwrap();
        assert_ne!(again, envelope, "each has a key of its own");
    }

    #[test]
    fn a_changed_envelope_is_refused() {
        let to = Identity::generate();
        let envelope = seal_for(to.member_id(), DOMAIN, b"share").unwrap();
        // The highest bit of an X25519 key is ignored (RFC 7748 §5), but hashed here.
        for bit in 0..envelope.len() * 8 {
            let mut changed = envelope.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(to.open_envelope(DOMAIN, &changed), None, "bit {bit}");
        }
    }

    #[test]
    fn no_envelope_is_made_for_what_is_no_key() {
        // Of small order: the agreed key would be zero.
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(seal_for(MemberId(identity), DOMAIN, b"share"), None);
        // No point of the curve.
        let mut none = [0; 32];
        none[0] = 2;
        assert_eq!(seal_for(MemberId(none), DOMAIN, b"share"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_as_an_envelope(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(Identity::generate().open_envelope(DOMAIN, &bytes), None);
        }
    }
}

#[cfg(test)]
#[path = "envelope_golden_tests.rs"]
mod golden_tests;
