//! What a revocation covers, and what makes it invalid.

use super::*;
use crate::{Amounts, Grant, Refusal, Request, Right, Rights, Token};
use p2pvm_overlay::VmId;
use proptest::prelude::*;

const WEB: Resource = Resource::Vm(VmId([7; 32]));
const NOW: u64 = 1_800_000_000;

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&[number; 32])
}

fn grant(to: &KeyPair, rights: Rights) -> Grant {
    Grant {
        resource: WEB,
        rights,
        audience: to.public(),
        from: NOW,
        until: NOW + 3600,
        amounts: Amounts::default(),
    }
}

/// A token of `links` links, each for the next key.
fn chain(links: u8) -> Token {
    let mut token = Token::issue(&key(1), grant(&key(2), Rights::all()));
    for at in 2..=links {
        let next = grant(&key(at + 1), Rights::all());
        token = token.pass_on(&key(at), next).unwrap();
    }
    token
}

fn checked(token: &Token, kept: &Revocations, owner: &KeyPair) -> Result<(), Refusal> {
    let request = Request {
        asker: token.audience(),
        resource: WEB,
        right: Right::Start,
        amounts: Amounts::default(),
        now: NOW + 5,
    };
    token.check(&[owner.public()], &request, |serial| kept.has(serial))
}

#[test]
fn a_revoked_token_opens_nothing_and_others_stay() {
    let owner = key(1);
    let (first, second) = (chain(1), chain(1));
    let mut kept = Revocations::default();
    let serial = first.links()[0].serial;
    let word = Revocation::sign(&owner, WEB, serial, first.until());
    assert_eq!(kept.add(WEB, word, NOW), Ok(true));
    assert_eq!(kept.add(WEB, word, NOW), Ok(false), "it is known");
    assert_eq!(checked(&first, &kept, &owner), Err(Refusal::Revoked));
    assert_eq!(checked(&second, &kept, &owner), Ok(()));
}

#[test]
fn only_a_signed_and_finite_revocation_of_a_living_token_is_kept() {
    let owner = key(1);
    let mut kept = Revocations::default();
    let word = Revocation::sign(&owner, WEB, [1; 16], NOW + 60);
    let other = Resource::Vm(VmId([8; 32]));
    assert_eq!(kept.add(other, word, NOW), Err(RevokeError::Forged));
    assert_eq!(kept.add(WEB, word, NOW + 60), Err(RevokeError::Ended));
    let endless = Revocation::sign(&owner, WEB, [1; 16], u64::MAX);
    assert_eq!(kept.add(WEB, endless, NOW), Err(RevokeError::Endless));
    assert!(kept.is_empty());
    for number in 0..MAX_REVOCATIONS as u8 {
        let one = Revocation::sign(&owner, WEB, [number; 16], NOW + 60);
        assert_eq!(kept.add(WEB, one, NOW), Ok(true));
    }
    let more = Revocation::sign(&owner, WEB, [99; 16], NOW + 600);
    assert_eq!(kept.add(WEB, more, NOW), Err(RevokeError::Full));
    assert_eq!(kept.add(WEB, more, NOW + 60), Ok(true), "the others ended");
    assert_eq!(kept.iter().count(), 1);
    assert!(kept.drop_ended(NOW + 600) && kept.is_empty());
    assert!(!kept.drop_ended(NOW + 600));
}

#[test]
fn strangers_revocations_do_not_keep_the_owners_out() {
    let (owner, stranger) = (key(1), key(2));
    let counts = |signer: &Principal| *signer == owner.public();
    let sign = |by: &KeyPair, serial| Revocation::sign(by, WEB, [serial; 16], NOW + 60);
    let all = MAX_REVOCATIONS as u8;
    let mut kept = Revocations::of_told(WEB, (0..all).map(|at| sign(&stranger, at)), NOW);
    assert_eq!(kept.iter().count(), MAX_REVOCATIONS);
    for at in all..2 * all {
        let word = sign(&owner, at);
        assert_eq!(kept.add(WEB, word, NOW), Err(RevokeError::Full));
        assert_eq!(kept.add_over(WEB, word, NOW, counts), Ok(true));
        assert_eq!(kept.iter().count(), MAX_REVOCATIONS);
    }
    assert!(kept.iter().all(|one| counts(&one.signer)));
    let more = sign(&owner, 99);
    assert_eq!(
        kept.add_over(WEB, more, NOW, counts),
        Err(RevokeError::Full)
    );
}

