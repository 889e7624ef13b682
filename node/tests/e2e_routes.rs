//! What p2pvm changes in a host's kernel: routes that never lead its own packets astray, forwarding
//! beside other forwarders and firewalls, put back when somebody removes it, and gone without a
//! trace afterwards.

mod common;

use common::{Lan, SETTINGS, lab, network, public_sites, refused, run, until};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    time::{Duration, Instant},
};

/// What somebody removed, or another member offers, is there within this.
const SOON: Duration = Duration::from_secs(20);

fn pings(lab: &Lab, from: &str, to: &str) -> bool {
    lab.testbed()
        .exec(from, &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", to])
        .unwrap()
        .status
        .success()
}

/// What a host makes of the offer of `subnet` by `by`.
fn route(lab: &Lab, host: &str, subnet: &str, by: &str) -> Option<(bool, String)> {
    let mut listed = lab.routes(host).unwrap().into_iter();
    let found = listed.find(|route| route.subnet == subnet && route.by == by)?;
    Some((found.used, found.note))
}

/// All that could be left behind on a host.
fn snapshot(lab: &Lab, host: &str) -> String {
    run(
        lab,
        host,
        "ip -d addr | grep -Ev 'valid_lft|fe80' | sed 's/ tentative//'; ip route show table all | \
            grep -v fe80; ip rule; \
         nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//' | grep -v fe80; \
         for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding \
         /proc/sys/net/ipv4/conf/*/rp_filter; \
         do echo $f $(cat $f); done",
    )
}

/// Packets that the host has sent into its interface so far.
fn packets(lab: &Lab, host: &str) -> u64 {
    run(lab, host, "cat /sys/class/net/p2pvm0/statistics/tx_packets")
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_member_offering_its_own_network_stays_reachable() {
    for hosts in [&["a", "b"][..], &["a", "b", "c", "d"]] {
        let lab = lab(
            &format!("inside{}", hosts.len()),
            &public_sites(hosts, 10.0),
        );
        network(&lab, hosts);
        let std::net::IpAddr::V4(address) = lab.testbed().host("b").unwrap().address else {
            panic!("an IPv4 testbed")
        };
        let [a, b, c, _] = address.octets();
        let subnet = format!("{a}.{b}.{c}.0/24");
        lab.p2pvm("b", &["route", "offer", &subnet]).unwrap();
        for host in hosts.iter().filter(|host| **host != "b") {
            lab.p2pvm(host, &["route", "accept"]).unwrap();
            until(&lab, "the offer to be used", SOON, || {
                route(&lab, host, &subnet, "b").is_some_and(|(used, _)| used)
            });
            let way = run(&lab, host, &format!("ip route get {address}"));
            assert!(
                way.contains("p2pvm0"),
                "others' packets go into the network: {way}"
            );
        }
        // Links that are there already go on; new ones come about.
        std::thread::sleep(Duration::from_secs(3));
        let before = packets(&lab, "a");
        let began = Instant::now();
        let pinged = lab
            .ping("a", "b", 5, "1s")
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 30)));
        assert!(pinged.rtts_ms.len() >= 4, "{pinged:?}");
        assert!(pinged.path.starts_with("direct"), "{pinged:?}");
        let stormed = packets(&lab, "a") - before;
        assert!(
            stormed < 1000,
            "{stormed} packets in {:?} on p2pvm0",
            began.elapsed()
        );
        lab.p2pvm("a", &["down"]).unwrap();
        lab.start("a").unwrap();
        until(&lab, "a new daemon to reach it", SOON, || {
            lab.ping("a", "b", 1, "1s")
                .is_ok_and(|p| p.path.starts_with("direct"))
        });
        lab.p2pvm("b", &["route", "withdraw", &subnet]).unwrap();
        for host in hosts.iter().filter(|host| **host != "b") {
            until(&lab, "the withdrawal to be heard", SOON, || {
                route(&lab, host, &subnet, "b").is_none()
            });
            assert!(!run(&lab, host, &format!("ip route get {address}")).contains("p2pvm0"));
        }
        lab.down().unwrap();
    }
}

