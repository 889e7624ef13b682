//! A user's proof of a request: a signature over it by the key of a person, apart from the machine
//! at which the person sits. With it the user can use its tokens at any member.
//!
//! The proof is about one request: the member that sends it, its method and path, the time, and a
//! random number. The receiver knows the member from the connection, so a host that was shown a
//! proof cannot use it itself. It accepts a proof once, and only within a minute of its time. The
//! proof does not cover the request's body: the user trusts the machine at which it sits with the
//! command.
//!
//! Text form: `p2pvmuser1` and lower-case base32 of postcard of the proof.

use crate::Principal;
use data_encoding::BASE32_NOPAD;
use p2pvm_overlay::identity::{KeyPair, Signature, verify};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// The domain of a proof's signature.
const DOMAIN: &str = "p2pvm user request 1";
const PREFIX: &str = "p2pvmuser1";
/// How many letters a proof has at most. Reason: one has about 230.
const MAX_LETTERS: usize = 512;
/// How long before and after its time a proof is accepted.
/// Reason: clocks of members differ, and a request may take some time to arrive.
pub const PROOF_WINDOW: Duration = Duration::from_secs(60);
/// How many proofs are remembered, so that none is accepted twice.
const MAX_SEEN: usize = 16_384;
/// How many of them are one member's.
/// Reason: anybody makes a user's key, so that one member could use up what all others need.
const MAX_OF_MEMBER: usize = 1024;

/// The request that a proof is for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'r> {
    /// The member that sends it.
    pub member: Principal,
    /// Its method, such as "POST".
    pub method: &'r str,
    /// Its path, with the query.
    pub path: &'r str,
}

/// A user's proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The user's key.
    pub user: Principal,
    at: u64,
    nonce: [u8; 16],
    signature: Signature,
}

/// Why a proof is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The text is no proof.
    #[error("the user's proof is damaged")]
    Damaged,
    /// It is about another request, or was changed.
    #[error("the user's proof is for another request")]
    Forged,
    /// Its time is too long ago or in the future.
    #[error("the user's proof is not of this minute: look at the clocks of both machines")]
    Late,
    /// It was used already.
    #[error("the user's proof was used already")]
    Used,
    /// Too many have come.
    #[error("too many users' requests from this member in a minute: try again later")]
    Many,
}

impl Proof {
    /// Signs a request at a time, in seconds since 1970.
    pub fn sign(key: &KeyPair, asked: &Asked<'_>, at: u64) -> Proof {
        let (user, nonce) = (key.public(), rand::random());
        let message = signed(&user, at, &nonce, asked);
        Proof {
            user,
            at,
            nonce,
            signature: key.sign(DOMAIN, &message),
        }
    }

    fn is_signed(&self, asked: &Asked<'_>) -> bool {
        let message = signed(&self.user, self.at, &self.nonce, asked);
        verify(&self.user, DOMAIN, &message, &self.signature)
    }
}

fn signed(user: &Principal, at: u64, nonce: &[u8; 16], asked: &Asked<'_>) -> Vec<u8> {
    let Asked {
        member,
        method,
        path,
    } = asked;
    postcard::to_stdvec(&(user, at, nonce, member, method, path))
        .expect("a request has nothing that postcard cannot write")
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        write!(f, "{PREFIX}{text}")
    }
}

impl FromStr for Proof {
    type Err = ProofError;
    fn from_str(text: &str) -> Result<Proof, ProofError> {
        let read = || {
            let coded = text.strip_prefix(PREFIX)?;
            if coded.len() > MAX_LETTERS {
                return None;
            }
            let bytes = BASE32_NOPAD
                .decode(coded.to_ascii_uppercase().as_bytes())
                .ok()?;
            let (proof, left) = postcard::take_from_bytes(&bytes).ok()?;
            left.is_empty().then_some(proof)
        };
        read().ok_or(ProofError::Damaged)
    }
}

/// The proofs that were accepted, by the member that showed them, as long as they could be used
/// again.
#[derive(Debug, Default)]
pub struct SeenProofs(BTreeMap<(Principal, [u8; 16]), u64>);

