//! Members that leave, and members that are revoked.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_left_is_hidden_also_where_heard_from_others() {
    let world = World::new(42);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    let third = world.member("third", &[&first]).await;
    meshed(&[&first, &second, &third]).await;
    let gone = third.me();
    third.farewell().await;
    third.shutdown().await;
    eventually("both show the leaver no more", || {
        [&first, &second]
            .iter()
            .all(|c| c.peers().iter().all(|p| p.member != gone))
    })
    .await;
    // A later joiner does not hear of it as of a member that is there.
    let fourth = world.member("fourth", &[&first]).await;
    meshed(&[&first, &second, &fourth]).await;
    assert!(fourth.peers().iter().all(|p| p.member != gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_member_is_cut_off_also_by_who_knows_it_indirectly() {
    let world = World::new(1);
    let first = world.first().await;
    let middle = world.member("middle", &[&first]).await;
    let outcast = world.member("outcast", &[&middle]).await;
    meshed(&[&first, &middle, &outcast]).await;
    let mut events = outcast.events();
    let last_words = first.shared.door.trust.digest();
    // Told to the middle one only: it spreads from there.
    revoke(&world, &middle, outcast.me()).await;
    eventually("nobody is connected to the outcast", || {
        let gone = |c: &Control| !c.connected().contains(&outcast.me());
        gone(&first) && gone(&middle) && outcast.connected().is_empty()
    })
    .await;
    assert_ne!(first.shared.door.trust.digest(), last_words);
    eventually("it knows", || {
        matches!(events.try_recv(), Ok(ControlEvent::ThisNodeRevoked))
    })
    .await;
    let asked = outcast
        .call(first.me(), "any", Vec::new(), Duration::from_secs(3))
        .await;
    assert!(asked.is_err(), "{asked:?}");
    assert!(middle.connected().contains(&first.me()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_members_copy_is_cut_off_with_it_and_told() {
    let world = World::new(1);
    let first = world.first().await;
    let middle = world.member("middle", &[&first]).await;
    let outcast = Identity::generate();
    let identity = Identity::generate();
    let lasts = (UnixTime::now(), UnixTime::now().plus(3600));
    let groups = crate::membership::Groups::default()
        .of_copy(outcast.member_id())
        .unwrap();
    let certificate = Issuer::root(&world.root)
        .certify_in(
            &world.network,
            (identity.member_id(), identity.link_key()),
            "copy",
            (Rights::default(), groups),
            lasts,
        )
        .unwrap();
    let copy = Control::start(world.config(identity, certificate, middle.listen_addrs()))
        .await
        .unwrap();
    meshed(&[&first, &middle, &copy]).await;
    let (mut told, mut seen) = (copy.events(), first.events());
    revoke(&world, &middle, outcast.member_id()).await;
    eventually("nobody is connected to the copy", || {
        let gone = |c: &Control| !c.connected().contains(&copy.me());
        gone(&first) && gone(&middle) && copy.connected().is_empty()
    })
    .await;
    eventually("the copy knows", || {
        matches!(told.try_recv(), Ok(ControlEvent::ThisNodeRevoked))
    })
    .await;
    eventually(
        "the others say so",
        || matches!(seen.try_recv(), Ok(ControlEvent::Revoked(member)) if member == copy.me()),
    )
    .await;
    assert!(middle.connected().contains(&first.me()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegates_revocation_of_the_founder_or_a_delegate_ends_nothing() {
    let world = World::new(1);
    let first = world.first().await;
    let member = world.member("member", &[&first]).await;
    let identity = Identity::generate();
    let certificate = world.certify(&identity, "delegate", true);
    let config = world.config(identity, certificate.clone(), first.listen_addrs());
    let delegate = Control::start(config).await.unwrap();
    meshed(&[&first, &member, &delegate]).await;
    let (mut told, mut seen) = (first.events(), member.events());
    let issuer = Issuer::delegate(delegate.identity.keys(), &certificate);
    let target = Target::Member(first.me());
    let word = Revocation::issue(&issuer, world.network.id, target, UnixTime::now());
    for to in [&first, &member] {
        let gossip = Gossip {
            contacts: Vec::new(),
            revocations: vec![word.clone()],
        };
        let command = Command::Gossip(delegate.me(), gossip);
        to.shared.commands.send(command).await.unwrap();
    }
    // What comes after it shows that it was looked at.
    let unknown = Identity::generate().member_id();
    revoke(&world, &first, unknown).await;
    for (events, who) in [(&mut told, &first), (&mut seen, &member)] {
        let mut heard = Vec::new();
        eventually("it hears of the next revocation", || {
            heard.extend(std::iter::from_fn(|| events.try_recv().ok()));
            let is_next = |e: &_| matches!(e, ControlEvent::Revoked(m) if *m == unknown);
            heard.iter().any(is_next)
        })
        .await;
        let is_word = |e: &ControlEvent| match e {
            ControlEvent::ThisNodeRevoked => true,
            ControlEvent::Revoked(gone) => *gone == first.me(),
            _ => false,
        };
        assert!(!heard.iter().any(is_word), "{}", who.me());
    }
    assert!(member.connected().contains(&first.me()));
}
