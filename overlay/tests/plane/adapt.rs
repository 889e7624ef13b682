//! Links adapt: relays that die, refuse or are limited, paths that carry less, addresses that
//! change, a family that fails.

use super::{
    LIMIT,
    measured::{Measurement, other_path, rate, silence},
    ping, two_behind_nats, until,
};
use crate::world::{self, Host, Nat, World, introduce, sh, within};
use p2pvm_overlay::{
    connect::NatKind,
    plane::{Path, RelayOffer, Route},
};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A TCP connection through the overlay that sends `size` bytes every 20 ms and hears them back.
struct Talk(JoinHandle<Duration>);

/// Starts to talk for `time`.
fn talk(from: &Host, to: &Host, size: usize, time: Duration) -> Talk {
    let address = format!("{}:{}", to.overlay(), 7000 + u16::from(from.number));
    let (client, server, bind) = (
        from.namespace.clone(),
        to.namespace.clone(),
        address.clone(),
    );
    let listener = within(&server, || {
        TcpListener::bind(&bind).expect("the overlay address is there")
    });
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut buf = vec![0; size];
        while stream.read_exact(&mut buf).is_ok() && stream.write_all(&buf).is_ok() {}
    });
    Talk(std::thread::spawn(move || {
        let mut stream = within(&client, || TcpStream::connect(&address).expect("connects"));
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(Duration::from_secs(25)))
            .expect("a socket option");
        let (began, mut last, mut longest, mut buf) = (
            Instant::now(),
            Instant::now(),
            Duration::ZERO,
            vec![7; size],
        );
        while began.elapsed() < time {
            stream.write_all(&buf).expect("the connection lives");
            stream.read_exact(&mut buf).expect("the connection goes on");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
        }
        longest
    }))
}

impl Talk {
    /// Waits for its end; returns the longest time without an answer.
    fn end(self) -> Duration {
        tokio::task::block_in_place(|| self.0.join().expect("the connection went on"))
    }
}

