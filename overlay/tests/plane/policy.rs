//! Access rules and guests' multicast on the packet plane itself.

use super::{
    LIMIT, ping, until,
    world::{self, Nat, Numbered, World, introduce, within},
};
use p2pvm_overlay::{
    Epoch,
    membership::NetworkPolicy,
    plane::{GuestLimit, Plane, Route},
};
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

fn set(plane: &Plane, policy: &str) {
    plane.set_policy(Some((
        Arc::new(NetworkPolicy::parse(policy).unwrap()),
        Arc::new(Numbered),
    )));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_packets_do_not_arrive_and_answers_of_allowed_conversations_do() {
    let mut world = World::new(Duration::from_millis(1));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    tokio::task::block_in_place(|| {
        assert!(
            ping(&a, &b.overlay(), 1).0,
            "without a policy everything arrives"
        );
        set(&b.plane, "default = 'deny'");
        for to in [b.overlay(), world::v6(b.number).to_string()] {
            let before = b.plane.denied();
            assert!(
                !a.exec(&format!("ping -n -c 1 -W 1 {to}")).status.success(),
                "{to}"
            );
            assert!(b.plane.denied() > before, "it is b that dropped it");
        }
        assert!(
            ping(&b, &a.overlay(), 2).0,
            "the answer to what b asked comes in"
        );
        assert!(ping(&b, &world::v6(a.number).to_string(), 2).0);
        set(
            &b.plane,
            "default = 'deny'\n[[rule]]\naction = 'allow'\nfrom = 'g1'\nto = 'member:m2'\nports = \
                'icmp'",
        );
        assert!(ping(&a, &b.overlay(), 1).0, "allowed by rule");
        b.plane.set_policy(None);
        assert!(ping(&a, &b.overlay(), 1).0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_multicast_reaches_participating_members_and_is_limited() {
    const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
    let mut world = World::new(Duration::from_millis(1));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let (near, near_port) = world.guest(&a, "g", 9, 1);
    let (far, far_port) = world.guest(&b, "h", 8, 1);
    let at = |member| Route {
        member,
        epoch: Epoch(1),
    };
    for host in [&a, &b] {
        host.plane.set_route(near_port.v4.into(), at(a.member));
        host.plane.set_route(far_port.v4.into(), at(b.member));
    }
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    for namespace in [&near, &far] {
        assert!(
            world::sh(&format!("ip -n {namespace} route add 224.0.0.0/4 dev eth0"))
                .status
                .success()
        );
    }
    let receiver = within(&far, || {
        let socket = UdpSocket::bind((GROUP, 5353)).unwrap();
        socket.join_multicast_v4(&GROUP, &far_port.v4).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        socket
    });
    let sender = within(&near, || UdpSocket::bind((near_port.v4, 5353)).unwrap());
    let arrives = |count: usize| {
        for _ in 0..count {
            sender.send_to(b"who is there", (GROUP, 5353)).unwrap();
        }
        std::iter::from_fn(|| receiver.recv_from(&mut [0; 64]).ok())
            .inspect(|(_, from)| assert_eq!(from.ip(), IpAddr::V4(near_port.v4)))
            .count()
    };
    tokio::task::block_in_place(|| {
        assert_eq!(arrives(3), 0, "off by default");
        a.plane.set_multicast(Some(vec![b.member]));
        assert_eq!(arrives(3), 0, "the other side does not take part");
        b.plane.set_multicast(Some(vec![a.member]));
        assert_eq!(arrives(3), 3, "each once: nothing goes in circles");
        std::thread::sleep(Duration::from_secs(1));
        let many = arrives(400);
        assert!(
            (40..=120).contains(&many),
            "{many} of 400 at once: one second's worth and what time added"
        );
        b.plane.set_multicast(None);
        assert_eq!(arrives(1), 0);
    });
    until("nothing of it was counted as denied", || {
        a.plane.denied() + b.plane.denied() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_sends_and_is_sent_is_limited() {
    let mut world = World::new(Duration::from_millis(1));
    let host = world.host(Nat::None);
    let (guest, port) = world.guest(&host, "g", 9, 1);
    let limit = || host.plane.limit_of(port.vm).expect("its port is here");
    // More than passes at once at a megabit a second.
    let flood = |from: &str, to: IpAddr| {
        within(from, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..400 {
                let _ = socket.send_to(&[7; 1000], (to, 9));
            }
        });
    };
    let ways = [
        (guest.as_str(), host.overlay().parse::<IpAddr>().unwrap()),
        (host.namespace.as_str(), IpAddr::V4(port.v4)),
    ];
    tokio::task::block_in_place(|| ways.iter().for_each(|(from, to)| flood(from, *to)));
    assert_eq!(limit(), GuestLimit::default(), "without a limit");
    host.plane.limit_port(port.vm, Some(1_000_000));
    assert_eq!(limit().bits_per_second, Some(1_000_000));
    for (from, to) in ways {
        let before = limit().dropped_bytes;
        until("what is too much is dropped", || {
            tokio::task::block_in_place(|| flood(from, to));
            limit().dropped_bytes > before
        })
        .await;
    }
}
