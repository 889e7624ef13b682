//! Each NAT kind behaves as named, seen from real sockets: the mapping and filtering rules of RFC
//! 4787 §4.1 and §5.

mod testbed_common;

use p2pvm_lab::Testbed;
use std::{
    io::{Read, Write},
    net::{SocketAddr, UdpSocket},
};
use testbed_common::{at, connection, heard, kept_out, reaches, receive, silent, socket, up};

/// A site with this NAT and two hosts, a public site with two hosts.
fn world(nat: &str) -> Testbed {
    up(&format!(
        "seed=5\n[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='{nat}'\nhosts=2\n[[site]]\n\
            name='w'\nhosts=2\n"
    ))
}

/// Sends from `inside` to `outside` at `address`; returns the source address that `outside` sees.
fn seen(inside: &UdpSocket, address: SocketAddr, outside: &UdpSocket) -> SocketAddr {
    inside.send_to(b"hello", address).unwrap();
    receive(outside).1
}

/// Checks a NAT's mapping (whether it is one towards two addresses and two ports) and its filtering
/// (which of them may answer a packet to one of them).
fn check(nat: &str, one_mapping: bool, other_port_passes: bool, other_address_passes: bool) {
    let testbed = world(nat);
    let (p, q, other) = (
        socket(&testbed, "w1", 1000),
        socket(&testbed, "w1", 1001),
        socket(&testbed, "w2", 1000),
    );
    let (to_p, to_q, to_other) = (
        at(&testbed, "w1", 1000),
        at(&testbed, "w1", 1001),
        at(&testbed, "w2", 1000),
    );

    let inside = socket(&testbed, "home1", 4000);
    let public = seen(&inside, to_p, &p);
    assert_eq!(
        public.ip(),
        at(&testbed, "home1", 0).ip(),
        "seen as the router"
    );
    assert!(
        reaches(&p, public, &inside),
        "the address and port that were written to may answer"
    );
    assert_eq!(
        heard(&q, public, &inside, other_port_passes),
        other_port_passes,
        "{nat}: another port of the same address"
    );
    assert_eq!(
        heard(&other, public, &inside, other_address_passes),
        other_address_passes,
        "{nat}: another address"
    );

    // The attempts above must not have spoiled the mapping, whether they passed or not.
    let (again, port, address) = (
        seen(&inside, to_p, &p),
        seen(&inside, to_q, &q),
        seen(&inside, to_other, &other),
    );
    assert_eq!(again, public, "a mapping in use stays");
    assert_eq!(
        [port == public, address == public],
        [one_mapping; 2],
        "{nat}: seen as {public}, {port}, {address}"
    );
    assert!(
        reaches(&q, port, &inside) && reaches(&other, address, &inside),
        "both were written to by now"
    );

    // A second host with the same inside port has a mapping of its own.
    let neighbour = socket(&testbed, "home2", 4000);
    let theirs = seen(&neighbour, to_p, &p);
    assert!(theirs.ip() == public.ip() && theirs.port() != public.port());
    assert_eq!(seen(&neighbour, to_other, &other) == theirs, one_mapping);
    assert!(reaches(&p, theirs, &neighbour) && reaches(&p, public, &inside));
    testbed.down().unwrap();
}

#[test]
fn a_full_cone_has_one_mapping_and_lets_anybody_answer() {
    check("full-cone", true, true, true);
}

#[test]
fn a_restricted_cone_has_one_mapping_and_filters_by_address() {
    check("restricted", true, true, false);
}

#[test]
fn a_port_restricted_cone_has_one_mapping_and_filters_by_port() {
    check("port-restricted", true, false, false);
}

#[test]
fn a_symmetric_nat_maps_each_destination_and_lets_only_it_answer() {
    check("symmetric", false, false, false);
}

#[test]
fn a_sequential_symmetric_nat_maps_each_destination_to_the_next_port() {
    check("symmetric-sequential", false, false, false);
    let testbed = world("symmetric-sequential");
    let inside = socket(&testbed, "home1", 4000);
    let ports: Vec<u16> = (0..5)
        .map(|n| {
            let outside = socket(&testbed, "w1", 1000 + n);
            seen(&inside, at(&testbed, "w1", 1000 + n), &outside).port()
        })
        .collect();
    assert!(
        ports.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{ports:?}"
    );
}

/// The neighbour is a host of the same site that uses the port towards the same destination.
#[test]
fn a_preserving_symmetric_nat_keeps_the_port_until_a_neighbour_uses_it() {
    let testbed = world("symmetric-preserving");
    let (p, q) = (socket(&testbed, "w1", 1000), socket(&testbed, "w2", 1000));
    let (to_p, to_q) = (at(&testbed, "w1", 1000), at(&testbed, "w2", 1000));
    let (first, second) = (
        socket(&testbed, "home1", 4000),
        socket(&testbed, "home2", 4000),
    );
    let public = at(&testbed, "home1", 4000);
    assert_eq!(
        [seen(&first, to_p, &p), seen(&second, to_q, &q)],
        [public; 2],
        "each is alone towards its destination"
    );
    assert!(
        kept_out(&q, public, &first),
        "an address that was not written to is not heard"
    );
    let moved = seen(&second, to_p, &p);
    assert!(
        moved.ip() == public.ip() && moved.port() != public.port(),
        "its port is taken there: {moved}"
    );
    assert!(reaches(&p, public, &first) && reaches(&p, moved, &second));
}

