//! Networks beyond the full mesh: some forty hosts on loopback that keep few connections each.

use super::*;
use crate::lookup::NAMED;
use std::collections::BTreeSet;

const MEMBERS: usize = 40;
const FULL_MESH: usize = 8;
const UNUSED_AFTER: Duration = Duration::from_secs(6);
/// Forty hosts share two cores with whatever else runs: what is waited for is a state, and this
/// only ends a wait in vain.
const PATIENCE: Duration = Duration::from_secs(180);

async fn large(world: &World) -> Vec<Arc<Control>> {
    let mut all: Vec<Arc<Control>> = Vec::new();
    for n in 0..MEMBERS {
        let identity = Identity::generate();
        let certificate = world.certify(&identity, &format!("m{n}"), false);
        // Three bootstraps, as in life: the first members.
        let bootstrap = all.iter().take(3).flat_map(|c| c.listen_addrs()).collect();
        let config = world.config(identity, certificate, bootstrap);
        let control = Control::start(ControlConfig {
            full_mesh: FULL_MESH,
            unused_after: UNUSED_AFTER,
            ..config
        })
        .await
        .unwrap();
        control.serve("reverse", Arc::new(Reverse));
        in_the_end("it listens on QUIC and TCP", || {
            control.listen_addrs().len() >= 2
        })
        .await;
        all.push(control);
    }
    all
}

fn truth(all: &[Arc<Control>], place: &RingAddr, n: usize) -> Vec<MemberId> {
    let mut members: Vec<MemberId> = all.iter().map(|c| c.me()).collect();
    members.sort_by_cached_key(|m| m.ring_addr().distance(place));
    members.truncate(n);
    members
}

async fn in_the_end(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until lookups of these places from everyone, all at the same time, find the nearest
/// members there are.
async fn all_find(all: &[Arc<Control>], places: &[RingAddr]) {
    let deadline = Instant::now() + PATIENCE;
    let each = all.iter().enumerate().map(async |(i, control)| {
        let place = places[i % places.len()];
        loop {
            let found = control.closest(place, 5).await;
            if found.as_ref() == Ok(&truth(all, &place, 5)) {
                break;
            }
            assert!(Instant::now() < deadline, "member {i}: {found:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    futures::future::join_all(each).await;
}

/// Waits until connections are those that the ring asks for, and few others.
async fn follow_the_ring(all: &[Arc<Control>]) {
    // The ring says which members are wanted, known or not: connections follow, and unused ones
    // end.
    for (i, control) in all.iter().enumerate() {
        for neighbour in [(i + 13) % MEMBERS, (i + MEMBERS - 13) % MEMBERS].map(|n| all[n].me()) {
            if !control.connected().contains(&neighbour) {
                control.shared.book.write().unwrap().forget(neighbour);
            }
        }
        control.set_ring_neighbours(vec![
            all[(i + 13) % MEMBERS].me(),
            all[(i + MEMBERS - 13) % MEMBERS].me(),
        ]);
    }
    in_the_end("the ring's neighbours are connected", || {
        (0..MEMBERS).all(|i| all[i].connected().contains(&all[(i + 13) % MEMBERS].me()))
    })
    .await;
    let mean = || all.iter().map(|c| c.connected().len()).sum::<usize>() as f64 / MEMBERS as f64;
    println!(
        "{:.1} connections each before the unused are closed",
        mean()
    );
    // Of 39: ten near ones, of which not all are mutual, the ring's two, and those just asked by a
    // lookup.
    in_the_end("few connections are kept", || mean() <= 25.0).await;
    println!(
        "{:.1} connections each, {:?}",
        mean(),
        all.iter().map(|c| c.connected().len()).max()
    );
}

/// Calls members that are not known: they are looked up.
async fn reach_the_unknown(all: &[Arc<Control>]) {
    let mut unknown = 0;
    for i in 0..MEMBERS {
        let (from, to) = (&all[i], &all[(i * 7 + 11) % MEMBERS]);
        if !from.connected().contains(&to.me()) {
            from.shared.book.write().unwrap().forget(to.me());
            unknown += 1;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match from.call(to.me(), "reverse", vec![1, 2], LONG).await {
                Ok(answer) => break assert_eq!(answer, [2, 1], "{i}"),
                // A handshake that a busy machine let time out is no verdict on the member.
                Err(error) => assert!(Instant::now() < deadline, "{i}: {error}"),
            }
        }
    }
    println!("{unknown} of {MEMBERS} calls were to members unknown before");
    assert!(unknown > 5);
}

/// Waits until the size of the network is about right.
async fn guess_the_size(all: &[Arc<Control>]) {
    // Where joining took long, the first lookups saw a small network; those of the whole one take
    // their place.
    let known = || {
        all[0]
            .size_estimate()
            .is_some_and(|n| n > MEMBERS as f64 / 2.0 && n < MEMBERS as f64 * 2.0)
    };
    let deadline = Instant::now() + PATIENCE;
    for n in 0u32.. {
        if known() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "estimated {:?} members",
            all[0].size_estimate()
        );
        // One that fails teaches nothing, or little: the next is another.
        let _ = all[0]
            .shared
            .refresh(RingAddr::of("another place", &n.to_be_bytes()))
            .await;
    }
    println!("estimated {:?} members", all[0].size_estimate());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_members_find_and_reach_each_other_with_few_connections_each() {
    let world = World::new(1);
    let began = Instant::now();
    let mut all = large(&world).await;
    let places: Vec<RingAddr> = (0..8u8).map(|n| RingAddr::of("a place", &[n])).collect();
    all_find(&all, &places).await;
    println!(
        "{MEMBERS} members joined and find all after {:?}",
        began.elapsed()
    );
    follow_the_ring(&all).await;
    reach_the_unknown(&all).await;
    guess_the_size(&all).await;

    // Five die at once: soon nobody finds them.
    let dead: Vec<Arc<Control>> = all.split_off(MEMBERS - 5);
    let gone: BTreeSet<MemberId> = dead.iter().map(|c| c.me()).collect();
    drop(dead);
    let died = Instant::now();
    all_find(&all, &places).await;
    println!(
        "after the death of {} all find the others after {:?}; {:?} in all",
        gone.len(),
        died.elapsed(),
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_names_only_signed_contacts_and_no_more_than_agreed() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    meshed(&[&first, &second]).await;
    let place = postcard::to_stdvec(&RingAddr([7; 32])).unwrap();
    let nearest = async || {
        second
            .call(first.me(), wire::NEAREST_SERVICE, place.clone(), LONG)
            .await
            .unwrap()
    };
    let mut named: Vec<(MemberId, u64)> = Vec::new();
    while named.len() < 2 {
        named = wire::decode(&nearest().await).unwrap();
    }
    let ids: Vec<MemberId> = named
        .iter()
        .map(|(m, _)| *m)
        .cycle()
        .take(4 * NAMED)
        .collect();
    let asked = postcard::to_stdvec(&ids).unwrap();
    let contacts: Vec<Contact> = wire::decode(
        &second
            .call(first.me(), wire::CONTACTS_SERVICE, asked, LONG)
            .await
            .unwrap(),
    )
    .unwrap();
    assert_eq!(contacts.len(), NAMED);
    assert!(
        contacts
            .iter()
            .all(|c| c.verify(&second.shared.door.trust).is_ok())
    );
}
