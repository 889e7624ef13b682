//! A node's keys: the ed25519 identity that signs, and the X25519 link key that the packet plane's
//! Noise handshake uses. The link key is random and bound to the identity by a signature in the
//! member's certificate; neither is derived from the other, so that losing one does not lose both.
//!
//! An envelope ([`seal_for`]) is sealed to the identity itself: its sender need know nothing else
//! of the member.
//!
//! Every signature covers a domain string first, so that a signature for one purpose can never be
//! replayed for another.

use crate::{
    durable::write_atomically,
    id::{MemberId, VmId},
};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path};
use zeroize::Zeroizing;

mod envelope;

pub use envelope::{open_once, seal_for, seal_once};

/// An ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// A member's public X25519 key for the packet plane's links.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LinkKey(pub [u8; 32]);

fn framed(domain: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + domain.len() + message.len());
    bytes.extend_from_slice(&(domain.len() as u32).to_be_bytes());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// Whether `signature` is `signer`'s over `message` in `domain`. False also for a key that is no
/// point of the curve or of small order (strict verification).
pub fn verify(signer: &[u8; 32], domain: &str, message: &[u8], signature: &Signature) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(signer) else {
        return false;
    };
    let signature = ed25519_dalek::Signature::from_components(signature.0, signature.1);
    key.verify_strict(&framed(domain, message), &signature)
        .is_ok()
}

/// An ed25519 key pair: a network's root, a VM's owner key, or the signing half of an [`Identity`].
pub struct KeyPair(SigningKey);

impl KeyPair {
    /// A new random key from the system's generator.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        rand::fill(&mut seed[..]);
        Self(SigningKey::from_bytes(&seed))
    }

    /// The pair of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The secret seed, wiped when dropped.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// The public half as a VM's name in the cluster.
    pub fn vm_id(&self) -> VmId {
        VmId(self.public())
    }

    /// Signs `message` for the purpose `domain`.
    pub fn sign(&self, domain: &str, message: &[u8]) -> Signature {
        let signature = self.0.sign(&framed(domain, message));
        Signature(*signature.r_bytes(), *signature.s_bytes())
    }
}

/// This node's secret keys.
pub struct Identity {
    signing: KeyPair,
    link: x25519_dalek::StaticSecret,
}

impl Identity {
    /// New random keys.
    pub fn generate() -> Self {
        let mut secret = Zeroizing::new([0u8; 32]);
        rand::fill(&mut secret[..]);
        Self {
            signing: KeyPair::generate(),
            link: x25519_dalek::StaticSecret::from(*secret),
        }
    }

    /// Reads the keys in `path` (64 bytes: signing seed, link secret), or makes and stores them
    /// with mode 0600.
    ///
    /// # Errors
    /// The file system's error, or `InvalidData` for a file of another length, which is never
    /// overwritten.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read(path).map(Zeroizing::new) {
            Ok(bytes) => {
                let both: &[u8; 64] = bytes.as_slice().try_into().map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "{} is no identity: {} bytes instead of 64",
                            path.display(),
                            bytes.len()
                        ),
                    )
                })?;
                let (seed, link) = both.split_at(32);
                let (seed, link): (&[u8; 32], [u8; 32]) = (
                    seed.try_into().expect("32 of 64"),
                    link.try_into().expect("32 of 64"),
                );
                Ok(Self {
                    signing: KeyPair::from_seed(seed),
                    link: link.into(),
                })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let new = Self::generate();
                let both = Zeroizing::new([&new.signing.seed()[..], new.link.as_bytes()].concat());
                write_atomically(path, &both, 0o600)?;
                Ok(new)
            }
            Err(e) => Err(e),
        }
    }

    /// This node's id.
    pub fn member_id(&self) -> MemberId {
        MemberId(self.signing.public())
    }

    /// The signing half.
    pub fn keys(&self) -> &KeyPair {
        &self.signing
    }

    /// Signs `message` for the purpose `domain`.
    pub fn sign(&self, domain: &str, message: &[u8]) -> Signature {
        self.signing.sign(domain, message)
    }

    /// The public link key.
    pub fn link_key(&self) -> LinkKey {
        LinkKey(x25519_dalek::PublicKey::from(&self.link).to_bytes())
    }

    /// The secret link key, wiped when dropped: for the Noise handshake only.
    pub fn link_secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.link.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_in_its_own_domain_only() {
        let keys = KeyPair::generate();
        let signature = keys.sign("invite", b"text");
        assert!(verify(&keys.public(), "invite", b"text", &signature));
        assert!(!verify(&keys.public(), "record", b"text", &signature));
        assert!(!verify(&keys.public(), "invite", b"texT", &signature));
        assert!(!verify(
            &KeyPair::generate().public(),
            "invite",
            b"text",
            &signature
        ));
    }

    #[test]
    fn an_identity_outlives_a_restart_and_a_damaged_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let first = Identity::load_or_create(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(
            (first.member_id(), first.link_key()),
            (second.member_id(), second.link_key())
        );
        fs::write(&path, b"short").unwrap();
        assert!(Identity::load_or_create(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
