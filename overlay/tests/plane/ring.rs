//! The ring over real links in namespaces: members that never met, with no control connection
//! between them.

use crate::{
    LIMIT, PATIENCE,
    measured::{Measurement, seconds},
    ping, until,
    world::{Host, Nat, World, introduce},
};
use p2pvm_overlay::{
    MemberId,
    plane::{Path, PlaneEvent},
    ring::{Position, RingStatus},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

fn status(host: &Host) -> Option<Arc<RingStatus>> {
    host.ring.as_ref().and_then(|(net, _)| net.status())
}

fn neighbours(host: &Host) -> Vec<MemberId> {
    status(host)
        .map(|s| {
            s.neighbours
                .iter()
                .filter(|n| !n.leaf)
                .map(|n| n.node.member)
                .collect()
        })
        .unwrap_or_default()
}

/// Whether every host is in the ring and beside those that are nearest on it.
fn whole(hosts: &[&Host]) -> bool {
    let mut sorted: Vec<MemberId> = hosts.iter().map(|h| h.member).collect();
    sorted.sort_by_key(Position::of);
    hosts.iter().all(|host| {
        let at = sorted.iter().position(|m| *m == host.member).unwrap();
        let beside = [
            sorted[(at + 1) % sorted.len()],
            sorted[(at + sorted.len() - 1) % sorted.len()],
        ];
        let known = neighbours(host);
        status(host).is_some_and(|s| s.joined) && beside.iter().all(|m| known.contains(m))
    })
}

/// `count` hosts, each with a control connection to the first and to nobody else.
async fn star(count: u8) -> (World, Vec<Host>) {
    let mut world = World::with_ring(Duration::from_millis(5));
    let mut hosts: Vec<Host> = Vec::new();
    for n in 0..count {
        for other in hosts.iter().skip(1) {
            world.set_cut(other.member, MemberId([n + 1; 32]), true);
        }
        hosts.push(tokio::task::block_in_place(|| world.host(Nat::None)));
    }
    let all: Vec<&Host> = hosts.iter().collect();
    let began = Instant::now();
    while !whole(&all) {
        let state = || {
            all.iter()
                .map(|h| {
                    (
                        h.number,
                        status(h).map(|s| (s.joined, s.neighbours.len(), s.pending)),
                    )
                })
                .collect::<Vec<_>>()
        };
        assert!(
            began.elapsed() < PATIENCE * 2,
            "the ring is not whole: {:?}",
            state()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (world, hosts)
}

/// Two hosts that are no neighbours, neither of them the first.
fn strangers(hosts: &[Host]) -> Option<(&Host, &Host)> {
    let pairs = hosts
        .iter()
        .skip(1)
        .flat_map(|a| hosts.iter().skip(1).map(move |b| (a, b)));
    let apart = |a: &Host, b: &Host| {
        a.member != b.member
            && !neighbours(a).contains(&b.member)
            && !neighbours(b).contains(&a.member)
    };
    let pair = pairs.into_iter().find(|(a, b)| apart(a, b))?;
    // What the joining left behind.
    pair.0.plane.remove_peer(pair.1.member);
    pair.1.plane.remove_peer(pair.0.member);
    Some(pair)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_reached_over_the_ring_and_then_directly() {
    let measurement = Measurement::begin();
    let (_world, mut hosts) = star(10).await;
    // Links of the joining settle.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (from, to) = strangers(&hosts)
        .map(|(a, b)| (a.number, b.number))
        .expect("ten members are no full mesh");
    let mut events = std::mem::replace(
        &mut hosts[usize::from(from) - 1].events,
        tokio::sync::mpsc::channel(1).1,
    );
    while events.try_recv().is_ok() {}
    let (a, b) = (&hosts[usize::from(from) - 1], &hosts[usize::from(to) - 1]);
    let (net, _) = a.ring.as_ref().unwrap();
    let report = net
        .trace(Position::of(&b.member), LIMIT)
        .await
        .expect("the trace comes back");
    assert!(report.reached && report.hops.len() >= 2, "{report:?}");
    let began = Instant::now();
    let pong = a
        .plane
        .ping(b.member, LIMIT)
        .await
        .expect("answers over the ring");
    let first_ping = began.elapsed();
    // On a wire without delay the direct path may have won before the answer was back: what counts
    // is what was used first.
    let first = loop {
        match events.recv().await.expect("the plane runs") {
            PlaneEvent::PathChanged {
                member,
                path: Some(path),
            } if member == b.member => break path,
            _ => {}
        }
    };
    assert_eq!(first, Path::Ring, "{pong:?}");
    until("it is direct", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| matches!(i.path, Path::Direct(_)))
    })
    .await;
    let direct = began.elapsed();
    measurement.end(&[
        seconds(
            "first-ping",
            "first ping over the ring of ten",
            &[first_ping],
        )
        .digits(3),
        seconds("direct", "first ping to a direct path", &[direct]).digits(3),
    ]);
    let pong = a
        .plane
        .ping(b.member, LIMIT)
        .await
        .expect("answers directly");
    assert!(
        matches!(pong.path, Path::Direct(_)) && pong.hops.is_none(),
        "{pong:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_from_the_ring_to_the_direct_path_loses_no_packet() {
    let (_world, hosts) = star(10).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (a, b) = strangers(&hosts).expect("ten members are no full mesh");
    introduce(&[a, b]);
    let (ok, text) = tokio::task::block_in_place(|| {
        let output = a.exec(&format!(
            "ping -n -s 1300 -i 0.01 -c 300 -W 3 {}",
            b.overlay()
        ));
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    });
    let summary: Vec<&str> = text.lines().rev().take(2).collect();
    assert!(
        ok && text.contains(" 0% packet loss") && !text.contains("duplicates"),
        "{summary:?}"
    );
    assert!(
        a.plane
            .path(b.member)
            .is_some_and(|i| matches!(i.path, Path::Direct(_)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_pair_on_the_ring_routes_around_a_dead_member() {
    let measurement = Measurement::begin();
    let (world, hosts) = star(10).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (a, b) = strangers(&hosts).expect("ten members are no full mesh");
    world.set_wire_cut(a, b, true);
    introduce(&[a, b]);
    let (ok, text) = tokio::task::block_in_place(|| ping(a, &b.overlay(), 3));
    assert!(ok, "{text}");
    let (net, _) = a.ring.as_ref().unwrap();
    let report = net
        .trace(Position::of(&b.member), LIMIT)
        .await
        .expect("the trace comes back");
    let middle = report.hops[0].member;
    let middle = hosts
        .iter()
        .find(|h| h.member.0[..8] == middle)
        .expect("one of ours");
    assert_ne!(middle.member, b.member);
    // The member in the middle fails silently.
    tokio::task::block_in_place(|| {
        crate::world::sh(&format!("ip -n {} link set wan down", middle.namespace))
    });
    let died = Instant::now();
    let answered = loop {
        match a.plane.ping(b.member, Duration::from_secs(1)).await {
            Ok(pong) => break pong,
            Err(_) => assert!(
                died.elapsed() < LIMIT * 2,
                "not routed around the dead member"
            ),
        }
    };
    let what = "death of the member between two others to their next answered ping";
    measurement.end(&[seconds("around", what, &[died.elapsed()])]);
    assert!(!matches!(answered.path, Path::Direct(_)), "{answered:?}");
}
