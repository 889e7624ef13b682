//! Forwarding between LANs, containers and the network on real kernels. Needs root, ip, nft.

mod stage;

use p2pvm_host::{Level, NetworkNeeds};
use stage::{Elsewhere, Network, device, forwards, inside, nets, sh, snapshot, until, works};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

#[test]
fn forwarding_is_left_as_all_others_have_left_it_whatever_the_order() {
    let one = |on: u8| format!("sysctl -qw net.ipv4.conf.lan0.forwarding={on}");
    let all = |on: u8| format!("sysctl -qw net.ipv4.ip_forward={on}");
    // Before the offer, while it lasts (each is answered before the next comes), and what others
    // have in the end.
    for (n, before, during, left) in [
        (0, vec![], vec![], "0"),
        (1, vec![one(1)], vec![], "1"),
        (2, vec![one(1)], vec![all(1), all(0)], "0"),
        (3, vec![one(1)], vec![one(0)], "0"),
        (4, vec![], vec![one(1)], "1"),
        (5, vec![], vec![all(1)], "1"),
        (6, vec![], vec![all(1), one(0)], "0"),
        (7, vec![all(1), one(0)], vec![], "0"),
        (
            8,
            vec![all(1), one(0)],
            vec![format!("{}; {}", all(0), all(1))],
            "1",
        ),
        (9, vec![all(1)], vec![all(0)], "0"),
        (10, vec![all(1)], vec![all(0), one(1)], "1"),
    ] {
        inside(move || {
            let lan = Elsewhere::new(
                &format!("seq{n}"),
                "lan0",
                "192.168.77.1/24",
                "192.168.77.9/24",
            );
            let v6 = || sh("cat /proc/sys/net/ipv6/conf/*/forwarding");
            before.iter().for_each(|command| drop(sh(command)));
            let before_v6 = v6();
            let mut network = Network::start(n);
            network.offer(&["192.168.77.0/24"]);
            let guarded = || sh("nft list ruleset").contains("iifname \"lan0\" oifname");
            let value = || {
                sh("cat /proc/sys/net/ipv4/conf/lan0/forwarding")
                    .trim()
                    .to_owned()
            };
            let consistent = || match value().as_str() {
                "2" => guarded(),
                "1" => !guarded(),
                _ => false,
            };
            until(
                "it to forward, guarded where it is for p2pvm alone",
                consistent,
            );
            for command in &during {
                sh(command);
                until(command, consistent);
            }
            assert_eq!(
                value() == "1",
                left == "1",
                "{before:?} {during:?}\n{}",
                snapshot()
            );
            network.offer(&[]);
            assert_eq!(value(), left, "withdrawn after {before:?} {during:?}");
            network.offer(&["192.168.77.0/24"]);
            network.end();
            assert_eq!(value(), left, "gone after {before:?} {during:?}");
            assert_eq!(v6(), before_v6, "IPv6 is never switched");
            drop(lan);
        });
    }
}

