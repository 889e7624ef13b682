//! A dead path heals by itself when the way itself becomes another: a link carries less, another
//! router stands before the host, a carrier gives out other addresses, the router starts anew, the
//! host sleeps. As in `slow_paths`: a TCP stream goes on, the path is direct again within a minute
//! of the cause's end, and `netcheck` says what is so.

mod common;

use common::{
    SETTINGS,
    trouble::{
        CARRIED_AGAIN, forget, judge, keep, nft, nothing, play, play_total, router, stream,
        stream_of, two_homes,
    },
};
use p2pvm_lab::{
    chain,
    lab::Lab,
    sites::{Nat, Properties},
};
use std::{process::Command, time::Duration};

const PAIR: (&str, &str) = ("home", "office");
const NONE: Duration = Duration::ZERO;
/// What is found out about a NAT, and told to others, is true again within this.
const TRUE_AGAIN: Duration = Duration::from_secs(60);

fn world(test: &str, home: &str, more: &str) -> Lab {
    two_homes(test, home, more, SETTINGS)
}

/// `netcheck` on `home` shows this address as the one that others see, and the path to `office` as
/// direct.
fn tells_the_truth(lab: &Lab, case: &str, seen_as: &str) {
    lab.wait(
        &format!("{case}: netcheck to say {seen_as}"),
        TRUE_AGAIN,
        Duration::from_millis(500),
        || {
            let page = lab.netcheck("home")?;
            let office = page.members.iter().find(|m| m.name == "office");
            let path = office.and_then(|office| office.path.as_deref());
            let is_true = page
                .reflexive
                .is_some_and(|seen| seen.starts_with(&format!("{seen_as}:")))
                && path.is_some_and(|path| path.starts_with("direct"));
            Ok(is_true.then_some(()))
        },
    )
    .unwrap_or_else(|e| {
        panic!(
            "{}\n{:?}\n{}",
            chain(&e),
            lab.netcheck("home"),
            lab.log_tail("home", 60)
        )
    });
}

fn public_of(lab: &Lab, site: &str) -> String {
    lab.testbed()
        .plan()
        .sites
        .iter()
        .find(|planned| planned.name == site)
        .expect("a site")
        .public
        .to_string()
}

#[test]
fn a_link_that_silently_carries_less_than_before_stops_no_stream() {
    let mut lab = world("shrinks", "nat = 'port-restricted'", "");
    // Messages that fill packets: small ones would notice nothing.
    let talk = stream_of(&lab, PAIR.0, PAIR.1, 64 << 10);
    let mut outcomes = Vec::new();
    for (mtu, black_hole) in [(1400, true), (1280, true), (1400, false), (1280, false)] {
        let shaped = |lab: &mut Lab, mtu: Option<u16>| {
            let properties = Properties {
                rtt_ms: Some(30.0),
                mbit: Some(500.0),
                mtu,
                black_hole: Some(black_hole),
                ..Properties::default()
            };
            lab.testbed().reshape("home", "office", properties).unwrap();
        };
        let case = format!(
            "an MTU of {mtu}, {}",
            if black_hole {
                "a black hole"
            } else {
                "with ICMP"
            }
        );
        let shrink = |lab: &mut Lab| shaped(lab, Some(mtu));
        let grow = |lab: &mut Lab| shaped(lab, None);
        let outcome = play(
            &mut lab,
            &case,
            PAIR,
            (shrink, Duration::from_secs(40), grow),
            Some(&talk),
        );
        assert!(
            outcome.netcheck.contains("direct"),
            "{case}: {}",
            outcome.netcheck
        );
        assert!(
            outcome.paths.iter().all(|(_, path)| path == "direct"),
            "{case}: {:?}",
            outcome.paths
        );
        outcomes.push(outcome);
    }
    talk.end().unwrap();
    judge(lab, &outcomes);
}

