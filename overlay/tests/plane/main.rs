//! The packet plane and its connector in real network namespaces, with real NATs (nftables). Needs
//! root.

mod adapt;
mod apart;
mod measured;
mod mend;
mod nested;
mod policy;
mod prove;
mod ring;
mod world;

use p2pvm_overlay::{
    Epoch, MemberId,
    connect::NatKind,
    plane::{Path, PlaneEvent, Route},
};
use std::{net::IpAddr, time::Duration};
use world::{Host, Nat, World, introduce};

const LIMIT: Duration = Duration::from_secs(10);
/// Ends a wait in vain, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(45);

fn ping(from: &Host, to: &str, count: u32) -> (bool, String) {
    let output = from.exec(&format!("ping -n -i 0.2 -c {count} -W 3 {to}"));
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_packet_is_not_lost_and_the_link_is_direct() {
    let mut world = World::new(Duration::from_millis(20));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let (ok, text) = tokio::task::block_in_place(|| ping(&a, &b.overlay(), 5));
    assert!(ok && text.contains(" 0% packet loss"), "{text}");
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert!(matches!(pong.path, Path::Direct(_)), "{pong:?}");
    let (ok, text) = tokio::task::block_in_place(|| ping(&b, &world::v6(a.number).to_string(), 2));
    assert!(ok, "IPv6 goes the same way: {text}");
    a.plane.shutdown();
    until("the device is down", || {
        !String::from_utf8_lossy(&a.exec("ip link show p2pvm0").stdout).contains(",UP")
    })
    .await;
    drop((a.connector, a.plane, a.events));
    let gone = format!("ip -n {} link show p2pvm0", a.namespace);
    until("the device is gone", || !world::sh(&gone).status.success()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresolved_address_is_asked_for_and_its_packets_wait() {
    let mut world = World::new(Duration::from_millis(1));
    let (mut a, mut b) = (world.host(Nat::None), world.host(Nat::None));
    let (to_b, to_a): (IpAddr, IpAddr) =
        (b.overlay().parse().unwrap(), a.overlay().parse().unwrap());
    let resolve = async {
        loop {
            tokio::select! {
                Some(PlaneEvent::Unresolved(addr)) = a.events.recv() => {
                    assert_eq!(addr, to_b);
                    a.plane.set_route(addr, Route { member: b.member, epoch: Epoch(0) })
                }
                Some(PlaneEvent::Unresolved(addr)) = b.events.recv() => {
                    assert_eq!(addr, to_a);
                    b.plane.set_route(addr, Route { member: a.member, epoch: Epoch(0) })
                }
                else => tokio::task::yield_now().await,
            }
        }
    };
    let command = format!("ip netns exec {} ping -n -c 1 -W 3 {to_b}", a.namespace);
    let pinged = tokio::task::spawn_blocking(move || world::sh(&command));
    tokio::select! {
        () = resolve => {}
        output = pinged => assert!(output.expect("runs").status.success(), "the first ping came \
            back"),
    }
}

/// Two open members, and two behind port-restricted NATs, which they have found out.
async fn two_behind_nats(world: &mut World) -> ([Host; 2], Host, Host) {
    let (r, s) = (world.host(Nat::None), world.host(Nat::None));
    let (a, b) = (
        world.host(Nat::PortRestricted),
        world.host(Nat::PortRestricted),
    );
    introduce(&[&r, &s, &a, &b]);
    until("both know their NAT", || {
        [&a, &b]
            .iter()
            .all(|h| h.connector.nat_kind() == NatKind::Cone)
    })
    .await;
    ([r, s], a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_port_restricted_nats_are_punched() {
    let mut world = World::new(Duration::from_millis(10));
    let ([r, s], a, b) = two_behind_nats(&mut world).await;
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert!(matches!(pong.path, Path::Direct(_)), "{pong:?}");
    assert!(tokio::task::block_in_place(|| ping(&b, &a.overlay(), 3)).0);
    until("a public member knows that it is one", || {
        r.connector.nat_kind() == NatKind::Open
    })
    .await;
    drop(s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symmetric_nat_reaches_open_members_directly_restricted_ones_by_relay() {
    let mut world = World::new(Duration::from_millis(10));
    let (r, s) = (world.host(Nat::None), world.host(Nat::None));
    let (a, b) = (world.host(Nat::Symmetric), world.host(Nat::PortRestricted));
    introduce(&[&r, &s, &a, &b]);
    until("both know their NAT", || {
        a.connector.nat_kind() == NatKind::Symmetric && b.connector.nat_kind() == NatKind::Cone
    })
    .await;
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    let Path::Relayed(relay) = pong.path else {
        panic!("{pong:?}")
    };
    assert!([r.member, s.member].contains(&relay));
    let (ok, text) = tokio::task::block_in_place(|| ping(&b, &a.overlay(), 5));
    assert!(ok && text.contains(" 0% packet loss"), "{text}");
    let big = tokio::task::block_in_place(|| {
        a.exec(&format!("ping -n -c 2 -W 2 -M do -s 1312 {}", b.overlay()))
    });
    assert!(big.status.success(), "a full packet fits through a relay");
    let pong = a.plane.ping(r.member, LIMIT).await.expect("answers");
    assert!(matches!(pong.path, Path::Direct(_)), "{pong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_udp_is_blocked_the_same_frames_go_by_stream() {
    let mut world = World::new(Duration::from_millis(5));
    let (a, b) = (world.host(Nat::None), world.host(Nat::NoUdp));
    introduce(&[&a, &b]);
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert_eq!(pong.path, Path::Stream);
    let (ok, text) = tokio::task::block_in_place(|| ping(&b, &a.overlay(), 3));
    assert!(ok, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_counts_as_open_again_once_its_silent_members_are_gone() {
    let mut world = World::new(Duration::from_millis(5));
    let (r, b, a) = (
        world.host(Nat::None),
        world.host(Nat::None),
        world.host(Nat::NoUdp),
    );
    introduce(&[&r, &b, &a]);
    until("nobody answers by UDP", || {
        a.connector.nat_kind() == NatKind::Blocked
    })
    .await;
    let of_control = |cut| {
        [&r, &b]
            .iter()
            .for_each(|other| world.set_cut(a.member, other.member, cut))
    };
    of_control(true);
    until("nobody is left who could answer", || {
        a.connector.nat_kind() == NatKind::Unknown
    })
    .await;
    assert!(a.exec("nft delete table ip t").status.success());
    of_control(false);
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert!(matches!(pong.path, Path::Direct(_)), "{pong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_path_is_noticed_and_another_takes_over() {
    let mut world = World::new(Duration::from_millis(5));
    let (r, a, b) = (
        world.host(Nat::None),
        world.host(Nat::None),
        world.host(Nat::None),
    );
    introduce(&[&r, &a, &b]);
    assert!(matches!(
        a.plane.ping(b.member, LIMIT).await.expect("answers").path,
        Path::Direct(_)
    ));
    until("the other side has a path too", || {
        b.plane.path(a.member).is_some()
    })
    .await;
    // The two can no longer see each other, both still see the third.
    let cut = a.exec(
        "nft 'table ip cut { chain o { type filter hook output priority 0; ip daddr \
        198.18.0.3 drop; }; chain i { type filter hook input priority 0; ip saddr 198.18.0.3 \
        drop; }; }'",
    );
    assert!(cut.status.success());
    let command = format!(
        "ip netns exec {} ping -n -i 0.2 -c 60 {}",
        a.namespace,
        b.overlay()
    );
    let pinged = tokio::task::spawn_blocking(move || world::sh(&command));
    until("the pair goes through the third", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| i.path == Path::Relayed(r.member))
    })
    .await;
    let text = String::from_utf8_lossy(&pinged.await.expect("runs").stdout).into_owned();
    let received = text.lines().filter(|l| l.contains("bytes from")).count();
    assert!(received >= 25, "{text}");
}

/// The hosts `from` reach the guest at 10.77.1.9, and the guest in the namespace reaches `to`.
fn talks(guest: &str, from: &[&Host], to: &Host) {
    for host in from {
        assert!(
            ping(host, "10.77.1.9", 3).0,
            "host {} reaches it",
            host.number
        );
    }
    let reach = format!("ip netns exec {guest} ping -n -c 2 -W 2 {}", to.overlay());
    assert!(
        world::sh(&reach).status.success(),
        "the guest reaches a host"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_talks_moves_and_is_fenced() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, mut b, mut c) = (
        world.host(Nat::None),
        world.host(Nat::None),
        world.host(Nat::None),
    );
    introduce(&[&a, &b, &c]);
    let (guest, port) = world.guest(&a, "g", 9, 1);
    let addr = IpAddr::V4(port.v4);
    let at = |member: MemberId, epoch| Route {
        member,
        epoch: Epoch(epoch),
    };
    for host in [&b, &c] {
        host.plane.set_route(addr, at(a.member, 1));
    }
    tokio::task::block_in_place(|| {
        talks(&guest, &[&a, &c], &b);
        a.plane.freeze_port(port.vm, true);
        let frozen = a.exec("ping -n -c 1 -W 1 10.77.1.9");
        assert!(!frozen.status.success(), "frozen, nothing goes in");
        a.plane.freeze_port(port.vm, false);
    });

    // The move: the new host takes the guest under epoch 2, the old one passes packets on; only its
    // hint tells c.
    a.plane.detach_port(port.vm);
    a.plane.set_forward(addr, Some(at(b.member, 2)));
    world.guest(&b, "g", 9, 2);
    b.plane.set_route(addr, at(b.member, 2));
    while b.events.try_recv().is_ok() || c.events.try_recv().is_ok() {}
    let (ok, text) = tokio::task::block_in_place(|| ping(&c, "10.77.1.9", 10));
    assert!(ok && text.contains(" 0% packet loss"), "{text}");
    assert!(
        c.plane.routes().contains(&(addr, at(b.member, 2))),
        "the old host's hint was believed"
    );
    let hinted = std::iter::from_fn(|| c.events.try_recv().ok())
        .any(|e| matches!(e, PlaneEvent::MovedHint { .. }));
    assert!(hinted);

    // The old host's copy comes back and still believes in epoch 1.
    world.guest(&a, "ghost", 9, 1);
    let ghost = guest
        .strip_suffix('g')
        .map(|p| format!("{p}ghost"))
        .expect("named so");
    let out = tokio::task::block_in_place(|| {
        world::sh(&format!(
            "ip netns exec {ghost} ping -n -c 2 -W 1 {}",
            c.overlay()
        ))
    });
    assert!(!out.status.success(), "a stale epoch gets no answer");
    let stale = std::iter::from_fn(|| c.events.try_recv().ok()).any(|e| {
        matches!(
            e,
            PlaneEvent::StaleEpoch { sent: Epoch(1), known: Epoch(2), from, .. } if from == a.member
        )
    });
    assert!(stale);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_tcp_goes_through_and_an_idle_link_is_quiet() {
    let mut world = World::new(Duration::from_millis(1));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let (guest, port) = world.guest(&a, "g", 9, 1);
    b.plane.set_route(
        IpAddr::V4(port.v4),
        Route {
            member: a.member,
            epoch: Epoch(1),
        },
    );
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    let bytes = |h: &Host| -> u64 {
        let text = h.exec("cat /sys/class/net/wan/statistics/tx_bytes");
        String::from_utf8_lossy(&text.stdout)
            .trim()
            .parse()
            .expect("a number")
    };
    tokio::task::block_in_place(|| {
        for from in [&a.namespace, &guest] {
            let to = b.overlay();
            let server = std::process::Command::new("ip")
                .args(["netns", "exec", &b.namespace, "iperf3", "-s", "-1"])
                .stdout(std::process::Stdio::null())
                .spawn();
            let mut server = server.expect("iperf3 starts");
            std::thread::sleep(Duration::from_millis(500));
            let out = world::sh(&format!("ip netns exec {from} iperf3 -c {to} -t 3 -f g"));
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(
                out.status.success(),
                "{text}{}",
                String::from_utf8_lossy(&out.stderr)
            );
            let _ = server.wait();
        }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = bytes(&a);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let rate = (bytes(&a) - before) / 5;
    assert!(rate < 100, "{rate} bytes a second on an idle link");
}
