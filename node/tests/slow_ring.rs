//! The ring in the running daemon: members that have no connection with each other, on the emulated
//! wide area.

mod common;

use common::{
    SETTINGS, lab,
    measured::{Measurement, seconds},
    public_sites,
};
use p2pvm_api::{Cluster, Peer, Pong, Traced};
use p2pvm_lab::{chain, figures::Figure, lab::Lab};
use std::time::{Duration, Instant};

/// So many that three nearest on each side and a far one leave some without any connection.
const HOSTS: [&str; 11] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
/// The control plane's port.
const CONTROL: u16 = 4001;

/// Members in one ring. All but the first two refuse each other's control connections, so that they
/// know each other by name only.
fn ring(test: &str) -> Lab {
    let lab = lab(test, &public_sites(&HOSTS, 20.0));
    let address = |host: &str| lab.testbed().host(host).unwrap().address;
    for host in &HOSTS {
        lab.configure(host, &format!("{SETTINGS}full_mesh = 2\n[ring]\nfar = 1\n"))
            .unwrap();
    }
    let strangers = &HOSTS[2..];
    for host in strangers {
        let others: Vec<String> = strangers
            .iter()
            .filter(|other| *other != host)
            .map(|other| address(other).to_string())
            .collect();
        let others = others.join(", ");
        let rules = format!(
            "table inet strangers {{ chain inward {{ type filter hook input priority 0; \
             ip saddr {{ {others} }} udp dport {CONTROL} drop; ip saddr {{ {others} }} tcp dport \
             {CONTROL} drop; \
             ip saddr {{ {others} }} udp sport {CONTROL} drop; ip saddr {{ {others} }} tcp sport \
             {CONTROL} drop; }}; }}"
        );
        lab.testbed().run(host, &["nft", &rules]).unwrap();
    }
    lab.found(HOSTS[0], "lab").unwrap();
    let invite = lab.invite(HOSTS[0], HOSTS.len() as u32).unwrap();
    for host in &HOSTS[1..] {
        lab.join(host, &invite)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 40)));
    }
    for host in HOSTS {
        lab.wait(
            &format!("{host} to be in the ring"),
            Duration::from_secs(60),
            Duration::from_millis(500),
            || {
                let ring = lab.status(host)?.ring;
                Ok((ring.joined && ring.near >= 4).then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    }
    // Edges of the joining that nobody needs go after ten seconds.
    std::thread::sleep(Duration::from_secs(14));
    lab
}

/// Begins a test's measurement for docs/scale.md.
fn measurement() -> Measurement {
    Measurement::begin("ring", "make test-slow FIGURES=docs/figures")
}

/// What the first pings between two members met.
fn first_figures(hops: usize, pongs: &[(String, Option<f64>)]) -> [Figure; 4] {
    let is_direct = |pong: &&(String, Option<f64>)| pong.0.starts_with("direct");
    let trips = |pong: &(String, Option<f64>)| pong.1;
    let (direct, over): (Vec<_>, Vec<_>) = pongs.iter().partition(is_direct);
    let count = "pings before the path is direct, one each 200 ms";
    [
        Figure::new("hops", "hops of the first path", "", [hops as f64]),
        Figure::new("pings-over", count, "", [over.len() as f64]),
        Figure::new(
            "trip-over",
            "their round trips",
            "ms",
            over.into_iter().map(trips),
        )
        .digits(1),
        Figure::new(
            "trip-direct",
            "direct round trips",
            "ms",
            direct.into_iter().map(trips),
        ),
    ]
}

/// How long the ring took to heal.
fn heal_figures(around: Duration, merged: Duration) -> [Figure; 2] {
    let death = "a member's death to a path around it";
    let heal = "end of a partition to one ring that reaches all";
    [
        seconds("around", death, &[around]).digits(1),
        seconds("merged", heal, &[merged]).digits(1),
    ]
}

/// Two members without any connection.
fn strangers(lab: &Lab) -> (String, String) {
    for from in &HOSTS[2..] {
        let unmet = |p: &Peer| {
            HOSTS[2..].contains(&p.name.as_str())
                && !p.connected
                && p.path.is_none()
                && p.ring.is_none()
        };
        if let Some(peer) = lab.peers(from).unwrap().into_iter().find(unmet) {
            return ((*from).to_owned(), peer.name);
        }
    }
    panic!("all members know each other");
}

/// The pongs of a ping: path and round trip in milliseconds.
fn pongs(lab: &Lab, from: &str, to: &str, count: u32) -> Vec<(String, Option<f64>)> {
    let said = lab
        .p2pvm(
            from,
            &[
                "--json",
                "ping",
                to,
                "--count",
                &count.to_string(),
                "--interval",
                "200ms",
            ],
        )
        .unwrap();
    // The last line is the summary, and no pong.
    said.lines()
        .filter_map(|line| serde_json::from_str::<Pong>(line).ok())
        .map(|pong| (pong.path, pong.rtt_ms))
        .collect()
}

/// A member finds one that it has not met by the network's records: by address, and by a name that
/// it has not heard.
fn found_by_the_records(lab: &Lab, from: &str, to: &str) {
    let address = common::address(lab, to);
    let traced: Traced = lab.json(from, &["trace", &address]).unwrap();
    assert!(
        traced.reached && traced.hops.last().unwrap().name == to,
        "{traced:?}"
    );
    let unheard = HOSTS.iter().find_map(|host| {
        let peers = lab.peers(host).unwrap();
        let names: Vec<&str> = peers.iter().map(|p| p.name.as_str()).collect();
        HOSTS
            .iter()
            .find(|other| *other != host && !names.contains(other))
            .map(|other| (*host, *other))
    });
    eprintln!("a name that a member has not heard: {unheard:?}");
    if let Some((from, to)) = unheard {
        let traced: Traced = lab.json(from, &["trace", to]).unwrap();
        assert!(traced.reached, "{traced:?}");
    }
    let (code, said, failure) = lab.try_p2pvm(from, &["--json", "trace", "nobody"]).unwrap();
    assert!(code == 3, "a name that nobody has: {code} {said} {failure}");
}

#[test]
fn the_first_ping_to_a_stranger_goes_over_the_ring_then_directly() {
    let measurement = measurement();
    let lab = ring("ring-first");
    let (from, to) = strangers(&lab);
    let traced: Traced = lab.json(&from, &["trace", &to]).unwrap();
    let hops = &traced.hops;
    eprintln!("trace from {from} to {to}: {traced:?}");
    assert!(
        traced.reached && hops.len() >= 2 && hops.last().unwrap().name == to,
        "{traced:?}"
    );
    assert!(
        hops.iter()
            .all(|hop| hop.rtt_ms.is_some_and(|ms| ms > 10.0)),
        "{traced:?}"
    );
    found_by_the_records(&lab, &from, &to);
    let began = Instant::now();
    let pongs = pongs(&lab, &from, &to, 15);
    eprintln!("{:?} for the command; {pongs:?}", began.elapsed());
    assert!(
        pongs.iter().all(|(_, rtt)| rtt.is_some()),
        "no probe is lost: {pongs:?}"
    );
    assert!(pongs[0].0.starts_with("over the ring, "), "{pongs:?}");
    assert!(
        pongs.last().unwrap().0.starts_with("direct"),
        "{pongs:?}\n{}",
        lab.log_tail(&from, 40)
    );
    // Questions to all go over control connections of neighbours: where those are refused, the
    // answer names the missing members.
    let all = || lab.json::<Cluster>(&to, &["peers", "--all"]);
    let cluster = all().unwrap();
    assert!(
        !cluster.silent.is_empty() && cluster.members.len() < HOSTS.len(),
        "{cluster:?}"
    );
    for host in &HOSTS[2..] {
        lab.testbed()
            .run(host, &["nft", "delete table inet strangers"])
            .unwrap();
    }
    lab.wait(
        "an answer of every member, once",
        Duration::from_secs(90),
        Duration::from_secs(1),
        || {
            let cluster = all()?;
            let names: Vec<&str> = cluster.members.iter().map(|m| m.name.as_str()).collect();
            Ok((names == HOSTS && cluster.load.members == HOSTS.len() as u64).then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{:?}", chain(&e), all()));
    let page = lab.p2pvm(&to, &["metrics", "--all"]).unwrap();
    for host in &HOSTS {
        let line = format!("p2pvm_ring_joined{{member=\"{host}\"}} 1");
        assert!(page.lines().any(|l| l == line), "{host} is missing: {page}");
    }
    let text = lab.p2pvm(&from, &["trace", &to]).unwrap();
    assert!(text.lines().any(|line| line.contains(&to)), "{text}");
    lab.down().unwrap();
    measurement.end(&first_figures(traced.hops.len(), &pongs));
}

#[test]
fn a_dead_member_is_routed_around_and_two_rings_rejoin() {
    let measurement = measurement();
    let lab = ring("ring-heal");
    let (from, to) = strangers(&lab);
    let traced: Traced = lab.json(&from, &["trace", &to]).unwrap();
    let middle = traced.hops[0].name.clone();
    assert_ne!(middle, to);
    // The founder holds a control connection with everyone: it stays.
    let victim = if middle == HOSTS[0] {
        HOSTS[1].to_owned()
    } else {
        middle
    };
    let id = |host: &&str| lab.status(host).unwrap().member.to_string();
    let ids: std::collections::HashMap<&str, String> =
        HOSTS.iter().map(|host| (*host, id(host))).collect();
    lab.testbed().kill(&victim).unwrap();
    let died = Instant::now();
    lab.wait(
        "a path around the dead member",
        Duration::from_secs(40),
        Duration::from_millis(300),
        || {
            let (code, said, _) = lab.try_p2pvm(&from, &["--json", "trace", &to])?;
            Ok((code == 0 && !said.contains(&format!("\"{victim}\""))).then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(&from, 60)));
    let around = died.elapsed();

    let living: Vec<&str> = HOSTS.into_iter().filter(|host| *host != victim).collect();
    let (one, other) = living.split_at(living.len() / 2);
    let across = |action: &dyn Fn(&str, &str)| {
        one.iter()
            .for_each(|a| other.iter().for_each(|b| action(a, b)))
    };
    across(&|a, b| lab.testbed().cut(a, b).unwrap());
    // By id: a member knows no name of one that it has never met.
    let reached = |a: &str, b: &str| {
        lab.try_p2pvm(a, &["--json", "trace", &ids[b]])
            .is_ok_and(|(code, ..)| code == 0)
    };
    lab.wait(
        "two rings",
        Duration::from_secs(90),
        Duration::from_secs(1),
        || {
            let within =
                reached(one[0], one[one.len() - 1]) && reached(other[0], other[other.len() - 1]);
            Ok((within && !reached(one[0], other[0])).then_some(()))
        },
    )
    .unwrap();
    across(&|a, b| lab.testbed().heal(a, b).unwrap());
    let healed = Instant::now();
    for a in one {
        for b in other {
            lab.wait(
                &format!("{a} to reach {b} over the ring"),
                Duration::from_secs(150),
                Duration::from_secs(1),
                || Ok((reached(a, b) && reached(b, a)).then_some(())),
            )
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(a, 60)));
        }
    }
    let merged = healed.elapsed();
    lab.down().unwrap();
    measurement.end(&heal_figures(around, merged));
}
