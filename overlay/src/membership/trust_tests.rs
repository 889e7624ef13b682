//! Every way in which a certificate, an invite or a revocation can be bad.

use super::super::*;
use super::*;
use crate::identity::{Identity, KeyPair};
use proptest::prelude::*;
use std::{fs, net::Ipv4Addr};

pub(super) const NOW: UnixTime = UnixTime(1_000_000);

pub(super) struct World {
    pub root: KeyPair,
    pub network: NetworkConfig,
    pub trust: Trust,
}

pub(super) fn world(seed: u8) -> World {
    let root = KeyPair::from_seed(&[seed; 32]);
    let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 9, 0, 0), 16).unwrap();
    let network = NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap();
    let trust = Trust::new(network.id);
    World {
        root,
        network,
        trust,
    }
}

impl World {
    fn certify(
        &self,
        issuer: &Issuer<'_>,
        who: &Identity,
        name: &str,
        admit: bool,
        expires: u64,
    ) -> Result<Certificate, Refusal> {
        issuer.certify(
            &self.network,
            (who.member_id(), who.link_key()),
            name,
            Rights { admit },
            (UnixTime(1), UnixTime(expires)),
        )
    }

    pub fn member(&self, who: &Identity) -> Certificate {
        self.certify(&Issuer::root(&self.root), who, "alpha", false, NOW.0 + 100)
            .unwrap()
    }

    pub fn delegate(&self, who: &Identity) -> Certificate {
        self.certify(&Issuer::root(&self.root), who, "delta", true, NOW.0 + 100)
            .unwrap()
    }

    /// A member that a delegate admitted by its own certificate.
    fn member_of(&self, delegate: &Identity, own: &Certificate, who: &Identity) -> Certificate {
        let issuer = Issuer::delegate(delegate.keys(), own);
        self.certify(&issuer, who, "beta", false, NOW.0 + 9)
            .unwrap()
    }

    fn invite(&self, issuer: &Issuer<'_>) -> Invite {
        let terms = InviteTerms {
            uses: 2,
            expires: NOW.plus(60),
            delegate: false,
            groups: Groups::default(),
        };
        Invite::issue(
            issuer,
            &self.network,
            &["/ip4/10.0.0.1/udp/1/quic-v1".into()],
            terms,
        )
        .unwrap()
    }

    pub fn revoke(&self, issuer: &Issuer<'_>, target: Target) {
        assert_eq!(
            self.trust
                .add_revocation(Revocation::issue(issuer, self.network.id, target, NOW)),
            Ok(true)
        );
    }
}

#[test]
fn the_root_and_its_delegates_certify_and_nobody_else_does() {
    let world = world(1);
    let [delegate, member, stranger] = std::array::from_fn(|_| Identity::generate());
    let own = world.delegate(&delegate);
    let by_delegate = world.member_of(&delegate, &own, &member);
    assert_eq!(world.trust.verify_at(&world.member(&member), NOW), Ok(()));
    assert_eq!(world.trust.verify_at(&by_delegate, NOW), Ok(()));

    let forged = world.certify(
        &Issuer::root(stranger.keys()),
        &stranger,
        "evil",
        false,
        NOW.0 + 9,
    );
    assert_eq!(forged, Err(Refusal::UnknownIssuer));
    let plain = world.member(&member);
    let by_member = world.certify(
        &Issuer::delegate(member.keys(), &plain),
        &stranger,
        "evil",
        false,
        NOW.0 + 9,
    );
    assert_eq!(by_member, Err(Refusal::UnknownIssuer));
    let stolen = world.certify(
        &Issuer::delegate(stranger.keys(), &own),
        &stranger,
        "evil",
        false,
        NOW.0 + 9,
    );
    assert_eq!(stolen, Err(Refusal::UnknownIssuer));
}