#[test]
fn after_down_and_after_a_kill_a_host_is_as_before() {
    let lab = lab("trace", &public_sites(&["a", "b"], 10.0));
    let _lan = Lan::new(&lab, "b");
    run(
        &lab,
        "b",
        "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j \
            DOCKER-USER",
    );
    network(&lab, &["a", "b"]);
    lab.p2pvm("b", &["down"]).unwrap();
    let before = snapshot(&lab, "b");
    lab.start("b").unwrap();
    lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    lab.p2pvm("b", &["route", "accept"]).unwrap();
    run(
        &lab,
        "a",
        "ip link add lan9 type veth peer name lan9x && ip addr add 192.168.99.1/24 dev lan9 && ip \
            link set lan9 up && ip link set lan9x up",
    );
    lab.p2pvm("a", &["route", "offer", "192.168.99.0/24"])
        .unwrap();
    lab.p2pvm("a", &["route", "accept"]).unwrap();
    until(&lab, "both to use the other's LAN", SOON, || {
        pings(&lab, "a", "192.168.77.9")
            && route(&lab, "b", "192.168.99.0/24", "a").is_some_and(|(used, _)| used)
    });
    let changed = |what: &str| snapshot(&lab, "b").contains(what);
    assert!(
        changed("p2pvm p2pvm0 in") && changed("proto 112") && changed("p2pvm_p2pvm0"),
        "{}",
        snapshot(&lab, "b")
    );

    // What somebody removes is put back, one line in the log for each event.
    for removal in [
        "nft flush ruleset; iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; \
            iptables-nft -A FORWARD -j DOCKER-USER",
        "ip rule del pref 5301",
        "ip route flush table $(ip rule | sed -n 's/^5301:.*lookup //p')",
        "sysctl -qw net.ipv4.conf.lan0.forwarding=0",
    ] {
        run(&lab, "b", removal);
        let way = || run(&lab, "b", "ip route get 192.168.99.7").contains("p2pvm0");
        until(&lab, removal, Duration::from_secs(10), || {
            way() && pings(&lab, "a", "192.168.77.9")
        });
    }
    let log = lab.log_tail("b", 200);
    assert!(
        log.matches("put back what was removed").count() <= 6
            && log.contains("put back what was removed"),
        "{log}"
    );

    lab.p2pvm("b", &["down"]).unwrap();
    let after = snapshot(&lab, "b");
    let only = |a: &str, b: &str| {
        a.lines()
            .filter(|line| !b.contains(line))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        after,
        before,
        "after an orderly end: gone {:?}, new {:?}",
        only(&before, &after),
        only(&after, &before)
    );
    lab.start("b").unwrap();
    until(&lab, "the LAN to be reached again", SOON, || {
        pings(&lab, "a", "192.168.77.9")
    });
    let pid = lab.kill_daemon("b").unwrap();
    let began = Instant::now();
    while snapshot(&lab, "b") != before {
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{}\n!=\n{before}\n{}",
            snapshot(&lab, "b"),
            lab.log_tail("b", 5)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!lab.dir("b").unwrap().join("undo.json").exists());
    let guards = |process: &str| {
        let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let line = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        comm.trim() == "p2pvm-guardian" && line.contains(&format!("--of\0{pid}\0"))
    };
    let any = || {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|entry| guards(&entry.file_name().to_string_lossy()))
    };
    until(&lab, "the guardian to end", Duration::from_secs(5), || {
        !any()
    });
    lab.down().unwrap();
}

