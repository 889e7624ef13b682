//! A dead path heals by itself, whatever a router remembers or forgets: each cause is played under
//! a TCP stream between two members behind NATs; the path must be direct again within a minute of
//! the cause's end, and something else carry meanwhile.

mod common;

use common::{
    SETTINGS,
    measured::{Measurement, seconds},
    trouble::{forget, judge, nft, nothing, play, router, stale, stream, two_homes},
};
use p2pvm_lab::{
    chain,
    hosts::{Flow, probe},
    lab::Lab,
    sites::Nat,
};
use std::time::{Duration, Instant};

const PAIR: (&str, &str) = ("home", "office");
const NONE: Duration = Duration::ZERO;

fn world(test: &str, home: &str) -> Lab {
    two_homes(test, home, "", SETTINGS)
}

#[test]
fn a_path_is_direct_again_whatever_its_routers_forget_or_become() {
    let mut lab = world("forgets", "nat = 'port-restricted'");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let mut outcomes = Vec::new();
    let flush = |lab: &mut Lab| forget(lab, "home");
    outcomes.push(play(
        &mut lab,
        "the router forgets its connections",
        PAIR,
        (flush, NONE, nothing),
        Some(&talk),
    ));
    let reboot = |lab: &mut Lab| lab.testbed_mut().renat("home", Nat::Restricted).unwrap();
    outcomes.push(play(
        &mut lab,
        "another router with another NAT",
        PAIR,
        (reboot, NONE, nothing),
        Some(&talk),
    ));
    let both = |lab: &mut Lab| {
        lab.testbed_mut().renumber("home").unwrap();
        lab.testbed_mut().renumber("office").unwrap();
    };
    outcomes.push(play(
        &mut lab,
        "both public addresses change",
        PAIR,
        (both, NONE, nothing),
        Some(&talk),
    ));
    let gateway = |lab: &mut Lab| {
        let host = lab.testbed().host("home").unwrap().address.to_string();
        let net = host.rsplit_once('.').unwrap().0.to_owned();
        router(
            lab,
            "home",
            &["ip", "addr", "add", &format!("{net}.253/24"), "dev", "lan"],
        );
        lab.testbed()
            .run(
                "home",
                &[
                    "ip",
                    "route",
                    "replace",
                    "default",
                    "via",
                    &format!("{net}.253"),
                ],
            )
            .unwrap();
        forget(lab, "home");
    };
    outcomes.push(play(
        &mut lab,
        "another default gateway",
        PAIR,
        (gateway, NONE, nothing),
        Some(&talk),
    ));
    let moved = |lab: &mut Lab| {
        let host = lab.testbed().host("home").unwrap().address.to_string();
        let net = host.rsplit_once('.').unwrap().0.to_owned();
        for argv in [
            vec!["ip", "addr", "add", &format!("{net}.99/24"), "dev", "eth0"],
            vec!["ip", "addr", "del", &format!("{host}/24"), "dev", "eth0"],
        ] {
            lab.testbed().run("home", &argv).unwrap();
        }
        let _ = lab.testbed().exec(
            "home",
            &["ip", "addr", "add", &format!("{net}.99/24"), "dev", "eth0"],
        );
        lab.testbed()
            .run(
                "home",
                &[
                    "ip",
                    "route",
                    "replace",
                    "default",
                    "via",
                    &format!("{net}.253"),
                ],
            )
            .unwrap();
    };
    let back = |lab: &mut Lab| {
        let host = lab.testbed().host("home").unwrap().address.to_string();
        let net = host.rsplit_once('.').unwrap().0.to_owned();
        lab.testbed()
            .run(
                "home",
                &["ip", "addr", "add", &format!("{host}/24"), "dev", "eth0"],
            )
            .unwrap();
        lab.testbed()
            .run(
                "home",
                &["ip", "addr", "del", &format!("{net}.99/24"), "dev", "eth0"],
            )
            .unwrap();
        let _ = lab.testbed().exec(
            "home",
            &["ip", "addr", "add", &format!("{host}/24"), "dev", "eth0"],
        );
        lab.testbed()
            .run(
                "home",
                &[
                    "ip",
                    "route",
                    "replace",
                    "default",
                    "via",
                    &format!("{net}.253"),
                ],
            )
            .unwrap();
    };
    outcomes.push(play(
        &mut lab,
        "the address changes and returns",
        PAIR,
        (moved, Duration::from_secs(6), back),
        Some(&talk),
    ));
    talk.end().unwrap();
    let idle = |lab: &mut Lab| {
        lab.testbed_mut().renumber("home").unwrap();
        std::thread::sleep(Duration::from_secs(30));
    };
    outcomes.push(play(
        &mut lab,
        "the public address changes while both are idle",
        PAIR,
        (idle, NONE, nothing),
        None,
    ));
    judge(lab, &outcomes);
}