#[test]
fn a_delegate_makes_no_delegate_and_no_longer_chain() {
    let world = world(1);
    let (delegate, second) = (Identity::generate(), Identity::generate());
    let own = world.delegate(&delegate);
    let issuer = Issuer::delegate(delegate.keys(), &own);
    assert_eq!(
        world.certify(&issuer, &second, "b", true, NOW.0 + 9),
        Err(Refusal::UnknownIssuer)
    );
    let below = world
        .certify(&issuer, &second, "b", false, NOW.0 + 9)
        .unwrap();
    let third = world.certify(
        &Issuer::delegate(second.keys(), &below),
        &delegate,
        "c",
        false,
        NOW.0 + 9,
    );
    assert_eq!(third, Err(Refusal::UnknownIssuer));
    let terms = InviteTerms {
        uses: 1,
        expires: NOW.plus(1),
        delegate: true,
        groups: Groups::default(),
    };
    assert_eq!(
        Invite::issue(&issuer, &world.network, &[], terms),
        Err(Refusal::UnknownIssuer)
    );
}

#[test]
fn a_certificate_ends_with_its_time_and_with_its_delegates() {
    let world = world(1);
    let (delegate, member) = (Identity::generate(), Identity::generate());
    let own = world.delegate(&delegate);
    let longer = world
        .certify(
            &Issuer::delegate(delegate.keys(), &own),
            &member,
            "b",
            false,
            NOW.0 + 1000,
        )
        .unwrap();
    assert_eq!(
        world.trust.verify_at(&world.member(&member), NOW.plus(100)),
        Err(Refusal::Expired)
    );
    assert_eq!(world.trust.verify_at(&longer, NOW.plus(99)), Ok(()));
    assert_eq!(
        world.trust.verify_at(&longer, NOW.plus(100)),
        Err(Refusal::Expired)
    );
}

#[test]
fn an_altered_certificate_and_one_of_another_network_are_told_apart() {
    let (here, there, member) = (world(1), world(2), Identity::generate());
    assert_eq!(
        here.trust
            .verify_at(&here.member(&member).with_name("omega"), NOW),
        Err(Refusal::Tampered)
    );
    assert_eq!(
        here.trust.verify_at(&there.member(&member), NOW),
        Err(Refusal::OtherNetwork)
    );
}

#[test]
fn groups_are_signed_into_the_certificate_and_cannot_be_added() {
    let (world, member) = (world(1), Identity::generate());
    let groups = Groups::new(["servers", "lab"]).unwrap();
    let certify = |groups| {
        let who = (member.member_id(), member.link_key());
        let lasts = (UnixTime(1), NOW.plus(9));
        Issuer::root(&world.root)
            .certify_in(
                &world.network,
                who,
                "alpha",
                (Rights::default(), groups),
                lasts,
            )
            .unwrap()
    };
    let grouped = certify(groups.clone());
    assert_eq!(world.trust.verify_at(&grouped, NOW), Ok(()));
    assert!(grouped.groups().contains("servers"));
    let raw = postcard::to_stdvec(&grouped).unwrap();
    assert_eq!(postcard::from_bytes::<Certificate>(&raw).unwrap(), grouped);
    assert_eq!(
        world
            .trust
            .verify_at(&certify(Groups::default()).with_groups(groups), NOW),
        Err(Refusal::Tampered)
    );
}

#[test]
fn certificates_and_invites_from_before_groups_are_read_and_verify() {
    // Made by the version before groups: root seed 1, network "lab" 10.9.0.0/16 of time 1, member
    // of seed 7.
    let world = world(1);
    let certificate = include_str!("old_certificate.hex").trim();
    let certificate: Certificate = postcard::from_bytes(
        &data_encoding::HEXLOWER
            .decode(certificate.as_bytes())
            .unwrap(),
    )
    .unwrap();
    assert_eq!(
        (
            certificate.name(),
            certificate.rights().admit,
            certificate.groups().is_empty()
        ),
        ("alpha", true, true)
    );
    assert_eq!(world.trust.verify_at(&certificate, NOW), Ok(()));
    let invite = Invite::parse(include_str!("old_invite.txt")).unwrap();
    assert_eq!(
        (
            invite.uses(),
            invite.terms().delegate,
            invite.terms().groups.is_empty()
        ),
        (2, false, true)
    );
    assert_eq!(world.trust.check_invite(&invite, NOW), Ok(()));
}