#[test]
fn the_guardian_holds_no_file_and_survives_a_terminal_signal() {
    let lab = lab("guardian", &public_sites(&["a"], 10.0));
    lab.found("a", "lab").unwrap();
    let pid: i32 = fs::read_to_string(lab.dir("a").unwrap().join("daemon.pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let is_guardian = |child: &&str| {
        fs::read_to_string(format!("/proc/{child}/cmdline"))
            .is_ok_and(|line| line.contains("guardian"))
    };
    let all: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    let guardian: i32 = all
        .iter()
        .map(String::as_str)
        .find(is_guardian)
        .unwrap_or_else(|| panic!("{children} {all:?}"))
        .parse()
        .unwrap();
    let held: Vec<String> = fs::read_dir(format!("/proc/{guardian}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let allowed = |target: &String| target == "/dev/null" || target.starts_with("pipe:");
    assert!(held.iter().all(allowed), "{held:?}");
    // A Ctrl-C goes to the daemon's process group, and the guardian is not in it.
    assert_ne!(
        nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(guardian)))
            .unwrap()
            .as_raw(),
        pid
    );
    lab.p2pvm("a", &["down"]).unwrap();
    assert!(
        !fs::exists(format!("/proc/{guardian}/fd/0")).unwrap_or(false),
        "it ends with the daemon"
    );
    lab.down().unwrap();
}

#[test]
fn a_lan_behind_other_firewalls_is_reached_or_the_chain_is_named() {
    let lab = lab("walls", &public_sites(&["a", "b"], 10.0));
    network(&lab, &["a", "b"]);
    let _lan = Lan::new(&lab, "b");
    run(
        &lab,
        "b",
        "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i docker0 -j ACCEPT; iptables-nft \
            -P INPUT DROP; \
                    iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -A INPUT -i eth0 -j ACCEPT",
    );
    let address = common::address(&lab, "b");
    until(&lab, "b itself to be reached", SOON, || {
        pings(&lab, "a", &address)
    });
    lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    lab.p2pvm("a", &["route", "accept"]).unwrap();
    until(
        &lab,
        "the LAN to be reached through Docker's chain",
        SOON,
        || pings(&lab, "a", "192.168.77.9"),
    );
    // Somebody else's own table is left alone and named.
    run(
        &lab,
        "b",
        "nft add table inet mine; nft add chain inet mine through '{ type filter hook forward \
            priority 0; policy drop; }'",
    );
    let note = || route(&lab, "b", "192.168.77.0/24", "b").unwrap().1;
    until(&lab, "the chain to be named", SOON, || {
        note().contains("chain through of table inet mine")
    });
    assert!(!pings(&lab, "a", "192.168.77.9"));
    let note = note();
    run(
        &lab,
        "b",
        note.split_once("subnets: ")
            .expect("the command stands behind")
            .1,
    );
    until(&lab, "the command to help", SOON, || {
        pings(&lab, "a", "192.168.77.9")
    });
    lab.p2pvm("b", &["down"]).unwrap();
    assert!(
        !run(&lab, "b", "iptables-nft -S").contains("p2pvm"),
        "what was opened is closed"
    );
    lab.down().unwrap();
}

#[test]
fn the_second_router_of_a_lan_is_used_when_the_first_dies() {
    let lab = lab("failover", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a", "b", "c"]);
    let _lans = ["b", "c"].map(|host| Lan::new(&lab, host));
    lab.p2pvm("a", &["route", "accept"]).unwrap();
    lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    lab.p2pvm("c", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    let used = |by: &str| route(&lab, "a", "192.168.77.0/24", by).is_some_and(|(used, _)| used);
    until(&lab, "the elder to be used", SOON, || {
        used("b") && !used("c") && pings(&lab, "a", "192.168.77.9")
    });
    lab.kill_daemon("b").unwrap();
    until(&lab, "the other to be used", SOON, || {
        used("c") && pings(&lab, "a", "192.168.77.9")
    });
    lab.start("b").unwrap();
    until(
        &lab,
        "the elder to be used again",
        Duration::from_secs(40),
        || used("b") && pings(&lab, "a", "192.168.77.9"),
    );

    // A part of the LAN that comes up at home goes its own way; the rest stays.
    run(
        &lab,
        "a",
        "ip link add d0 type veth peer name d1 && ip addr add 192.168.77.200/25 dev d0 && ip link \
            set d0 up && ip link set d1 up",
    );
    let note = || route(&lab, "a", "192.168.77.0/24", "b").unwrap();
    until(&lab, "the exception to be said", SOON, || {
        note().0 && note().1.contains("except for 192.168.77.128/25")
    });
    assert!(
        run(&lab, "a", "ip route get 192.168.77.9").contains("p2pvm0")
            && run(&lab, "a", "ip route get 192.168.77.201").contains("d0")
    );
    assert!(pings(&lab, "a", "192.168.77.9"));
    lab.down().unwrap();
}

#[test]
fn of_two_networks_accepting_one_lan_the_answering_one_leads() {
    const OFFERED: &str = "192.168.77.0/24";
    let lab = lab("sharing", &public_sites(&["m", "a", "b"], 10.0));
    network(&lab, &["m", "a"]);
    let _lans = ["a", "b"].map(|host| Lan::new(&lab, host));
    let other = lab.dir("m").unwrap().join("other");
    let other_dir = other.to_str().unwrap();
    let of_other = |words: &[&str]| {
        lab.p2pvm("m", &[&["--dir", other_dir], words].concat())
            .unwrap()
    };
    of_other(&["init", "--network", "two"]);
    let settings = format!("{SETTINGS}port = 5001\nlink_port = 5002\ndevice = \"two0\"\n");
    fs::write(other.join("node.toml"), settings).unwrap();
    of_other(&["up", "--detach"]);
    lab.join("b", of_other(&["invite"]).trim()).unwrap();
    for router in ["a", "b"] {
        lab.p2pvm(router, &["route", "offer", OFFERED]).unwrap();
    }
    lab.p2pvm("m", &["route", "accept"]).unwrap();
    of_other(&["route", "accept"]);
    let leads = |device: &str| {
        let way = run(&lab, "m", "ip route get 192.168.77.9");
        way.contains(&format!("dev {device} ")) && pings(&lab, "m", "192.168.77.9")
    };
    let lists = |words: &str| {
        let listed = [
            lab.p2pvm("m", &["route", "list"]).unwrap(),
            of_other(&["route", "list"]),
        ];
        listed.iter().any(|list| list.contains(words))
    };
    until(&lab, "the first to lead", SOON, || leads("p2pvm0"));
    until(&lab, "both to say so", SOON, || {
        lists("behind two0 accepts it too") && lists("behind p2pvm0 leads there")
    });
    let (_, page, _) = lab.try_p2pvm("m", &["doctor"]).unwrap();
    assert!(
        page.contains(&format!("route accept --off {OFFERED}")),
        "{page}"
    );

    lab.kill_daemon("a").unwrap();
    until(&lab, "the other to lead", SOON, || leads("two0"));
    lab.start("a").unwrap();
    until(&lab, "the first's router to answer", SOON, || {
        lists("as it did before")
    });
    assert!(leads("two0"), "what is used stays in use");
    lab.kill_daemon("b").unwrap();
    until(&lab, "the first to lead again", SOON, || leads("p2pvm0"));

    lab.start("b").unwrap();
    lab.p2pvm("m", &["route", "accept", "--off", OFFERED])
        .unwrap();
    until(
        &lab,
        "the one that does not refuse it to lead",
        SOON,
        || leads("two0"),
    );
    until(&lab, "nothing to be shared any more", SOON, || {
        !lists("accepts it too")
    });
    of_other(&["down"]);
    lab.down().unwrap();
}

#[test]
fn a_machine_that_cannot_forward_says_why_and_publishes_nothing() {
    let lab = lab("cannot", &public_sites(&["a", "b"], 10.0));
    network(&lab, &["a", "b"]);
    let _lan = Lan::new(&lab, "b");
    let program = env!("CARGO_BIN_EXE_p2pvm");
    for (hidden, cause) in [
        (
            "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys",
            "Read-only file system",
        ),
        (
            "for d in /usr/sbin /sbin /usr/bin; do test -e $d/nft && mount --bind /dev/null \
                $d/nft; done; true",
            "nft",
        ),
    ] {
        lab.p2pvm("b", &["down"]).unwrap();
        run(&lab, "b", &format!("{hidden} && {program} up --detach"));
        let said = refused(&lab, "b", &["route", "offer", "192.168.77.0/24"], 5);
        assert!(
            said.contains(cause) && said.contains("nothing has been offered"),
            "{said}"
        );
        assert!(
            route(&lab, "b", "192.168.77.0/24", "b").is_none(),
            "nothing half-done stays"
        );
        std::thread::sleep(Duration::from_secs(1));
        assert!(
            route(&lab, "a", "192.168.77.0/24", "b").is_none(),
            "nobody else was told"
        );
    }
    lab.down().unwrap();
}

#[test]
fn a_machine_that_forwards_already_offers_with_read_only_settings() {
    let lab = lab("already", &public_sites(&["a", "b"], 10.0));
    network(&lab, &["a", "b"]);
    let _lan = Lan::new(&lab, "b");
    let program = env!("CARGO_BIN_EXE_p2pvm");
    lab.p2pvm("b", &["down"]).unwrap();
    run(&lab, "b", "sysctl -qw net.ipv4.ip_forward=1");
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";
    run(&lab, "b", &format!("{read_only} && {program} up --detach"));
    lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    lab.p2pvm("a", &["route", "accept"]).unwrap();
    until(&lab, "a to reach the LAN", SOON, || {
        pings(&lab, "a", "192.168.77.9")
    });
    lab.p2pvm("b", &["down"]).unwrap();
    assert!(!run(&lab, "b", "nft list ruleset").contains("p2pvm"));
    lab.down().unwrap();
}

#[test]
fn a_foreign_interface_is_not_taken_and_a_bad_name_refused() {
    let lab = lab("device", &public_sites(&["a"], 10.0));
    lab.p2pvm("a", &["init", "--network", "lab"]).unwrap();
    run(&lab, "a", "ip link add p2pvm0 type veth peer name other");
    let said = refused(&lab, "a", &["up"], 5);
    assert!(
        said.contains("p2pvm0")
            && said.contains("another program (veth)")
            && said.contains("node.toml"),
        "{said}"
    );
    run(&lab, "a", "ip link del p2pvm0");
    lab.configure("a", &format!("{SETTINGS}device = \"%d\"\n"))
        .unwrap();
    assert!(
        refused(&lab, "a", &["up"], 2)
            .contains("device '%d' cannot be an interface's name: it holds '%'")
    );
    lab.configure("a", SETTINGS).unwrap();
    lab.start("a").unwrap();
    lab.down().unwrap();
}
