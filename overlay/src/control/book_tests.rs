use super::*;
use crate::{
    id::UnixTime,
    identity::{Identity, KeyPair},
    membership::{Ipv4Subnet, Issuer, NetworkConfig, Rights},
};
use std::net::Ipv4Addr;

struct Members {
    root: KeyPair,
    network: NetworkConfig,
    trust: Trust,
    dir: tempfile::TempDir,
}

impl Members {
    fn new() -> Self {
        let root = KeyPair::from_seed(&[9; 32]);
        let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 99, 0, 0), 16).unwrap();
        let network = NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap();
        let trust = Trust::new(network.id);
        Self {
            root,
            network,
            trust,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn identity(&self, n: u16) -> Identity {
        let path = self.dir.path().join(n.to_string());
        let mut seed = [7; 64];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        std::fs::write(&path, seed).unwrap();
        Identity::load_or_create(&path).unwrap()
    }

    fn contact(&self, n: u16, seq: u64) -> Contact {
        let identity = self.identity(n);
        let lasts = (UnixTime::now(), UnixTime::now().plus(3600));
        let issuer = Issuer::root(&self.root);
        let subject = (identity.member_id(), identity.link_key());
        let certificate = issuer
            .certify(
                &self.network,
                subject,
                &format!("m{n}"),
                Rights { admit: false },
                lasts,
            )
            .unwrap();
        Contact::sign(
            &identity,
            certificate,
            vec![format!("/ip4/10.0.0.1/udp/{n}/quic-v1")],
            false,
            seq,
        )
    }

    fn book(&self) -> Book {
        let me = self.identity(0).member_id();
        Book::load(&self.dir.path().join("peers.json"), &self.trust, me, 24)
    }
}

#[test]
fn a_full_book_keeps_the_nearest_the_used_and_the_pinned() {
    let world = Members::new();
    let mut book = world.book();
    let me = world.identity(0).member_id();
    book.insert(world.contact(0, 1), &world.trust);
    let contacts: Vec<Contact> = (1..600).map(|n| world.contact(n, 1)).collect();
    let pinned = contacts[3].member();
    book.pin([pinned].into());
    let talked_to = contacts[5].member();
    for contact in &contacts[..20] {
        assert!(book.insert(contact.clone(), &world.trust));
    }
    book.alive(talked_to);
    for contact in &contacts[20..] {
        book.insert(contact.clone(), &world.trust);
        assert!(book.len() <= MAX_BOOK, "{}", book.len());
    }
    let mut members: Vec<MemberId> = contacts.iter().map(Contact::member).collect();
    members.sort_by_cached_key(|m| m.ring_addr().distance(&me.ring_addr()));
    assert!(
        members[..NEAR_KEPT].iter().all(|m| book.get(*m).is_some()),
        "the nearest"
    );
    for member in [me, pinned, talked_to] {
        assert!(book.get(member).is_some());
    }
    // One in each doubling of the distance, so that a lookup of any place has somewhere to begin.
    let doublings = |of: Vec<MemberId>| {
        of.iter()
            .map(|m| doubling(&m.ring_addr().distance(&me.ring_addr())))
            .collect::<BTreeSet<_>>()
    };
    let known = book
        .iter()
        .map(Contact::member)
        .filter(|m| *m != me)
        .collect();
    assert_eq!(doublings(known), doublings(members));
    println!("of 600 members the book holds {}", book.len());
    let (file, content) = book.changed().expect("it is new");
    assert!(book.changed().is_none(), "given once");
    std::fs::write(file, content).unwrap();
    assert_eq!(
        world.book().len(),
        book.len(),
        "it is there after a restart"
    );
}

#[test]
fn an_unreachable_member_is_named_to_nobody_but_tried_again() {
    let world = Members::new();
    let mut book = world.book();
    let contacts: Vec<Contact> = (1..40).map(|n| world.contact(n, 1)).collect();
    assert!(
        contacts
            .iter()
            .all(|c| book.insert(c.clone(), &world.trust))
    );
    let lost: BTreeSet<MemberId> = contacts[..10].iter().map(Contact::member).collect();
    for member in &lost {
        (0..FAILING).for_each(|_| book.failed(*member));
    }
    let place = RingAddr([3; 32]);
    assert!(
        book.nearest(&place, 100)
            .iter()
            .all(|c| !lost.contains(&c.member()))
    );
    let mut tried = BTreeSet::new();
    for round in 0..20 {
        let wanted = book.worth_connecting(10, 8, round);
        let these: Vec<MemberId> = wanted.into_iter().filter(|m| lost.contains(m)).collect();
        assert_eq!(these.len(), LOST_TRIED);
        tried.extend(these);
    }
    assert_eq!(tried, lost, "all have their turn");
    let back = *lost.first().unwrap();
    book.alive(back);
    assert!(book.nearest(&place, 100).iter().any(|c| c.member() == back));
    let newer = contacts
        .iter()
        .position(|c| c.member() != back && lost.contains(&c.member()))
        .unwrap();
    assert!(
        book.insert(world.contact(newer as u16 + 1, 2), &world.trust),
        "new addresses are worth a try"
    );
    assert!(
        book.nearest(&place, 100)
            .iter()
            .any(|c| c.member() == contacts[newer].member())
    );
}

#[test]
fn only_newer_contacts_signed_by_members_are_taken() {
    let world = Members::new();
    let mut book = world.book();
    let contact = world.contact(1, 5);
    assert!(
        book.insert(contact.clone(), &world.trust) && !book.insert(contact.clone(), &world.trust)
    );
    assert!(!book.insert(world.contact(1, 4), &world.trust));
    let mut forged = world.contact(1, 6);
    forged.addresses.push("/ip4/10.6.6.6/udp/1/quic-v1".into());
    assert!(!book.insert(forged.clone(), &world.trust) && !book.insert_found(forged, &world.trust));
    assert_eq!(book.get(contact.member()), Some(&contact));
}

#[test]
fn only_members_that_stay_are_named_and_tried() {
    let world = Members::new();
    let mut book = world.book();
    let stays: Vec<MemberId> = (1..4)
        .map(|n| world.contact(n, 1))
        .map(|c| (book.insert(c.clone(), &world.trust), c.member()).1)
        .collect();
    // More than one answer names, nearer to some place than the others.
    for n in 10..60 {
        let (identity, contact) = (world.identity(n), world.contact(n, 1));
        assert!(book.insert(contact.clone(), &world.trust));
        let farewell = Contact::sign(&identity, contact.certificate, Vec::new(), false, 2);
        assert!(book.insert(farewell, &world.trust));
    }
    let left = world.contact(30, 1).member();
    let named: BTreeSet<MemberId> = book
        .nearest(&left.ring_addr(), 16)
        .into_iter()
        .map(Contact::member)
        .collect();
    assert_eq!(named, stays.iter().copied().collect());
    assert!((0..20).all(|round| {
        book.worth_connecting(10, 8, round)
            .iter()
            .all(|m| stays.contains(m))
    }));
    assert!(
        book.get(left).is_some_and(Contact::is_farewell),
        "others may hear of it here"
    );
    assert!(
        book.insert(world.contact(30, 3), &world.trust),
        "it comes back"
    );
    assert!(
        book.nearest(&left.ring_addr(), 16)
            .iter()
            .any(|c| c.member() == left)
    );
}