#[test]
fn a_renamed_lans_forwarding_is_switched_off_at_the_end() {
    inside(|| {
        let _lan = Elsewhere::new("ren", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        sh(
            "ip link set lan0 down; ip link set lan0 name lan7; ip link set lan7 up; ip addr \
                flush dev lan7",
        );
        until("the LAN under its new name to be let go", || {
            !forwards("lan7")
        });
        network.end();
        assert!(!forwards("lan7"), "{}", snapshot());
    });
}

#[test]
fn containers_that_come_later_are_not_cut_off_and_keep_their_forwarding() {
    inside(|| {
        let lan = Elsewhere::new("docker", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        lan.sh("ip route add default via 192.168.77.1");
        let container = Elsewhere::new("box", "br0", "172.30.0.1/24", "172.30.0.2/24");
        container.sh("ip route add default via 172.30.0.1");
        let pings = || container.works("ping -n -c 1 -W 1 192.168.77.9");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        assert!(!pings(), "nothing but p2pvm forwards here");
        assert!(
            !lan.works("ping -n -c 1 -W 1 172.30.0.2"),
            "the LAN gets nowhere that it did not before"
        );
        sh("sysctl -qw net.ipv4.ip_forward=1; nft add table ip nat; nft add chain ip nat post \"{ \
            type nat hook postrouting priority srcnat; }\";
            nft add rule ip nat post ip saddr 172.30.0.0/24 oifname lan0 masquerade");
        until("the container to get out", pings);
        let inward = || lan.works("ping -n -c 1 -W 1 172.30.0.2");
        until("the guard to go", inward);
        network.offer(&[]);
        assert!(pings() && forwards("lan0"), "{}", snapshot());
        network.offer(&["192.168.77.0/24"]);
        network.end();
        assert!(
            pings() && forwards("lan0") && forwards("br0"),
            "{}",
            snapshot()
        );
        assert!(!sh("nft list ruleset").contains("p2pvm"));
    });
}

#[test]
fn while_a_lan_is_offered_containers_reach_members_and_are_reached() {
    inside(|| {
        let _lan = Elsewhere::new("cont", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let container = Elsewhere::new("cbox", "br0", "172.30.0.1/24", "172.30.0.2/24");
        container.sh("ip route add default via 172.30.0.1");
        sh("sysctl -qw net.ipv4.ip_forward=1; nft -f - <<'E'
            table ip nat {
                chain post { type nat hook postrouting priority srcnat; ip saddr 172.30.0.0/24 \
                oifname != \"br0\" masquerade; }
                chain pre { type nat hook prerouting priority dstnat; tcp dport 8080 fib daddr \
                type local dnat to 172.30.0.2:80; }
            }
E");
        let mut network = Network::start(0);
        // The far end of the interface is a member.
        let member = Elsewhere::new("cmem", "unused0", "192.168.99.1/24", "192.168.99.9/24");
        sh(&format!(
            "ip link set peer-p2pvm0 netns {0}; ip -n {0} addr add 10.90.0.2/16 dev peer-p2pvm0; \
                ip -n {0} link set peer-p2pvm0 up",
            member.0
        ));
        let listener = container.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
        thread::spawn(move || {
            listener
                .incoming()
                .flatten()
                .for_each(|mut stream| drop(stream.write_all(b"!")))
        });
        let published = || {
            member.inside(|| {
                let to: SocketAddr = "10.90.0.1:8080".parse().unwrap();
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2));
                stream.is_ok_and(|mut stream| stream.read_exact(&mut [0]).is_ok())
            })
        };
        let outward = || container.works("ping -n -c 1 -W 2 10.90.0.2");
        assert!(
            published() && outward(),
            "before anything is offered\n{}",
            snapshot()
        );
        network.offer(&["192.168.77.0/24"]);
        assert!(published(), "a published port\n{}", snapshot());
        assert!(outward(), "answers to a container\n{}", snapshot());
        // What nobody published stays closed to members.
        member.sh("ip route add 172.30.0.0/24 via 10.90.0.1");
        assert!(!member.works("ping -n -c 1 -W 1 172.30.0.2"));
        network.end();
    });
}

#[test]
fn failed_forwarding_says_why_and_leaves_nothing_switched_on() {
    inside(|| {
        let _lan = Elsewhere::new("fail", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let network = Network::start(0);
        let wanted = NetworkNeeds {
            offered: nets(&["192.168.77.0/24"]),
            device: "p2pvm0\" nonsense".into(),
            ..network.wanted.clone()
        };
        let report = network.keeper.settle(wanted);
        assert!(
            report
                .forwarding
                .as_deref()
                .is_some_and(|why| why.contains("nft")),
            "{report:?}"
        );
        assert!(!forwards("lan0"));
        network.keeper.settle(network.wanted.clone());
        network.end();
        assert!(!forwards("lan0"));
    });
}

#[test]
fn with_read_only_settings_only_a_forwarding_lan_is_offered() {
    inside(|| {
        device("lan0", "192.168.77.1/24");
        device("lan1", "192.168.78.1/24");
        sh("sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.conf.lan1.forwarding=0");
        // As a container sees them.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        sh(
            "mount --make-rprivate / && mount --bind /proc/sys /proc/sys && mount -o \
                remount,bind,ro /proc/sys",
        );
        assert!(!works("sysctl -qw net.ipv4.conf.lan1.forwarding=1"));
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let rules = sh("nft list table ip p2pvm_p2pvm0");
        assert!(
            rules.contains("masquerade") && !rules.contains("switched"),
            "there was nothing to switch: {rules}"
        );
        assert_eq!(
            network.board.worst(),
            Level::Ok,
            "{:?}",
            network.board.all()
        );
        let report = network.keeper.settle(NetworkNeeds {
            offered: nets(&["192.168.78.0/24"]),
            ..network.wanted.clone()
        });
        let why = report.forwarding.unwrap();
        assert!(
            why.contains("/proc/sys/net/ipv4/conf/lan1/forwarding: Read-only file system"),
            "{why}"
        );
        network.offer(&["192.168.77.0/24"]);
        network.end();
        assert!(forwards("lan0") && !forwards("lan1"));
    });
}
