//! No tunnel through a tunnel: two networks on the same two hosts, and routes that lead into the
//! tunnel.

use crate::{
    LIMIT, ping, until,
    world::{Host, Nat, World, introduce, sh},
};
use p2pvm_overlay::plane::Path;
use std::{net::IpAddr, time::Duration};

/// Packets that a device of the host has sent and received so far.
fn packets(host: &Host, device: &str) -> u64 {
    let text = host.exec(&format!(
        "cat /sys/class/net/{device}/statistics/tx_packets \
        /sys/class/net/{device}/statistics/rx_packets"
    ));
    String::from_utf8_lossy(&text.stdout)
        .lines()
        .filter_map(|line| line.trim().parse::<u64>().ok())
        .sum()
}

/// Both networks of two hosts.
fn two_networks() -> (World, World, [Host; 2], [Host; 2]) {
    let mut one = World::new(Duration::from_millis(2));
    let (a, b) = (one.host(Nat::None), one.host(Nat::None));
    let mut other = World::new(Duration::from_millis(2));
    (other.subnet, other.device) = (88, "p2pvm1");
    let (c, d) = (
        other.place(a.namespace.clone()),
        other.place(b.namespace.clone()),
    );
    introduce(&[&a, &b]);
    introduce(&[&c, &d]);
    (one, other, [a, b], [c, d])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_networks_on_the_same_hosts_never_carry_each_other() {
    let (_one, _other, one, other) = two_networks();
    for [from, to] in [&one, &other] {
        assert!(matches!(
            from.plane
                .ping(to.member, LIMIT)
                .await
                .expect("answers")
                .path,
            Path::Direct(_)
        ));
    }
    let overlay = |addr: IpAddr| {
        matches!(addr, IpAddr::V4(v4) if v4.octets()[0] == 10) || matches!(addr, IpAddr::V6(_))
    };
    for host in one.iter().chain(&other) {
        let told: Vec<_> = host
            .connector
            .candidates()
            .iter()
            .map(|c| c.addr.ip())
            .filter(|ip| overlay(*ip))
            .collect();
        assert!(told.is_empty(), "{} tells {told:?}", host.overlay());
    }
    let before = packets(&one[0], "p2pvm0") + packets(&one[0], "p2pvm1");
    let cut = one[0].exec(
        "nft 'table ip cut { chain o { type filter hook output priority 0; \
        oifname wan meta l4proto udp drop; }; }'",
    );
    assert!(
        cut.status.success(),
        "{}",
        String::from_utf8_lossy(&cut.stderr)
    );
    let pings: Vec<_> = [&one, &other]
        .map(|[from, to]| {
            format!(
                "ip netns exec {} ping -n -i 0.5 -w 20 {}",
                from.namespace,
                to.overlay()
            )
        })
        .into_iter()
        .map(|command| tokio::task::spawn_blocking(move || sh(&command)))
        .collect();
    for [from, to] in [&one, &other] {
        until("the stream carries", || {
            from.plane
                .path(to.member)
                .is_some_and(|info| info.path == Path::Stream)
        })
        .await;
    }
    for pinged in pings {
        pinged.await.expect("runs");
    }
    for [from, to] in [&one, &other] {
        let (ok, text) = tokio::task::block_in_place(|| ping(from, &to.overlay(), 3));
        assert!(ok, "{text}");
    }
    let after = packets(&one[0], "p2pvm0") + packets(&one[0], "p2pvm1");
    assert!(
        after - before < 400,
        "{} packets in the tunnels for some 86 pings",
        after - before
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_leads_the_tunnel_into_itself_is_cut_and_named() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let Path::Direct(to) = a.plane.ping(b.member, LIMIT).await.expect("answers").path else {
        panic!("it is direct")
    };
    assert_eq!(a.plane.loops(), (0, None));
    // As an accepted route to the network in which the other stands.
    let into = a.exec(&format!("ip route add {}/32 dev p2pvm0", to.ip()));
    assert!(
        into.status.success(),
        "{}",
        String::from_utf8_lossy(&into.stderr)
    );
    a.plane.set_route(to.ip(), b.route());
    let before = packets(&a, "p2pvm0");
    until("the loop is seen", || {
        sh(&format!(
            "ip netns exec {} ping -n -c 1 -W 1 {}",
            a.namespace,
            b.overlay()
        ));
        a.plane.loops().1.is_some_and(|(_, at)| at.ip() == to.ip())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (count, sent) = (a.plane.loops().0, packets(&a, "p2pvm0") - before);
    assert!(sent < 500, "{sent} packets, {count} of them came round");
}