#[test]
fn a_name_is_a_host_name() {
    let (world, member) = (world(1), Identity::generate());
    for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
        assert_eq!(
            world.certify(&Issuer::root(&world.root), &member, bad, false, NOW.0 + 9),
            Err(Refusal::BadName),
            "{bad}"
        );
    }
    for good in ["a", "web-1", &"a".repeat(63)] {
        assert!(
            world
                .certify(&Issuer::root(&world.root), &member, good, false, NOW.0 + 9)
                .is_ok(),
            "{good}"
        );
    }
}

#[test]
fn a_revoked_delegate_takes_its_members_along() {
    let world = world(1);
    let [delegate, member, other] = std::array::from_fn(|_| Identity::generate());
    let own = world.delegate(&delegate);
    let by_delegate = world.member_of(&delegate, &own, &member);
    world.revoke(
        &Issuer::root(&world.root),
        Target::Member(delegate.member_id()),
    );
    assert_eq!(world.trust.verify_at(&own, NOW), Err(Refusal::Revoked));
    assert_eq!(
        world.trust.verify_at(&by_delegate, NOW),
        Err(Refusal::Revoked)
    );
    assert_eq!(world.trust.verify_at(&world.member(&other), NOW), Ok(()));
}

#[test]
fn with_a_revoked_member_fall_those_that_grew_from_its_copied_state() {
    let ids: Vec<Identity> = (0..4).map(|_| Identity::generate()).collect();
    let [member, copy, copy_of_copy, delegate] = &ids[..] else {
        unreachable!()
    };
    let certified = |world: &World, issuer: &Issuer<'_>, who: &Identity, groups: Groups| {
        let lasts = (UnixTime(1), NOW.plus(100));
        let granted = (Rights::default(), groups);
        issuer
            .certify_in(
                &world.network,
                (who.member_id(), who.link_key()),
                "alpha",
                granted,
                lasts,
            )
            .unwrap()
    };
    // The same at every member: which of the four a revocation by the root, and by a delegate,
    // leaves in the network.
    for (revoked, stay) in [
        (member, [false, false, false, true]),
        (copy, [true, false, false, true]),
        (copy_of_copy, [true, true, false, true]),
    ] {
        for by_root in [true, false] {
            let world = world(1);
            let (root, own) = (Issuer::root(&world.root), world.delegate(delegate));
            let by_delegate = Issuer::delegate(delegate.keys(), &own);
            let once = Groups::new(["lab"])
                .unwrap()
                .of_copy(member.member_id())
                .unwrap();
            let twice = once.of_copy(copy.member_id()).unwrap();
            let certificates = [
                world.member(member),
                certified(&world, &by_delegate, copy, once),
                certified(&world, &root, copy_of_copy, twice.clone()),
                own.clone(),
            ];
            assert!(
                certificates
                    .iter()
                    .all(|c| world.trust.verify_at(c, NOW).is_ok())
            );
            let terms = InviteTerms {
                uses: 1,
                expires: NOW.plus(60),
                delegate: false,
                groups: twice,
            };
            let invite = Invite::issue(
                &root,
                &world.network,
                &["/ip4/10.0.0.1/udp/1/quic-v1".into()],
                terms,
            )
            .unwrap();
            world.revoke(
                if by_root { &root } else { &by_delegate },
                Target::Member(revoked.member_id()),
            );
            assert_eq!(
                certificates
                    .each_ref()
                    .map(|c| world.trust.verify_at(c, NOW).is_ok()),
                stay
            );
            assert_eq!(
                certificates
                    .each_ref()
                    .map(|c| !c.hangs_on(revoked.member_id())),
                stay
            );
            // Nor does a fallen one come back with the invite that it was given before.
            let again = certified(
                &world,
                &root,
                &Identity::generate(),
                invite.terms().groups.clone(),
            );
            assert_eq!(
                world.trust.verify_at(&again, NOW).is_ok(),
                revoked.member_id() == copy_of_copy.member_id()
            );
            if !by_root {
                // The delegate's word falls with it, and what it certified does too.
                world.revoke(&root, Target::Member(delegate.member_id()));
                assert_eq!(
                    certificates
                        .each_ref()
                        .map(|c| world.trust.verify_at(c, NOW).is_ok()),
                    [true, false, true, false]
                );
            }
        }
    }
}