#[test]
fn what_another_host_tells_is_checked_and_bounded() {
    let owner = key(1);
    let good = Revocation::sign(&owner, WEB, [1; 16], NOW + 60);
    let forged = Revocation {
        until: NOW + 61,
        ..good
    };
    let many = std::iter::repeat_n(forged, 100).chain([good]);
    assert!(
        Revocations::of_told(WEB, many, NOW).is_empty(),
        "only so many are looked at"
    );
    let kept = Revocations::of_told(WEB, [forged, good, good], NOW);
    assert_eq!(kept.iter().collect::<Vec<_>>(), [&good]);
    assert!(Revocations::of_told(WEB, [good], NOW + 60).is_empty());
}

/// The bytes of version 1, so that later versions go on reading them.
#[test]
fn the_wire_format_of_a_revocation_stays_as_published() {
    let owner = key(1);
    let word = Revocation::sign(&owner, WEB, [9; 16], NOW);
    let field = word.to_field();
    assert_eq!(field[..16], [9; 16]);
    assert_eq!(field[16..21], [128, 164, 167, 218, 6]);
    assert_eq!(field[21..53], owner.public());
    assert_eq!(field.len(), 53 + 64);
    let message = word.to_message(WEB);
    assert_eq!(message[..2], [1, 0]);
    assert_eq!(
        (&message[2..34], &message[34..]),
        (&[7; 32][..], &field[..])
    );
    assert_eq!(Revocation::from_message(&message), Some((WEB, word)));
    assert_eq!(Revocation::from_field(&field), Some(word));
    assert_eq!(
        Revocation::from_message(&[&message[..], &[0]].concat()),
        None
    );
    assert_eq!(
        Revocation::from_message(&[&[2], &message[1..]].concat()),
        None
    );
    assert_eq!(Revocation::from_message(&[]), None);
}

proptest! {
    #[test]
    fn with_a_link_falls_all_that_was_passed_on_from_it(
        links in 1u8..=4, revoked in 0usize..4, cut in 1usize..=4,
    ) {
        let (owner, whole) = (key(1), chain(links));
        let Some(link) = whole.links().get(revoked) else { return Ok(()) };
        let mut kept = Revocations::default();
        let word = Revocation::sign(&owner, WEB, link.serial, whole.until());
        prop_assert_eq!(kept.add(WEB, word, NOW), Ok(true));
        prop_assert_eq!(checked(&whole, &kept, &owner), Err(Refusal::Revoked));
        // The token as it was before it was passed on further stays valid above the revoked link.
        let mut bytes = vec![1];
        let first = &whole.links()[..cut.min(usize::from(links))];
        bytes.extend(postcard::to_stdvec(first).unwrap());
        let part = Token::from_bytes(&bytes).unwrap();
        let fell = first.len() > revoked;
        prop_assert_eq!(checked(&part, &kept, &owner).is_err(), fell);
    }

    /// Whatever holders do with a token one after another, it allows no more than it did.
    #[test]
    fn no_sequence_of_passing_on_and_reading_widens_a_token(
        first in 0u32..512, steps in prop::collection::vec((0u8..3, 0u32..512, 0u64..9000), 0..12),
    ) {
        let set = |bits: u32| -> Rights {
            Right::ALL.into_iter().filter(|right| bits & (1 << *right as u32) != 0).collect()
        };
        let (mut token, mut holder) = (Token::issue(&key(1), grant(&key(2), set(first))), 2);
        for (step, bits, until) in steps {
            let before = token.clone();
            match step {
                0 => {
                    let wider = Grant { until: NOW + until, ..grant(&key(holder + 1), set(bits)) };
                    if let Some(passed) = token.pass_on(&key(holder), wider) {
                        (token, holder) = (passed, holder + 1);
                    }
                }
                1 => token = Token::from_bytes(&token.to_bytes()).unwrap(),
                _ => token = token.to_string().parse().unwrap(),
            }
            prop_assert!(token.rights().within(before.rights()));
            prop_assert!(token.until() <= before.until());
            prop_assert_eq!(token.links()[0].issuer, key(1).public());
        }
        prop_assert!(token.rights().within(set(first)));
        let result = checked(&token, &Revocations::default(), &key(1));
        let has = token.rights().has(Right::Start) && NOW + 5 < token.until();
        prop_assert_eq!(result.is_ok(), has);
    }

    #[test]
    fn a_changed_byte_spoils_a_revocation(at: prop::sample::Index, change in 1u8..) {
        let word = Revocation::sign(&key(1), WEB, [1; 16], NOW + 60);
        let mut bytes = word.to_message(WEB);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Some((resource, changed)) = Revocation::from_message(&bytes) {
            prop_assert!(!changed.is_signed(resource));
        }
    }

    #[test]
    fn no_bytes_make_reading_a_revocation_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let _ = Revocation::from_message(&bytes);
        let _ = Revocation::from_field(&bytes);
    }
}