impl SeenProofs {
    /// Accepts a proof for a request once.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn accept(
        &mut self,
        proof: &Proof,
        asked: &Asked<'_>,
        now: u64,
    ) -> Result<Principal, ProofError> {
        let window = PROOF_WINDOW.as_secs();
        if proof.at.abs_diff(now) > window {
            return Err(ProofError::Late);
        }
        if !proof.is_signed(asked) {
            return Err(ProofError::Forged);
        }
        let shown = (asked.member, proof.nonce);
        if self.0.contains_key(&shown) {
            return Err(ProofError::Used);
        }
        if self.is_full(&asked.member) {
            self.0.retain(|_, at| at.saturating_add(window) >= now);
        }
        if self.is_full(&asked.member) {
            return Err(ProofError::Many);
        }
        self.0.insert(shown, proof.at);
        Ok(proof.user)
    }

    fn is_full(&self, member: &Principal) -> bool {
        let of_member = (*member, [0; 16])..=(*member, [u8::MAX; 16]);
        self.0.len() >= MAX_SEEN || self.0.range(of_member).count() >= MAX_OF_MEMBER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn key(number: u8) -> KeyPair {
        KeyPair::from_seed(&[number; 32])
    }

    fn start(member: u8) -> Asked<'static> {
        Asked {
            member: [member; 32],
            method: "POST",
            path: "/vms/web/start",
        }
    }

    #[test]
    fn a_proof_counts_once_for_its_request_and_for_a_minute() {
        let mut seen = SeenProofs::default();
        let proof = Proof::sign(&key(1), &start(7), NOW);
        let mut accept = |asked: &Asked<'_>, now| seen.accept(&proof, asked, now);
        assert_eq!(
            accept(&start(8), NOW),
            Err(ProofError::Forged),
            "another member"
        );
        let stop = Asked {
            path: "/vms/web/stop",
            ..start(7)
        };
        assert_eq!(accept(&stop, NOW), Err(ProofError::Forged));
        assert_eq!(accept(&start(7), NOW + 61), Err(ProofError::Late));
        assert_eq!(accept(&start(7), NOW - 61), Err(ProofError::Late));
        assert_eq!(accept(&start(7), NOW + 60), Ok(key(1).public()));
        assert_eq!(accept(&start(7), NOW), Err(ProofError::Used));
    }

    #[test]
    fn what_is_remembered_of_proofs_is_bounded() {
        let mut seen = SeenProofs::default();
        let fill = |seen: &mut SeenProofs, member: u8, count: usize| {
            for number in 0..count {
                let mut nonce = [0; 16];
                nonce[..8].copy_from_slice(&number.to_le_bytes());
                seen.0.insert(([member; 32], nonce), NOW);
            }
        };
        let next = |at| Proof::sign(&key(1), &start(7), at);
        fill(&mut seen, 6, MAX_OF_MEMBER);
        let of_six = Proof::sign(&key(1), &start(6), NOW);
        let many = seen.accept(&of_six, &start(6), NOW);
        assert_eq!(many, Err(ProofError::Many));
        let other = seen.accept(&next(NOW), &start(7), NOW);
        assert_eq!(other, Ok(key(1).public()), "one member keeps no other out");
        for member in 8..=u8::MAX {
            fill(&mut seen, member, MAX_OF_MEMBER / 8);
        }
        assert!(seen.0.len() >= MAX_SEEN);
        let many = seen.accept(&next(NOW + 60), &start(7), NOW + 60);
        assert_eq!(many, Err(ProofError::Many));
        assert!(seen.accept(&next(NOW + 61), &start(7), NOW + 61).is_ok());
        assert_eq!(seen.0.len(), 1);
    }

    proptest! {
        #[test]
        fn a_changed_letter_spoils_a_proof(at: prop::sample::Index, letter in "[a-z2-7]") {
            let proof = Proof::sign(&key(1), &start(7), NOW);
            let text = proof.to_string();
            prop_assert_eq!(text.parse(), Ok(proof.clone()));
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let mut changed = text.clone();
            changed.replace_range(at..=at, &letter);
            if let Ok(read) = changed.parse::<Proof>() {
                let accepted = SeenProofs::default().accept(&read, &start(7), NOW).is_ok();
                prop_assert_eq!(accepted, changed == text);
            }
        }

        #[test]
        fn no_text_makes_reading_a_proof_panic(text in ".{0,80}") {
            let _ = text.parse::<Proof>();
            let _ = format!("{PREFIX}{text}").parse::<Proof>();
        }
    }
}