/// Mbit/s received in `seconds` from one namespace to a host, by TCP unless `how` says otherwise.
fn bulk(from: &str, to: &Host, seconds: u32, how: &str) -> f64 {
    tokio::task::block_in_place(|| {
        let mut server = std::process::Command::new("ip")
            .args(["netns", "exec", &to.namespace, "iperf3", "-s", "-1"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("iperf3 starts");
        std::thread::sleep(Duration::from_millis(500));
        let out = sh(&format!(
            "ip netns exec {from} timeout 30 iperf3 -c {} -t {seconds} -f m {how}",
            to.overlay()
        ));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let _ = server.wait();
        let line = text
            .lines()
            .find(|l| l.contains("receiver"))
            .expect("a summary")
            .to_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        words[words
            .iter()
            .position(|w| *w == "Mbits/sec")
            .expect("a rate")
            - 1]
        .parse()
        .expect("a number")
    })
}

fn router_of(host: &Host) -> String {
    let (prefix, number) = host.namespace.rsplit_once('h').expect("named so");
    format!("{prefix}r{number}")
}

/// Lets the link between a host and its router carry 1280 bytes at most.
fn make_link_small(host: &Host) {
    let small = format!(
        "ip -n {} link set lan mtu 1280 && ip -n {} link set eth0 mtu 1280",
        router_of(host),
        host.namespace
    );
    assert!(sh(&small).status.success());
}

fn relay_of(path: Path) -> Option<p2pvm_overlay::MemberId> {
    if let Path::Relayed(relay) = path {
        Some(relay)
    } else {
        None
    }
}

/// A symmetric NAT and a port-restricted one, which need a relay, and the open members that may be
/// it.
async fn needing_a_relay(world: &mut World, relays: usize) -> (Vec<Host>, Host, Host) {
    let relays: Vec<Host> = (0..relays).map(|_| world.host(Nat::None)).collect();
    let (a, b) = (world.host(Nat::Symmetric), world.host(Nat::PortRestricted));
    introduce(&relays.iter().chain([&a, &b]).collect::<Vec<_>>());
    if relays.len() > 1 {
        until("both know their NAT", || {
            a.connector.nat_kind() == NatKind::Symmetric && b.connector.nat_kind() == NatKind::Cone
        })
        .await;
    }
    (relays, a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_dies_is_replaced_under_a_tcp_stream() {
    let measurement = Measurement::begin();
    let mut world = World::new(Duration::from_millis(10));
    let (relays, a, b) = needing_a_relay(&mut world, 2).await;
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    let talking = talk(&a, &b, 64, Duration::from_secs(14));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let relay = a
        .plane
        .path(b.member)
        .and_then(|i| relay_of(i.path))
        .expect("a relay is needed");
    let dead = relays
        .iter()
        .find(|r| r.member == relay)
        .expect("one of the two");
    sh(&format!("ip -n {} link set wan down", dead.namespace));
    let died = Instant::now();
    until("the other relay is used", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| relay_of(i.path).is_some_and(|r| r != relay))
    })
    .await;
    let took = died.elapsed();
    let longest = talking.end();
    let event = "the relay dies";
    measurement.end(&[silence(event, longest), other_path(event, took)]);
    assert!(longest < Duration::from_secs(6), "silent for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unwilling_member_relays_nothing_and_where_none_will_a_stream_does() {
    let mut world = World::new(Duration::from_millis(10));
    let (relays, a, b) = needing_a_relay(&mut world, 2).await;
    let unwilling = RelayOffer {
        willing: false,
        bits_per_second: 0,
    };
    relays[0].plane.set_relay(unwilling);
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert_eq!(pong.path, Path::Relayed(relays[1].member));
    assert!(tokio::task::block_in_place(|| ping(&a, &b.overlay(), 5)).0);
    assert_eq!(
        relays[0].plane.relayed().0,
        0,
        "nothing went through the unwilling"
    );
    assert!(relays[1].plane.relayed().0 > 0);
    relays[1].plane.set_relay(unwilling);
    let command = format!(
        "ip netns exec {} ping -n -i 0.3 -c 40 {}",
        a.namespace,
        b.overlay()
    );
    let pinged = tokio::task::spawn_blocking(move || sh(&command));
    until("no relay is a must", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| i.path == Path::Stream)
    })
    .await;
    assert!(pinged.await.expect("runs").status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_passes_on_no_more_than_it_offers() {
    let (measurement, mut figures) = (Measurement::begin(), Vec::new());
    let mut world = World::new(Duration::from_millis(10));
    let (relays, a, b) = needing_a_relay(&mut world, 2).await;
    // How fast it goes is the machine's business: a relay's own count never exceeds what it offers
    // in the time that has passed, and one full bucket (a tenth of a second's worth, and the packet
    // that overflows it). The limit drops probes for the path's size too: the datagrams fit the
    // smallest it may be taken for.
    for (bits_per_second, how) in [(8_000_000, "-u -b 40M -l 1000"), (100_000_000, "")] {
        let began = Instant::now();
        let before: Vec<(u64, u64)> = relays.iter().map(|relay| relay.plane.relayed()).collect();
        for relay in &relays {
            relay.plane.set_relay(RelayOffer {
                willing: true,
                bits_per_second,
            });
        }
        let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
        assert!(relay_of(pong.path).is_some(), "{pong:?}");
        let mbit = bulk(&a.namespace, &b, 5, how);
        let counted: Vec<(u64, u64)> = relays
            .iter()
            .zip(before)
            .map(|(relay, (passed, dropped))| {
                (
                    relay.plane.relayed().0 - passed,
                    relay.plane.relayed().1 - dropped,
                )
            })
            .collect();
        let most = (began.elapsed().as_secs_f64() + 0.1) * bits_per_second as f64 / 8.0 + 2000.0;
        let offered = bits_per_second / 1_000_000;
        figures.push(rate(&format!("relays that offer {offered} Mbit/s"), mbit));
        assert!(
            counted.iter().all(|(passed, _)| *passed as f64 <= most),
            "passed on and dropped: {counted:?}, more than {most}"
        );
        assert!(
            mbit > 0.0 && counted.iter().any(|(passed, _)| *passed > 0),
            "something is passed on: {mbit} Mbit/s, {counted:?}"
        );
        // Forty offered to a relay that gives eight: the limit is what held it, not the load.
        assert!(
            how.is_empty() || counted.iter().any(|(_, dropped)| *dropped > 0),
            "what is too much is dropped: {counted:?}"
        );
    }
    measurement.end(&figures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_1280_bytes_is_no_black_hole() {
    let (measurement, mut figures) = (Measurement::begin(), Vec::new());
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::PortRestricted));
    make_link_small(&b);
    introduce(&[&a, &b]);
    // From the first packet on, before anything is known of the path.
    let first = tokio::task::block_in_place(|| {
        a.exec(&format!(
            "ping -n -c 1 -W 5 -s 1252 {}",
            world::v6(b.number)
        ))
    });
    assert!(
        first.status.success(),
        "{}",
        String::from_utf8_lossy(&first.stdout)
    );
    for (x, y, path) in [
        (&a, &b, "a link of 1280 bytes"),
        (&b, &a, "a link of 1280 bytes, back"),
    ] {
        until("the path's size is known", || {
            x.plane
                .path(y.member)
                .is_some_and(|i| i.packet_bytes == 1208)
        })
        .await;
        // Until the search has ended, what does not fit goes in pieces; then the sender is told.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = tokio::task::block_in_place(|| {
            x.exec(&format!("ping -n -c 2 -W 2 -M do -s 1312 {}", y.overlay()))
        });
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&refused.stdout),
            String::from_utf8_lossy(&refused.stderr)
        );
        assert!(!refused.status.success() && text.contains("1208"), "{text}");
        let fits = tokio::task::block_in_place(|| {
            x.exec(&format!("ping -n -c 2 -W 2 -M do -s 1180 {}", y.overlay()))
        });
        assert!(fits.status.success(), "1208 bytes go whole");
        let v6 = tokio::task::block_in_place(|| {
            x.exec(&format!(
                "ping -n -i 0.2 -c 5 -W 2 -s 1232 {}",
                world::v6(y.number)
            ))
        });
        assert!(
            String::from_utf8_lossy(&v6.stdout).contains(" 0% packet loss"),
            "IPv6's 1280 bytes always go: {}",
            String::from_utf8_lossy(&v6.stdout)
        );
        figures.push(rate(path, bulk(&x.namespace, y, 2, "")));
    }
    let (guest, port) = world.guest(&a, "g", 9, 1);
    b.plane.set_route(
        port.v4.into(),
        Route {
            member: a.member,
            epoch: p2pvm_overlay::Epoch(1),
        },
    );
    let path = "a link of 1280 bytes, from a guest";
    figures.push(rate(path, bulk(&guest, &b, 2, "")));
    measurement.end(&figures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_path_with_a_small_link_is_measured_end_to_end() {
    let measurement = Measurement::begin();
    let mut world = World::new(Duration::from_millis(5));
    let (relays, a, b) = needing_a_relay(&mut world, 2).await;
    make_link_small(&b);
    let pong = a.plane.ping(b.member, LIMIT).await.expect("answers");
    assert!(relay_of(pong.path).is_some(), "{pong:?}");
    // 1280 less IPv4 and UDP, less the relay's link, less our own.
    until("the path's size is known", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| i.packet_bytes == 1280 - 28 - 2 * 44)
    })
    .await;
    let path = "a relay and a link of 1280 bytes";
    measurement.end(&[
        rate(path, bulk(&a.namespace, &b, 2, "")),
        rate(&format!("{path}, back"), bulk(&b.namespace, &a, 2, "")),
    ]);
    drop(relays);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_shrinks_in_silence_holds_up_tcp_for_seconds_only() {
    let measurement = Measurement::begin();
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::PortRestricted));
    introduce(&[&a, &b]);
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    until("the path's size is known", || {
        a.plane
            .path(b.member)
            .is_some_and(|i| i.packet_bytes == 1340)
    })
    .await;
    let talking = talk(&a, &b, 8000, Duration::from_secs(16));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let router = router_of(&b);
    let shrunk = sh(&format!(
        "ip netns exec {router} nft 'table ip silent {{ chain o {{ type filter hook output \
            priority 0; icmp type destination-unreachable drop; }}; }}' && \
         ip -n {router} link set lan mtu 1280"
    ));
    assert!(
        shrunk.status.success(),
        "{}",
        String::from_utf8_lossy(&shrunk.stderr)
    );
    let longest = talking.end();
    measurement.end(&[silence("the path's size shrinks in silence", longest)]);
    assert!(longest < Duration::from_secs(11), "silent for {longest:?}");
    assert_eq!(a.plane.path(b.member).map(|i| i.packet_bytes), Some(1208));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_changes_address_is_soon_back_and_tcp_survives() {
    let (measurement, mut figures) = (Measurement::begin(), Vec::new());
    let mut world = World::new(Duration::from_millis(10));
    let (a, open, natted) = (
        world.host(Nat::None),
        world.host(Nat::None),
        world.host(Nat::PortRestricted),
    );
    introduce(&[&a, &open, &natted]);
    for to in [&open, &natted] {
        assert!(matches!(
            a.plane.ping(to.member, LIMIT).await.expect("answers").path,
            Path::Direct(_)
        ));
    }
    let talks = [
        talk(&a, &open, 64, Duration::from_secs(12)),
        talk(&natted, &a, 64, Duration::from_secs(12)),
    ];
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (n, ns) = (a.number, &a.namespace);
    let moved = sh(&format!(
        "ip -n {ns} addr del 198.18.0.{n}/24 dev wan && ip -n {ns} addr add 198.18.0.{}/24 dev wan",
        n + 100
    ));
    assert!(moved.status.success());
    for (talk, what) in talks
        .into_iter()
        .zip(["an open member", "a member behind a NAT"])
    {
        let longest = talk.end();
        let event = format!("a host's address changes, to {what}");
        figures.push(silence(&event, longest));
        assert!(
            longest < Duration::from_secs(5),
            "{what}: silent for {longest:?}"
        );
    }
    measurement.end(&figures);
    let now = |h: &Host| h.plane.path(a.member).map(|i| i.path);
    until("both see it at its new address", || {
        [&open, &natted].iter().all(|h| {
            matches!(
                now(h),
                Some(Path::Direct(at)) if at.ip().to_string() == format!("198.18.0.{}", n + 100)
            )
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_new_address_is_noticed_behind_it_and_links_return() {
    let measurement = Measurement::begin();
    let mut world = World::new(Duration::from_millis(10));
    let (_open, a, b) = two_behind_nats(&mut world).await;
    assert!(matches!(
        a.plane.ping(b.member, LIMIT).await.expect("answers").path,
        Path::Direct(_)
    ));
    // Looked at once before the change.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let talking = talk(&b, &a, 64, Duration::from_secs(14));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (n, router) = (a.number, router_of(&a));
    let moved = sh(&format!(
        "ip -n {router} addr del 198.18.0.{n}/24 dev wan && ip -n {router} addr add \
            198.18.0.{}/24 dev wan",
        n + 100
    ));
    assert!(moved.status.success());
    let longest = talking.end();
    measurement.end(&[silence("a NAT's address changes", longest)]);
    assert!(longest < Duration::from_secs(10), "silent for {longest:?}");
    assert_eq!(
        a.connector.reflexive().map(|at| at.ip().to_string()),
        Some(format!("198.18.0.{}", n + 100))
    );
    assert!(matches!(
        b.plane.path(a.member).map(|i| i.path),
        Some(Path::Direct(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_families_are_tried_and_the_other_takes_over_when_one_fails() {
    let measurement = Measurement::begin();
    let mut world = World::new(Duration::from_millis(5));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    for host in [&a, &b] {
        let added = sh(&format!(
            "ip -n {} addr add 2001:2:0:1::{}/64 dev wan nodad",
            host.namespace, host.number
        ));
        assert!(added.status.success());
    }
    until("both know their new addresses", || {
        [&a, &b]
            .iter()
            .all(|h| h.connector.candidates().iter().any(|c| c.addr.is_ipv6()))
    })
    .await;
    introduce(&[&a, &b]);
    a.plane.ping(b.member, LIMIT).await.expect("answers");
    let family = || match a.plane.path(b.member).map(|i| i.path) {
        Some(Path::Direct(at)) => Some(at.is_ipv6()),
        _ => None,
    };
    let talking = talk(&a, &b, 64, Duration::from_secs(10));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let first = family().expect("a direct path");
    let name = if first { "ip6" } else { "ip" };
    let cut = format!(
        "table {name} cut {{ chain o {{ type filter hook output priority 0; oifname wan udp dport \
            1-65535 drop; }}; \
         chain i {{ type filter hook input priority 0; iifname wan udp dport 1-65535 drop; }}; }}"
    );
    assert!(a.exec(&format!("nft '{cut}'")).status.success());
    let failed = Instant::now();
    until("the other family", || family() == Some(!first)).await;
    let took = failed.elapsed();
    let longest = talking.end();
    let event = "one of IPv4 and IPv6 fails";
    measurement.end(&[silence(event, longest), other_path(event, took)]);
    assert!(longest < Duration::from_secs(6), "silent for {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_traffic_matrix_names_each_pair_and_the_member_behind_it() {
    let mut world = World::new(Duration::from_millis(1));
    let (a, b, c) = (
        world.host(Nat::None),
        world.host(Nat::None),
        world.host(Nat::None),
    );
    introduce(&[&a, &b, &c]);
    let (guest, port) = world.guest(&a, "g", 9, 1);
    b.plane.set_route(
        port.v4.into(),
        Route {
            member: a.member,
            epoch: p2pvm_overlay::Epoch(1),
        },
    );
    assert!(
        tokio::task::block_in_place(|| sh(&format!(
            "ip netns exec {guest} ping -n -i 0.05 -c 60 -s 1000 {}",
            b.overlay()
        )))
        .status
        .success()
    );
    assert!(tokio::task::block_in_place(|| ping(&a, &c.overlay(), 1)).0);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for (at, local, remote, member) in [
        (&a, port.v4.to_string(), b.overlay(), b.member),
        (&b, b.overlay(), port.v4.to_string(), a.member),
    ] {
        let matrix = at.plane.traffic();
        let flow = matrix
            .flows
            .iter()
            .find(|f| f.local.to_string() == local && f.remote.to_string() == remote)
            .expect("the pair is known");
        assert_eq!(flow.member, member);
        assert_eq!(
            (flow.sent, flow.received),
            (60 * 1028, 60 * 1028),
            "IP bytes, each once"
        );
        assert!(flow.rates[2] > 5000.0, "{flow:?}");
        assert_eq!(matrix.by_member().first().map(|(m, _)| *m), Some(member));
    }
    let matrix = a.plane.traffic();
    assert!(
        matrix.flows.iter().any(|f| f.member == c.member),
        "one ping is counted"
    );
    assert!(
        matrix.significant(0.05).all(|f| f.member == b.member),
        "and is noise beside the other"
    );
}
