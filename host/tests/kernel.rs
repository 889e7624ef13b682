//! The keeper on real kernels: routes and rules. Needs root, ip, nft.

mod stage;

use p2pvm_host::Level;
use stage::{Elsewhere, Network, device, forwards, inside, sh, snapshot, until, works};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

/// Which way the kernel sends packets to the member far away.
fn way_to_far(how: &str) -> String {
    sh(&format!("ip route get 198.18.3.10 {how}"))
}

fn check_routes_of_own_sockets() {
    for how in [
        "ipproto udp sport 4001",
        "ipproto udp sport 4002",
        "ipproto tcp sport 4001",
        "mark 0x70327076",
    ] {
        let way = way_to_far(how);
        assert!(way.contains("dev eth0 src 10.0.0.1"), "{how}: {way}");
    }
    assert!(way_to_far("ipproto udp sport 4003").contains("dev p2pvm0"));
}

/// Packets there and back, with the strictest check of where they come from, and from the right
/// address.
fn check_packets_of_own_sockets(far: &Elsewhere) {
    let udp = far.inside(|| UdpSocket::bind("0.0.0.0:4002").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 9];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{} {length}", from.ip()).as_bytes(), from);
        }
    });
    let to: SocketAddr = "198.18.3.10:4002".parse().unwrap();
    for port in [4001, 4002] {
        let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket.send_to(b"hello", to).unwrap();
        let mut answer = [0; 64];
        let length = socket
            .recv(&mut answer)
            .unwrap_or_else(|e| panic!("UDP from {port}: {e}\n{}", snapshot()));
        assert!(answer[..length].starts_with(b"10.0.0.1 "));
    }
    let other = UdpSocket::bind("0.0.0.0:0").unwrap();
    other
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    other.send_to(b"hello", to).unwrap();
    assert!(
        other.recv(&mut [0; 9]).is_err(),
        "what is not p2pvm's goes into the network"
    );
    check_stream_of_own_port(far);
}

fn check_stream_of_own_port(far: &Elsewhere) {
    let tcp = far.inside(|| TcpListener::bind("0.0.0.0:4001").unwrap());
    thread::spawn(move || {
        tcp.incoming()
            .flatten()
            .for_each(|mut stream| drop(stream.write_all(b"!")))
    });
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .unwrap();
    nix::sys::socket::bind(
        socket.as_raw_fd(),
        &nix::sys::socket::SockaddrIn::new(0, 0, 0, 0, 4001),
    )
    .unwrap();
    nix::sys::socket::connect(
        socket.as_raw_fd(),
        &nix::sys::socket::SockaddrIn::new(198, 18, 3, 10, 4001),
    )
    .unwrap();
    let mut stream = TcpStream::from(socket);
    stream.read_exact(&mut [0]).unwrap();
}

/// The default route moves, and comes in two halves as a VPN's: LANs of others are reached still,
/// own sockets follow it.
fn check_own_sockets_follow_the_default_route() {
    sh(
        "ip link add up1 type veth peer name up1x && ip addr add 172.31.0.1/24 dev up1 && ip \
            link set up1 up && ip link set up1x up &&
            ip route replace default via 172.31.0.2 && ip route add 0.0.0.0/1 via 172.31.0.2 && \
            ip route add 128.0.0.0/1 via 172.31.0.2",
    );
    assert!(way_to_far("").contains("dev p2pvm0"));
    assert!(way_to_far("ipproto udp sport 4002").contains("dev up1"));
}

/// A route of this machine's own goes first. Undoes what moved the default route, too.
fn check_own_routes_go_first() {
    sh("ip route add 198.18.3.0/28 via 10.0.0.2");
    until("a part to go its own way", || {
        way_to_far("").contains("dev eth0")
    });
    assert!(sh("ip route get 198.18.3.99").contains("dev p2pvm0"));
    sh("ip route add 198.18.3.0/24 via 10.0.0.2");
    until("all to go its own way", || {
        sh("ip route get 198.18.3.99").contains("dev eth0")
    });
    sh(
        "ip route del 198.18.3.0/24; ip route del 198.18.3.0/28; ip route del 0.0.0.0/1; ip route \
            del 128.0.0.0/1; ip link del up1; ip route add default via 10.0.0.2",
    );
}