#[test]
fn a_flow_that_a_router_swallows_is_left_for_another() {
    let mut lab = world("stale", "nat = 'port-restricted'");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let hole = |lab: &mut Lab| stale(lab, "home");
    let all = play(
        &mut lab,
        "every flow was seen before it was translated",
        PAIR,
        (hole, NONE, nothing),
        Some(&talk),
    );
    talk.end().unwrap();
    judge(lab, &[all]);
}

#[test]
fn udp_that_was_blocked_for_three_minutes_is_used_again_within_one() {
    let mut lab = world("blocked", "nat = 'port-restricted'");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let block = "table inet blocked { chain everything { type filter hook forward priority -10; \
        policy accept; meta l4proto udp drop; }; }";
    let cause = |lab: &mut Lab| nft(lab, "home", block);
    let end = |lab: &mut Lab| nft(lab, "home", "delete table inet blocked");
    let lasts = Duration::from_secs(180);
    let whole = play(
        &mut lab,
        "UDP blocked",
        PAIR,
        (cause, lasts, end),
        Some(&talk),
    );
    assert!(
        whole.netcheck.contains("UDP blocked") && !whole.netcheck.contains("\"direct"),
        "{}",
        whole.netcheck
    );
    talk.end().unwrap();
    judge(lab, &[whole]);
}

#[test]
fn a_pair_cut_in_one_or_both_directions_is_soon_direct_again() {
    let mut lab = world("cut", "nat = 'port-restricted'");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let office = lab
        .testbed()
        .plan()
        .public_address(lab.testbed().host("office").unwrap());
    let deaf = format!(
        "table inet deaf {{ chain everything {{ type filter hook forward priority -10; policy \
            accept; \
         iifname wan ip saddr {office} meta l4proto udp drop; }}; }}"
    );
    let cause = |lab: &mut Lab| nft(lab, "home", &deaf);
    let end = |lab: &mut Lab| nft(lab, "home", "delete table inet deaf");
    let one = play(
        &mut lab,
        "one direction of UDP blocked",
        PAIR,
        (cause, Duration::from_secs(45), end),
        Some(&talk),
    );
    let cause = |lab: &mut Lab| lab.testbed().cut("home", "office").unwrap();
    let end = |lab: &mut Lab| lab.testbed().heal("home", "office").unwrap();
    let cut = play(
        &mut lab,
        "cut for two minutes",
        PAIR,
        (cause, Duration::from_secs(120), end),
        Some(&talk),
    );
    talk.end().unwrap();
    judge(lab, &[one, cut]);
}

#[test]
fn a_lost_port_mapping_is_back_within_a_minute() {
    let mut lab = two_homes(
        "unmapped",
        "nat = 'symmetric'\nupnp = true",
        "",
        &SETTINGS.replace("upnp = false", "upnp = true"),
    );
    // The router starts anew: its service knows no mapping any more, and its connections are gone.
    let reboot = |lab: &mut Lab| lab.testbed_mut().renat("home", Nat::Symmetric).unwrap();
    let mapped = play(
        &mut lab,
        "the mapping is lost",
        ("office", "home"),
        (reboot, NONE, nothing),
        None,
    );
    judge(lab, &[mapped]);
}

/// A flow of a NAT has a local port at either end. A member that tries another port of its own just
/// when the first would do again must not take what still comes to the first for a sign that the
/// other carries.
#[test]
fn a_path_whose_far_end_changed_ports_in_vain_is_left_soon() {
    const OUT: &str = "add table ip out; add chain ip out o { type filter hook output priority 0; \
        }; \
                       add rule ip out o oifname eth0 ip protocol udp drop";
    let measurement = Measurement::begin("paths", "make test-slow FIGURES=docs/figures");
    let lab = world("turned", "nat = 'port-restricted'");
    let address = |host: &str| common::address(&lab, host);
    let pings = Flow::pings(
        "ping",
        &probe::ProbeSource::host(&lab, "pub").unwrap(),
        &address("home"),
    )
    .unwrap();
    // The ring's links of the others to it turn too.
    let second = |host: &str| lab.netcheck(host).unwrap().second_port;
    let before = second("pub");
    lab.testbed().run("home", &["nft", OUT]).unwrap();
    lab.wait(
        "the other port of pub",
        Duration::from_secs(60),
        Duration::from_millis(20),
        || Ok(second("pub").filter(|port| Some(*port) != before)),
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("pub", 40)));
    lab.testbed()
        .run("home", &["nft", "delete table ip out"])
        .unwrap();
    let (end, mut longest) = (Instant::now(), Duration::ZERO);
    while end.elapsed() < Duration::from_secs(40) {
        longest = longest.max(pings.seen().last.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        longest < Duration::from_secs(6),
        "{longest:?}\n{}\n{}",
        lab.log_tail("pub", 40),
        lab.log_tail("home", 40)
    );
    let path = lab.ping("pub", "home", 3, "200ms").unwrap().path;
    assert!(path.starts_with("direct"), "{path}");
    lab.down().unwrap();
    let silence = seconds("silence", "longest silence of pings", &[longest]);
    let case = "the far end turned to another port in vain (pings, no stream)";
    measurement.end(&[silence.of(case).digits(1).aim("≤ 6 s")]);
}
