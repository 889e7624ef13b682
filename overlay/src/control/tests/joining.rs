//! Joining with an invite, and refusals.

use super::*;

fn refusal(result: Result<NewMembership, JoinError>) -> Refusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        Err(JoinError::Expired(_)) => Refusal::Expired,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_for_times_sake_is_told_the_time() {
    let world = World::new(41);
    let first = world.first().await;
    let invite = world.invite(&first, 1, 0);
    match join(&Identity::generate(), &invite, "late", &[]).await {
        Err(JoinError::Expired(theirs)) => {
            assert!(theirs.0.abs_diff(UnixTime::wall().0) < 60, "{theirs:?}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invited_machine_joins_and_is_known_to_all_members() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    meshed(&[&first, &second]).await;
    let identity = Identity::generate();
    let invite = world.invite(&first, 1, 60);
    let joined = join(&identity, &invite, "third", &[]).await.unwrap();
    assert_eq!(joined.certificate.name(), "third");
    assert_eq!(joined.network, world.network);
    let config = world.config(identity, joined.certificate, joined.peers);
    let third = Control::start(config).await.unwrap();
    meshed(&[&first, &second, &third]).await;
    eventually("all know all names", || {
        [&first, &second, &third]
            .iter()
            .all(|c| c.peers().len() == 2 && c.peers().iter().all(|p| !p.name.is_empty()))
    })
    .await;
    assert_eq!(first.link_key(third.me()), third.link_key(third.me()));

    let everyone = [first.me(), second.me(), third.me()];
    let place = RingAddr([7; 32]);
    let mut expected = everyone.to_vec();
    expected.sort_by_key(|m| m.ring_addr().distance(&place));
    for node in [&first, &second, &third] {
        assert_eq!(node.closest(place, 2).await.unwrap(), expected[..2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_gets_in_whichever_release_the_members_are_of() {
    for old in [[true, true], [true, false], [false, true], [false, false]] {
        let world = World::new(1);
        let first = world.first().await;
        let second = world.member("second", &[&first]).await;
        meshed(&[&first, &second]).await;
        for (node, _) in [&first, &second].iter().zip(old).filter(|(_, old)| *old) {
            node.shared.door.be_of_the_first_release();
        }
        // The first admits by itself, the second passes the request on.
        for (at, name) in [(&first, "third"), (&second, "fourth")] {
            let (joiner, invite) = (Identity::generate(), world.invite(at, 1, 60));
            let joined = join(&joiner, &invite, name, &[]).await;
            let joined = joined.unwrap_or_else(|e| panic!("{name} {old:?}: {e}"));
            assert_eq!(joined.certificate.link_key(), joiner.link_key());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_invite_is_refused_with_its_reason_by_the_network() {
    let (world, other) = (World::new(1), World::new(2));
    let first = world.first().await;
    let once = world.invite(&first, 1, 60);
    let (a, b) = (Identity::generate(), Identity::generate());
    assert!(join(&a, &once, "a", &[]).await.is_ok());
    assert!(
        join(&a, &once, "a", &[]).await.is_ok(),
        "the same joiner asks again"
    );
    assert_eq!(refusal(join(&b, &once, "b", &[]).await), Refusal::UsedUp);
    assert_eq!(
        refusal(join(&b, &world.invite(&first, 1, 0), "b", &[]).await),
        Refusal::Expired
    );
    assert_eq!(
        refusal(join(&b, &other.invite(&first, 1, 60), "b", &[]).await),
        Refusal::OtherNetwork
    );
    assert_eq!(
        refusal(join(&b, &world.invite(&first, 1, 60), "a", &[]).await),
        Refusal::NameTaken
    );
    assert_eq!(
        refusal(join(&b, &world.invite(&first, 1, 60), "B!", &[]).await),
        Refusal::BadName
    );
    let revoked = world.invite(&first, 1, 60);
    first.revoke(Target::Invite(revoked.id())).await.unwrap();
    eventually("the revocation is known", || {
        !first.shared.door.trust.revocations().is_empty()
    })
    .await;
    assert_eq!(
        refusal(join(&b, &revoked, "b", &[]).await),
        Refusal::Revoked
    );
    let nobody = Invite::issue(
        &Issuer::root(&world.root),
        &world.network,
        &[],
        once.terms().clone(),
    )
    .unwrap();
    assert!(matches!(
        join(&b, &nobody, "b", &[]).await,
        Err(JoinError::Unreachable(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_the_right_passes_a_request_to_join_on() {
    let world = World::new(1);
    let first = world.first().await;
    let plain = world.member("plain", &[&first]).await;
    meshed(&[&first, &plain]).await;
    let identity = Identity::generate();
    let joined = join(&identity, &world.invite(&plain, 1, 60), "third", &[])
        .await
        .unwrap();
    assert_eq!(joined.certificate.name(), "third");
    first.shutdown().await;
    eventually("first is gone", || plain.connected().is_empty()).await;
    let late = join(
        &Identity::generate(),
        &world.invite(&plain, 1, 60),
        "late",
        &[],
    )
    .await;
    assert_eq!(refusal(late), Refusal::CannotAdmit);
}