/// Gives home's LAN a second router, `.254`: the one of another site, with that one's NAT and
/// public address. Answers the LAN's first three octets.
fn second_router(lab: &Lab) -> String {
    let site = |name: &str| {
        lab.testbed()
            .plan()
            .sites
            .iter()
            .find(|planned| planned.name == name)
            .expect("a site")
            .clone()
    };
    let (home, spare) = (site("home"), site("spare"));
    let net = home
        .gateway
        .to_string()
        .rsplit_once('.')
        .expect("an address")
        .0
        .to_owned();
    let script = format!(
        "ip link add second netns {h} type veth peer name inside netns {s} && ip -n {h} link set \
            second master lan up && \
         ip -n {s} addr add {net}.254/24 dev inside && ip -n {s} link set inside up",
        h = home.namespace,
        s = spare.namespace
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    net
}

/// A router that passes nothing to the provider and nothing from it; its LAN is a switch, which
/// goes on.
const DEAD: &str = "table inet dead { chain everything { type filter hook forward priority -10; \
                    iifname wan drop; oifname wan drop; }; }";

#[test]
fn another_router_with_another_nat_is_followed_whichever_comes_first() {
    let mut lab = world(
        "routers",
        "nat = 'port-restricted'",
        "[[site]]\nname = 'spare'\nnat = 'restricted'",
    );
    let net = second_router(&lab);
    let (first, second) = (public_of(&lab, "home"), public_of(&lab, "spare"));
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let route = |lab: &Lab, last: u8| {
        lab.testbed()
            .run(
                "home",
                &[
                    "ip",
                    "route",
                    "replace",
                    "default",
                    "via",
                    &format!("{net}.{last}"),
                ],
            )
            .unwrap();
    };
    let mut outcomes = Vec::new();
    let new_first = |lab: &mut Lab| {
        route(lab, 254);
        nft(lab, "home", DEAD);
    };
    outcomes.push(play(
        &mut lab,
        "the new router first",
        PAIR,
        (new_first, NONE, nothing),
        Some(&talk),
    ));
    tells_the_truth(&lab, "the new router first", &second);
    let old_first = |lab: &mut Lab| nft(lab, "spare", DEAD);
    let then_new = |lab: &mut Lab| {
        nft(lab, "home", "delete table inet dead");
        forget(lab, "home");
        route(lab, 1);
    };
    outcomes.push(play_total(
        &mut lab,
        "the old router dies first",
        PAIR,
        (old_first, Duration::from_secs(10), then_new),
        &talk,
    ));
    tells_the_truth(&lab, "the old router dies first", &first);
    // The address stays, the machine that has it does not; it says so as routers that stand in for
    // each other do.
    let taken_over = |lab: &mut Lab| {
        nft(lab, "spare", "delete table inet dead");
        forget(lab, "spare");
        router(
            lab,
            "home",
            &["ip", "addr", "del", &format!("{net}.1/24"), "dev", "lan"],
        );
        router(
            lab,
            "spare",
            &["ip", "addr", "add", &format!("{net}.1/24"), "dev", "inside"],
        );
        // More than once, as VRRP's masters do (RFC 5798): the LAN's switch may lose one.
        let announced = format!("busybox arping -q -U -c 3 -I inside {net}.1 || true");
        router(lab, "spare", &["sh", "-c", &announced]);
    };
    outcomes.push(play(
        &mut lab,
        "the same address from another router",
        PAIR,
        (taken_over, NONE, nothing),
        Some(&talk),
    ));
    tells_the_truth(&lab, "the same address from another router", &second);
    talk.end().unwrap();
    judge(lab, &outcomes);
}

#[test]
fn a_carrier_that_gives_another_address_every_twenty_seconds_ends_no_stream() {
    let mut lab = world(
        "cgnat",
        "nat = 'port-restricted'\ncarrier = 'restricted'",
        "",
    );
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let mut longest = NONE;
    let changes = |lab: &mut Lab| {
        for _ in 0..9 {
            lab.testbed_mut().renumber("home").unwrap();
            std::thread::sleep(Duration::from_secs(20));
            let silence = talk.silence();
            println!(
                "the carrier's address is {}: silent for {:.1} s",
                public_of(lab, "home"),
                silence.as_secs_f64()
            );
            longest = longest.max(silence);
        }
    };
    let mut outcome = play(
        &mut lab,
        "the carrier's address changes each 20 s",
        PAIR,
        (changes, NONE, nothing),
        Some(&talk),
    );
    // The closure took the silences of each change: `play` saw only what came after the last.
    outcome.silence = outcome.silence.max(Some(longest));
    keep(&outcome);
    assert!(
        longest < CARRIED_AGAIN,
        "silent for {longest:?}\n{}",
        lab.log_tail("home", 80)
    );
    let public = public_of(&lab, "home");
    tells_the_truth(&lab, "the carrier's address", &public);
    talk.end().unwrap();
    judge(lab, &[outcome]);
}

#[test]
fn a_router_that_forgets_all_is_passed_within_a_minute() {
    let mut lab = world("reboots", "nat = 'port-restricted'", "");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let cable = lab.testbed().host("home").unwrap().cable.clone();
    let off = |lab: &mut Lab| {
        // Its ports are dead, as while a router boots; what it knew is gone.
        router(lab, "home", &["ip", "link", "set", &cable, "down"]);
        router(lab, "home", &["nft", "flush", "ruleset"]);
        forget(lab, "home");
    };
    let on = |lab: &mut Lab| {
        lab.testbed_mut()
            .renat("home", Nat::PortRestricted)
            .unwrap();
        router(lab, "home", &["ip", "link", "set", &cable, "up"]);
    };
    let outcome = play_total(
        &mut lab,
        "the router starts anew",
        PAIR,
        (off, Duration::from_secs(25), on),
        &talk,
    );
    let public = public_of(&lab, "home");
    tells_the_truth(&lab, "the router starts anew", &public);
    talk.end().unwrap();
    judge(lab, &[outcome]);
}

#[test]
fn a_host_that_slept_is_direct_again_within_a_minute() {
    let mut lab = world("sleeps", "nat = 'port-restricted'", "");
    let talk = stream(&lab, PAIR.0, PAIR.1);
    let mut outcomes = Vec::new();
    for minutes in [2, 6] {
        let sleep = |lab: &mut Lab| {
            lab.testbed().suspend("home").unwrap();
        };
        let wake = |lab: &mut Lab| {
            lab.testbed().wake("home").unwrap();
        };
        let case = format!("{minutes} min of sleep");
        outcomes.push(play_total(
            &mut lab,
            &case,
            PAIR,
            (sleep, Duration::from_secs(60 * minutes), wake),
            &talk,
        ));
        let public = public_of(&lab, "home");
        tells_the_truth(&lab, &case, &public);
    }
    talk.end().unwrap();
    judge(lab, &outcomes);
}