#[test]
fn own_sockets_go_around_accepted_routes_and_everything_else_takes_them() {
    inside(|| {
        // A member far away: its own address lies in the subnet that it offers.
        let far = Elsewhere::new("far", "eth0", "10.0.0.1/24", "10.0.0.2/24");
        far.sh("ip addr add 198.18.3.10/24 dev lo");
        sh(
            "ip route add default via 10.0.0.2; sysctl -qw net.ipv4.conf.all.rp_filter=1 \
                net.ipv4.conf.eth0.rp_filter=1",
        );
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["198.18.3.0/24", "198.18.128.0/17"]);
        assert!(
            sh("ip route get 198.18.3.10").contains("dev p2pvm0"),
            "{}",
            snapshot()
        );
        check_routes_of_own_sockets();
        check_packets_of_own_sockets(&far);
        check_own_sockets_follow_the_default_route();
        check_own_routes_go_first();
        network.accept(&[]);
        assert!(
            !sh("ip rule").contains("53"),
            "the rules go with the last route: {}",
            sh("ip rule")
        );
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn a_route_by_the_own_gateway_outranks_an_accepted_one() {
    inside(|| {
        let _gateway = Elsewhere::new("gateway", "eth0", "198.18.4.10/24", "198.18.4.1/24");
        sh("ip route add default via 198.18.4.1");
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["198.18.0.0/16"]);
        assert!(
            sh("ip route get 198.18.3.10").contains("dev p2pvm0"),
            "{}",
            snapshot()
        );
        // As a DHCP client or a person does it, without an interface.
        sh("ip route add 198.18.1.0/24 via 198.18.4.1");
        assert!(
            sh("ip route show 198.18.1.0/24").contains("via 198.18.4.1 dev eth0"),
            "{}",
            snapshot()
        );
        until("its way", || {
            sh("ip route get 198.18.1.10").contains("dev eth0")
        });
        // What a former release made, of another scope, goes too.
        sh(
            "ip route add throw 198.18.9.0/24 proto 112 table $(ip rule | sed -n \
                's/.*lookup \\(18[0-9]*\\).*/\\1/p')",
        );
        until("its end", || !snapshot().contains("throw 198.18.9.0"));
        sh("ip route del 198.18.1.0/24");
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn a_vpns_own_table_is_in_the_way_as_main_is() {
    inside(|| {
        let _vpn = Elsewhere::new("vpn", "wg0", "10.0.0.1/24", "10.0.0.2/24");
        let subnet = (Ipv4Addr::new(10, 50, 0, 0), 16);
        let found = || {
            p2pvm_host::overlap(subnet)
                .unwrap()
                .map(|conflict| conflict.to_string())
                .unwrap_or_default()
        };
        assert_eq!(found(), "");
        for (come, gone, said) in [
            (
                "ip route add 10.50.7.0/24 dev wg0 table 52; ip rule add pref 5270 lookup 52",
                "ip rule del pref 5270",
                "10.50.7.0/24 (by wg0)",
            ),
            (
                "ip route add 10.0.0.0/8 dev wg0 table 51820; ip rule add not fwmark 51820 lookup \
                    51820",
                "ip rule del not fwmark 51820",
                "10.0.0.0/8 (by wg0)",
            ),
            (
                "ip route add blackhole 10.50.3.0/24",
                "ip route del blackhole 10.50.3.0/24",
                "10.50.3.0/24 (which leads nowhere)",
            ),
            (
                "ip route add 10.50.9.0/24 dev wg0 table 7; ip rule add from 10.0.0.9 lookup 7",
                "ip rule del from 10.0.0.9",
                "",
            ),
        ] {
            sh(come);
            assert!(
                found().ends_with(said) && found().is_empty() == said.is_empty(),
                "{come}: {}",
                found()
            );
            sh(gone);
        }
        // An accepted subnet gives way to it too, wherever its rule stands.
        let mut network = Network::start(0);
        sh("ip route add 192.168.77.0/24 dev wg0 table 52; ip rule add pref 6000 lookup 52");
        network.accept(&["192.168.0.0/16", "192.168.77.0/25"]);
        assert!(
            sh("ip route get 192.168.77.2").contains("dev wg0")
                && sh("ip route get 192.168.78.2").contains("dev p2pvm0"),
            "{}",
            snapshot()
        );
        network.end();
    });
}

#[test]
fn rules_of_wg_quick_and_tailscale_go_on_working_beside_ours() {
    inside(|| {
        device("wg0", "10.200.0.2/24");
        device("ts0", "100.64.0.2/32");
        device("eth0", "10.0.0.1/24");
        sh(
            "ip route add default via 10.0.0.2; ip route add 100.64.0.0/10 dev ts0 table 52;
            ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main; ip rule add pref 5270 \
            lookup 52",
        );
        let way = |to: &str| sh(&format!("ip route get {to}"));
        let wg_quick = "ip route add default dev wg0 table 51820; ip rule add not fwmark 51820 \
            lookup 51820; \
                        ip rule add table main suppress_prefixlength 0";
        let mut network = Network::start(0);
        network.accept(&["192.168.7.0/24", "100.64.0.0/12"]);
        assert!(way("192.168.7.9").contains("dev p2pvm0"));
        assert!(
            way("100.64.3.4").contains("dev ts0"),
            "Tailscale's table goes before ours"
        );
        sh(wg_quick);
        until(
            "the routes to go before those of a VPN that came later",
            || way("192.168.7.9").contains("dev p2pvm0"),
        );
        network.end();
        sh(
            "ip rule del table main suppress_prefixlength 0; ip rule del not fwmark 51820; ip \
                route flush table 51820",
        );
        sh(wg_quick);
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["192.168.7.0/24", "100.64.0.0/12"]);
        assert!(way("192.168.7.9").contains("dev p2pvm0"));
        assert!(
            way("192.0.2.1").contains("dev wg0"),
            "everything else goes into the VPN"
        );
        assert!(
            way("192.168.7.9 ipproto udp sport 4002").contains("dev wg0"),
            "own sockets too: a VPN under us"
        );
        assert!(
            way("192.0.2.1 mark 51820").contains("dev eth0"),
            "the VPN's own packets do not"
        );
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn what_somebody_removes_is_back_within_ten_seconds() {
    inside(|| {
        let lan = Elsewhere::new("lan", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["192.168.9.0/24"]);
        network.offer(&["192.168.77.0/24"]);
        let rules = sh("nft list table ip p2pvm_p2pvm0");
        let whole = || {
            works("ip route get 192.168.9.1 | grep -q p2pvm0")
                && sh("ip rule").matches("proto 112").count() == 6
                && forwards("lan0")
                && forwards("p2pvm0")
                && works("nft list table ip p2pvm_p2pvm0")
                && sh("nft list table ip p2pvm_p2pvm0") == rules
        };
        assert!(whole(), "{}", snapshot());
        for removal in [
            "ip route flush dev p2pvm0 table all; ip route add 10.90.0.0/16 dev p2pvm0",
            "ip rule del pref 5301",
            "ip rule del pref 5300; ip rule del pref 5300",
            "ip rule del pref 5302",
            "ip rule add pref 5301 lookup 1879048201 proto 112",
            "nft flush ruleset",
            "nft flush chain ip p2pvm_p2pvm0 through",
            "nft insert rule ip p2pvm_p2pvm0 through accept",
            "sysctl -qw net.ipv4.conf.lan0.forwarding=0",
            "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0",
            "ip link set p2pvm0 down; ip link set p2pvm0 up",
        ] {
            sh(removal);
            until(removal, whole);
        }
        network.end();
        drop(lan);
        until("the veth pair to go", || !works("ip link show lan0"));
        assert_eq!(
            sh("ip rule; nft list ruleset"),
            before
                .lines()
                .filter(|l| l.contains("lookup"))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        );
    });
}

#[test]
fn networks_that_offer_through_one_lan_undo_only_their_own_part() {
    inside(|| {
        let _lan = Elsewhere::new("two", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let before = snapshot();
        let (mut a, mut b) = (Network::start(0), Network::start(1));
        a.offer(&["192.168.77.0/24"]);
        b.offer(&["192.168.77.0/24"]);
        a.accept(&["192.168.9.0/24"]);
        b.accept(&["192.168.9.0/24", "192.168.10.0/24"]);
        for port in [4002, 4012] {
            assert!(
                sh(&format!(
                    "ip route get 192.168.10.1 ipproto udp sport {port} 2>&1 || true"
                ))
                .contains("unreachable")
            );
        }
        a.end();
        assert!(forwards("lan0"), "{}", snapshot());
        // It was left to the first network as long as that led there.
        until("the other to lead there", || {
            sh("ip route get 192.168.9.1 2>&1 || true").contains("p2pvm1")
        });
        assert!(sh("nft list ruleset").contains("p2pvm_p2pvm1"));
        b.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn of_two_routes_to_one_lan_the_answering_router_leads_there() {
    inside(|| {
        let lan = "192.168.50.0/24";
        let before = snapshot();
        let (mut a, mut b) = (Network::start(0), Network::start(1));
        a.accept(&[lan]);
        b.accept(&[lan, "192.168.51.0/24"]);
        let leads = |device: &str| {
            sh("ip route get 192.168.50.7 2>&1 || true").contains(&format!("dev {device} "))
        };
        assert!(leads("p2pvm0"), "who was first: {}", snapshot());
        until("both to know", || {
            !a.keeper.report().shared.is_empty() && !b.keeper.report().shared.is_empty()
        });
        assert!(a.keeper.report().shared[0].is_here && !b.keeper.report().shared[0].is_here);
        a.silence(&[lan]);
        until("the one that answers to lead there", || leads("p2pvm1"));
        assert!(sh("ip route get 192.168.51.7").contains("dev p2pvm1"));
        until("both to know", || {
            b.keeper.report().shared[0].is_here && !a.keeper.report().shared[0].is_here
        });
        a.silence(&[]);
        thread::sleep(Duration::from_millis(500));
        assert!(
            leads("p2pvm1"),
            "no connection is cut when the other comes back: {}",
            snapshot()
        );
        b.silence(&[lan]);
        until("the first to lead there again", || leads("p2pvm0"));
        b.silence(&[]);
        a.end();
        until("the one that is left to lead there", || leads("p2pvm1"));
        until("nothing to be shared", || {
            b.keeper.report().shared.is_empty()
        });
        // A larger LAN of another network leaves out what this one accepts by itself.
        let mut a = Network::start(0);
        a.accept(&["192.168.0.0/16"]);
        assert!(
            leads("p2pvm1") && sh("ip route get 192.168.9.1").contains("dev p2pvm0 "),
            "{}",
            snapshot()
        );
        b.end();
        until("all of it to lead into the larger one", || leads("p2pvm0"));
        a.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn a_lan_that_comes_up_in_the_networks_own_subnet_is_said() {
    inside(|| {
        let network = Network::start(0);
        assert_eq!(
            network.board.worst(),
            Level::Ok,
            "{:?}",
            network.board.all()
        );
        device("wlan0", "10.90.7.5/24");
        let said = || {
            network
                .board
                .all()
                .iter()
                .any(|(area, f)| *area == "routes" && f.found.contains("wlan0 (10.90.7.5/24)"))
        };
        until("the overlap to be said", said);
        sh("ip link del wlan0");
        until("it to be settled", || !said());
        network.end();
    });
}
