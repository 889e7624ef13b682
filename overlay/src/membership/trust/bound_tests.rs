//! How much of a delegate's word is kept, and how.

use super::{
    tests::{NOW, World, world},
    *,
};
use crate::{identity::Identity, membership::Issuer};
use std::fs;

fn fill(world: &World, delegate: &Identity, many: u32) -> Vec<Revocation> {
    let certificate = world.delegate(delegate);
    let issuer = Issuer::delegate(delegate.keys(), &certificate);
    let target = |n: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        Target::Member(MemberId(id))
    };
    (0..many)
        .map(|n| Revocation::issue(&issuer, world.network.id, target(n), NOW))
        .collect()
}

#[test]
fn a_delegate_that_revokes_without_end_can_still_be_revoked() {
    let (world, delegate, member) = (world(1), Identity::generate(), Identity::generate());
    let certificate = world.delegate(&delegate);
    let words = fill(&world, &delegate, MAX_OF_DELEGATE as u32 + 9);
    let taken = words
        .iter()
        .filter(|r| world.trust.add_revocation((*r).clone()) == Ok(true))
        .count();
    assert_eq!(taken, MAX_OF_DELEGATE);
    assert!(world.trust.is_used_up(&delegate.member_id()));
    // Another delegate's and the root's fit.
    let other = Identity::generate();
    let others = world.delegate(&other);
    let issuer = Issuer::delegate(other.keys(), &others);
    world.revoke(&issuer, Target::Member(member.member_id()));
    world.revoke(
        &Issuer::root(&world.root),
        Target::Member(delegate.member_id()),
    );
    let verdict = |c: &Certificate| world.trust.verify_at(c, NOW);
    assert_eq!(verdict(&certificate), Err(Refusal::Revoked));
    let by_another = verdict(&world.member(&member));
    assert_eq!(by_another, Err(Refusal::Revoked), "another delegate's fits");
}

#[test]
fn members_that_dropped_different_ones_of_a_delegates_agree() {
    let (here, there, delegate) = (world(1), world(1), Identity::generate());
    let words = fill(&here, &delegate, MAX_OF_DELEGATE as u32 + 9);
    for word in &words {
        here.trust.add_revocation(word.clone()).unwrap();
    }
    for word in words.iter().rev() {
        there.trust.add_revocation(word.clone()).unwrap();
    }
    assert_ne!(here.trust.revocations(), there.trust.revocations());
    assert_eq!(here.trust.digest(), there.trust.digest());
}

#[test]
fn a_revocation_more_is_written_behind_the_others() {
    let (world, delegate) = (world(1), Identity::generate());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("revocations");
    let words = fill(&world, &delegate, 40);
    let kept = Trust::load(world.network.id, &file).unwrap();
    let mut before = Vec::new();
    for word in &words {
        kept.add_revocation(word.clone()).unwrap();
        let now = fs::read(&file).unwrap();
        assert!(now.starts_with(&before), "the file was rewritten");
        before = now;
    }
    // An earlier program finds at least the list that it knows.
    let known: Vec<Revocation> = postcard::from_bytes(&before).unwrap();
    assert_eq!(known, words[..1]);
    // A crash cuts the last one short; the next start makes a list of the others.
    fs::write(&file, &before[..before.len() - 3]).unwrap();
    let again = Trust::load(world.network.id, &file).unwrap();
    assert_eq!(again.revocations().len(), 39);
    let list: Vec<Revocation> = postcard::from_bytes(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(list.len(), 39);
    assert_eq!(again.add_revocation(words[39].clone()), Ok(true));
    let last = Trust::load(world.network.id, &file).unwrap();
    assert_eq!(last.digest(), kept.digest());
}