/// Behind two NATs the stricter mapping and the stricter filtering count.
#[test]
fn a_carrier_and_a_home_router_translate_one_after_the_other() {
    for (nat, carrier, one_mapping, other_port_passes, other_address_passes) in [
        ("full-cone", "full-cone", true, true, true),
        ("full-cone", "port-restricted", true, false, false),
        ("restricted", "full-cone", true, true, false),
        ("port-restricted", "symmetric", false, false, false),
    ] {
        check(
            &format!("{nat}'\ncarrier='{carrier}"),
            one_mapping,
            other_port_passes,
            other_address_passes,
        );
    }
    let testbed = world("port-restricted'\ncarrier='port-restricted");
    let addresses = testbed
        .inside_router("home", || {
            std::process::Command::new("ip")
                .args(["-4", "addr"])
                .output()
        })
        .unwrap()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&addresses.stdout).contains("100.64.1.2"),
        "the home router has a shared address (RFC 6598)"
    );
}

#[test]
fn without_nat_hosts_keep_their_address_and_anybody_may_knock() {
    let testbed = world("none");
    let (inside, outside) = (
        socket(&testbed, "home1", 4000),
        socket(&testbed, "w1", 1000),
    );
    assert!(reaches(&outside, at(&testbed, "home1", 4000), &inside));
    assert_eq!(
        seen(&inside, at(&testbed, "w1", 1000), &outside),
        at(&testbed, "home1", 4000)
    );
}

#[test]
fn nobody_reaches_a_host_that_never_wrote() {
    for nat in [
        "full-cone",
        "restricted",
        "port-restricted",
        "symmetric",
        "symmetric-preserving",
        "symmetric-sequential",
    ] {
        let testbed = world(nat);
        let (inside, outside) = (
            socket(&testbed, "home1", 4000),
            socket(&testbed, "w1", 1000),
        );
        assert!(
            kept_out(&outside, at(&testbed, "home1", 4000), &inside),
            "{nat}"
        );
    }
}

/// Both hosts learn their public addresses from `w` and send to each other's at the same time.
fn punched(a_nat: &str, b_nat: &str) -> (Testbed, UdpSocket, UdpSocket) {
    let testbed = up(&format!(
        "seed=5\n[default]\nrtt_ms=2\n[[site]]\nname='a'\nnat='{a_nat}'\n[[site]]\nname='b'\n\
            nat='{b_nat}'\n[[site]]\nname='w'\n"
    ));
    let (a, b, stun) = (
        socket(&testbed, "a", 4000),
        socket(&testbed, "b", 4000),
        socket(&testbed, "w", 3478),
    );
    let (a_seen, b_seen) = (
        seen(&a, at(&testbed, "w", 3478), &stun),
        seen(&b, at(&testbed, "w", 3478), &stun),
    );
    for _ in 0..3 {
        a.send_to(b"punch", b_seen).unwrap();
        b.send_to(b"punch", a_seen).unwrap();
    }
    (testbed, a, b)
}

#[test]
fn holes_can_be_punched_between_exactly_the_pairs_where_theory_allows_it() {
    // The host behind the symmetric NAT sends from a port that the other cannot expect; a full or
    // restricted cone does not filter by port.
    for (a_nat, b_nat) in [
        ("port-restricted", "port-restricted"),
        ("restricted", "port-restricted"),
        ("full-cone", "symmetric"),
        ("restricted", "symmetric"),
    ] {
        println!("{a_nat} and {b_nat}");
        let (_testbed, a, b) = punched(a_nat, b_nat);
        a.send_to(b"heard", receive(&a).1).unwrap();
        b.send_to(b"heard", receive(&b).1).unwrap();
        while receive(&a).0 != "heard" {}
    }
    for (a_nat, b_nat) in [("port-restricted", "symmetric"), ("symmetric", "symmetric")] {
        let (_testbed, a, b) = punched(a_nat, b_nat);
        assert!(silent(&a) && silent(&b), "{a_nat} and {b_nat}");
    }
}

#[test]
fn where_udp_is_blocked_tcp_still_passes() {
    for nat in ["none", "port-restricted"] {
        let testbed = up(&format!(
            "[[site]]\nname='home'\nnat='{nat}'\nudp=false\n[[site]]\nname='w'\n"
        ));
        let (inside, outside) = (socket(&testbed, "home", 4000), socket(&testbed, "w", 1000));
        assert!(
            kept_out(&inside, at(&testbed, "w", 1000), &outside),
            "{nat}: out"
        );
        assert!(
            kept_out(&outside, at(&testbed, "home", 4000), &inside),
            "{nat}: in"
        );
        let (mut client, mut server) = connection(&testbed, "home", "w", 80);
        let from = server.peer_addr().unwrap();
        assert_eq!(from.ip(), at(&testbed, "home", 0).ip());
        client.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}