#[test]
fn a_delegate_revokes_members_only_and_its_word_falls_with_it() {
    let world = world(1);
    let (one, two, member) = (
        Identity::generate(),
        Identity::generate(),
        Identity::generate(),
    );
    let (first, second) = (world.delegate(&one), world.delegate(&two));
    let issuer = Issuer::delegate(one.keys(), &first);
    world.revoke(&issuer, Target::Member(member.member_id()));
    world.revoke(&issuer, Target::Member(two.member_id()));
    assert_eq!(
        world.trust.verify_at(&world.member(&member), NOW),
        Err(Refusal::Revoked)
    );
    assert_eq!(world.trust.verify_at(&second, NOW), Ok(()));
    world.revoke(&Issuer::root(&world.root), Target::Member(one.member_id()));
    assert_eq!(world.trust.verify_at(&world.member(&member), NOW), Ok(()));
}

#[test]
fn whom_an_issuer_may_expel_is_who_falls_by_its_word() {
    let ids: Vec<Identity> = (0..4).map(|_| Identity::generate()).collect();
    let [founder, one, two, member] = &ids[..] else {
        unreachable!()
    };
    for by_root in [true, false] {
        for target in &ids {
            let world = world(1);
            let own = world.delegate(one);
            let issuer = if by_root {
                Issuer::root(&world.root)
            } else {
                Issuer::delegate(one.keys(), &own)
            };
            let certificate = if target.member_id() == member.member_id() {
                world.member(target)
            } else {
                world.delegate(target)
            };
            let may = issuer.may_expel(&certificate);
            world.revoke(&issuer, Target::Member(target.member_id()));
            assert_eq!(
                may,
                world.trust.verify_at(&certificate, NOW) == Err(Refusal::Revoked)
            );
            assert_eq!(
                may,
                by_root
                    || ![founder, one, two]
                        .iter()
                        .any(|admits| admits.member_id() == target.member_id())
            );
        }
    }
}

#[test]
fn a_revocation_is_refused_from_strangers_plain_members_and_other_networks() {
    let (here, there) = (world(1), world(2));
    let (stranger, member) = (Identity::generate(), Identity::generate());
    let target = Target::Member(member.member_id());
    let plain = here.member(&member);
    let issue = |issuer: &Issuer<'_>| Revocation::issue(issuer, here.network.id, target, NOW);
    assert_eq!(
        here.trust
            .add_revocation(issue(&Issuer::root(stranger.keys()))),
        Err(Refusal::Tampered)
    );
    assert_eq!(
        here.trust
            .add_revocation(issue(&Issuer::delegate(member.keys(), &plain))),
        Err(Refusal::UnknownIssuer)
    );
    let foreign = Revocation::issue(&Issuer::root(&there.root), there.network.id, target, NOW);
    assert_eq!(
        here.trust.add_revocation(foreign),
        Err(Refusal::OtherNetwork)
    );
    let good = issue(&Issuer::root(&here.root));
    let retargeted = good
        .clone()
        .with_target(Target::Member(stranger.member_id()));
    assert_eq!(
        here.trust.add_revocation(retargeted),
        Err(Refusal::Tampered)
    );
    assert_eq!(here.trust.add_revocation(good.clone()), Ok(true));
    assert_eq!(here.trust.add_revocation(good), Ok(false));
}

#[test]
fn an_invite_is_refused_with_its_reason() {
    let (here, there, delegate) = (world(1), world(2), Identity::generate());
    let own = here.delegate(&delegate);
    let good = here.invite(&Issuer::root(&here.root));
    let by_delegate = here.invite(&Issuer::delegate(delegate.keys(), &own));
    for invite in [&good, &by_delegate] {
        assert_eq!(Invite::parse(&invite.to_text()).as_ref(), Ok(invite));
        assert_eq!(here.trust.check_invite(invite, NOW), Ok(()));
    }
    assert_eq!(
        here.trust.check_invite(&good, NOW.plus(60)),
        Err(Refusal::Expired)
    );
    assert_eq!(
        there.trust.check_invite(&good, NOW),
        Err(Refusal::OtherNetwork)
    );
    let more = good.clone().with_uses(1000);
    assert_eq!(here.trust.check_invite(&more, NOW), Err(Refusal::Tampered));
    assert_eq!(Invite::parse(&more.to_text()), Err(Refusal::Tampered));
    let plain_member = Identity::generate();
    let plain = here.member(&plain_member);
    let by_member = here.invite(&Issuer::delegate(plain_member.keys(), &plain));
    assert_eq!(
        here.trust.check_invite(&by_member, NOW),
        Err(Refusal::UnknownIssuer)
    );
    here.revoke(&Issuer::root(&here.root), Target::Invite(good.id()));
    assert_eq!(here.trust.check_invite(&good, NOW), Err(Refusal::Revoked));
    assert_eq!(here.trust.check_invite(&by_delegate, NOW), Ok(()));
    here.revoke(
        &Issuer::root(&here.root),
        Target::Member(delegate.member_id()),
    );
    assert_eq!(
        here.trust.check_invite(&by_delegate, NOW),
        Err(Refusal::Revoked)
    );
}

#[test]
fn a_cut_or_foreign_text_is_no_invite_white_space_is_ignored() {
    let world = world(1);
    let text = world.invite(&Issuer::root(&world.root)).to_text();
    for bad in [
        "",
        "p2pvm1",
        "hello",
        &text[..text.len() - 9],
        &text[3..],
        &format!("{text}aaaaaaaa"),
        &"p2pvm1".repeat(9000),
    ] {
        assert_eq!(Invite::parse(bad), Err(Refusal::NotAnInvite), "{bad:.40}");
    }
    let wrapped = format!(" {}\n{}\r\n", &text[..50], &text[50..]);
    assert!(Invite::parse(&wrapped).is_ok());
    assert!(Invite::parse(&text.to_uppercase()).is_ok());
}

#[tokio::test]
async fn an_invite_admits_its_number_and_each_joiner_once() {
    let world = world(1);
    let invite = world.invite(&Issuer::root(&world.root));
    let admission = LocalAdmission::default();
    assert_eq!(
        admission.admit(&invite, MemberId([1; 32]), "a").await,
        Ok(())
    );
    assert_eq!(
        admission.admit(&invite, MemberId([1; 32]), "a").await,
        Ok(())
    );
    assert_eq!(
        admission.admit(&invite, MemberId([2; 32]), "a").await,
        Err(Refusal::NameTaken)
    );
    assert_eq!(
        admission.admit(&invite, MemberId([2; 32]), "b").await,
        Ok(())
    );
    assert_eq!(
        admission.admit(&invite, MemberId([3; 32]), "c").await,
        Err(Refusal::UsedUp)
    );
}

#[test]
fn revocations_survive_a_restart_and_their_order_does_not_matter() {
    let world = world(1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("revocations");
    let all: Vec<_> = (1..5)
        .map(|i| {
            Revocation::issue(
                &Issuer::root(&world.root),
                world.network.id,
                Target::Member(MemberId([i; 32])),
                NOW,
            )
        })
        .collect();
    let kept = Trust::load(world.network.id, &file).unwrap();
    all.iter()
        .for_each(|r| assert_eq!(kept.add_revocation(r.clone()), Ok(true)));
    all.iter()
        .rev()
        .for_each(|r| assert_eq!(world.trust.add_revocation(r.clone()), Ok(true)));
    let again = Trust::load(world.network.id, &file).unwrap();
    assert_eq!(again.revocations(), world.trust.revocations());
    assert_eq!(again.digest(), world.trust.digest());
    fs::write(&file, b"\xff\xff\xff").unwrap();
    assert!(Trust::load(world.network.id, &file).is_err());
}

proptest! {
    #[test]
    fn any_altered_character_is_noticed(position in 6usize..200, letter in "[a-z2-7]") {
        let world = world(1);
        let text = world.invite(&Issuer::root(&world.root)).to_text();
        let mut altered = text.clone();
        altered.replace_range(position..=position, &letter);
        prop_assume!(altered != text);
        prop_assert!(Invite::parse(&altered).is_err());
    }

    #[test]
    fn parsing_never_panics(
        text in "\\PC{0,200}", raw in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        let _ = Invite::parse(&text);
        let _ = Invite::parse(&format!("p2pvm1{}", data_encoding::BASE32_NOPAD.encode(&raw)));
        let _ = postcard::from_bytes::<Revocation>(&raw);
        let _ = postcard::from_bytes::<Certificate>(&raw);
    }
}
