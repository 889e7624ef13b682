//! What a daemon finds out about its NAT and does about it, on the emulated wide area with real
//! NATs and a real miniupnpd.

mod common;

use common::{
    lab, network, refused,
    trouble::{forget, nft, router, stream},
    until_direct,
};
use p2pvm_api::{InviteAnswer, Status};
use p2pvm_lab::{
    chain,
    figures::{Figure, Recorder},
    lab::Lab,
};
use std::time::Duration;

/// Three public hosts, which help each other's neighbours to find out, and the sites of the test.
fn world(test: &str, sites: &str) -> Lab {
    lab(
        test,
        &format!(
            "seed=4\n[default]\nrtt_ms=20\nmbit=1000\n[[site]]\nname='p1'\nipv6='dual'\n[[site]]\n\
                name='p2'\n[[site]]\nname='p3'\n{sites}"
        ),
    )
}

fn join_all(lab: &Lab, hosts: &[&str]) {
    lab.found("p1", "lab").unwrap();
    let invite = lab.invite("p1", 20).unwrap();
    for host in ["p2", "p3"].iter().chain(hosts) {
        lab.join(host, &invite)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 40)));
    }
}

/// How often the rules of a site's router name this port.
fn rules_naming(lab: &Lab, site: &str, port: &str) -> usize {
    let listed = router(lab, site, &["nft", "list", "ruleset"]);
    listed.matches(port).count()
}

/// Waits until a host's status is as wanted.
fn wait_for(lab: &Lab, host: &str, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    lab.wait(
        &format!("{what} of {host}"),
        Duration::from_secs(60),
        Duration::from_millis(500),
        || {
            let status = lab.status(host)?;
            Ok(wanted(&status).then_some(status))
        },
    )
    .unwrap_or_else(|e| {
        panic!(
            "{}: {:?}\n{}",
            chain(&e),
            lab.netcheck(host),
            lab.log_tail(host, 40)
        )
    })
}

#[test]
fn a_daemon_tells_each_kind_of_nat_from_the_others() {
    let kinds = [
        // Only a public member that it has never written to can show a full cone: here the ring has
        // made it write to all of them.
        ("full", "nat='full-cone'", "cone, address-restricted"),
        ("address", "nat='restricted'", "cone, address-restricted"),
        ("port", "nat='port-restricted'", "cone, port-restricted"),
        (
            "counting",
            "nat='symmetric-sequential'",
            "symmetric, ports count up",
        ),
        ("random", "nat='symmetric'", "symmetric"),
        ("walled", "firewall=true", "none, but a firewall"),
        ("six", "ipv6='only'\nfirewall=true", "none, but a firewall"),
        ("blocked", "udp=false", "UDP blocked"),
    ];
    let sites: String = kinds
        .iter()
        .map(|(name, settings, _)| format!("[[site]]\nname='{name}'\n{settings}\n"))
        .collect();
    let lab = world("natkinds", &sites);
    let names: Vec<&str> = kinds.iter().map(|(name, ..)| *name).collect();
    join_all(&lab, &names);
    for (name, _, wanted) in kinds {
        wait_for(&lab, name, "nat", |status| {
            status.nat == wanted || (name == "full" && status.nat == "full cone")
        });
    }
    assert_eq!(lab.status("p2").unwrap().nat, "none");
    let page = lab.netcheck("full").unwrap();
    let mapping = page.mapping.as_deref();
    assert_eq!(mapping, Some("endpoint-independent"), "{page:?}");
    assert!(
        ["endpoint-independent", "address-dependent at most"]
            .contains(&page.filtering.as_deref().unwrap()),
        "{page:?}"
    );
    assert!(page.members.len() >= 3 && !page.upnp, "{page:?}");
    lab.down().unwrap();
}

#[test]
fn a_mapped_port_is_used_by_others_and_returned_at_the_end() {
    let lab = world(
        "portmap",
        "[[site]]\nname='home'\nnat='symmetric'\nupnp=true\n[[site]]\nname='strict'\n\
            nat='symmetric'\n",
    );
    lab.configure("home", "cpus = 1\nupnp = true\nautonomic = false\n")
        .unwrap();
    join_all(&lab, &["home", "strict"]);
    let mapped = wait_for(&lab, "home", "mapped", |status| status.mapped.is_some());
    let public = lab
        .testbed()
        .plan()
        .public_address(lab.testbed().host("home").unwrap());
    assert_eq!(mapped.mapped.unwrap(), format!("{public}:4002"));
    let page = lab.netcheck("home").unwrap();
    assert!(
        page.mapped.as_ref().unwrap().ends_with("by PCP"),
        "{page:?}"
    );
    assert!(page.pcp && page.nat_pmp && page.upnp, "{page:?}");
    until_direct(&lab, "strict", "home", Duration::from_secs(20));
    let rules = || rules_naming(&lab, "home", "4002");
    assert!(rules() > 0);
    lab.p2pvm("home", &["down"]).unwrap();
    assert_eq!(rules(), 0, "the mapping is taken back");
    lab.down().unwrap();
}

#[test]
fn a_network_of_homes_admits_joiners_through_the_founders_router() {
    let homes = "[[site]]\nname='asked'\nnat='port-restricted'\nupnp=true\n[[site]]\nname='told'\n\
        nat='port-restricted'\n\
                 [[site]]\nname='one'\nnat='port-restricted'\n[[site]]\nname='two'\n\
                 nat='symmetric'\n";
    // Nobody in these networks has a public address.
    let lab = world("homes", homes);
    lab.configure("asked", "cpus = 1\nupnp = true\nautonomic = false\n")
        .unwrap();
    let outside = lab
        .testbed()
        .plan()
        .public_address(lab.testbed().host("told").unwrap());
    lab.found("told", "lone").unwrap();
    let invite: InviteAnswer = lab.json("told", &["invite"]).unwrap();
    assert!(invite.note.unwrap().contains("reachable_at"));
    common::forward_ports(&lab, "told");
    lab.configure(
        "told",
        &format!("cpus = 1\nupnp = false\nreachable_at = ['{outside}']\n"),
    )
    .unwrap();
    lab.p2pvm("told", &["down"]).unwrap();
    lab.p2pvm("told", &["up", "--detach"]).unwrap();
    lab.found("asked", "other").unwrap();
    for (founder, guest) in [("told", "one"), ("asked", "two")] {
        let invite: InviteAnswer = lab.json(founder, &["invite"]).unwrap();
        assert!(
            invite.note.is_none(),
            "{founder} knows that it can be reached: {invite:?}"
        );
        lab.join(guest, &invite.invite)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(founder, 40)));
        until_direct(&lab, guest, founder, Duration::from_secs(30));
    }
    let rules = || rules_naming(&lab, "asked", "4001");
    assert!(rules() > 0);
    lab.p2pvm("asked", &["down"]).unwrap();
    assert_eq!(rules(), 0, "the mapping is taken back");
    lab.down().unwrap();
}

#[test]
fn netcheck_says_what_it_can_without_a_daemon_and_without_members() {
    let lab = world("netcheck", "");
    let page = lab.netcheck("p1").unwrap();
    assert!(
        !page.daemon && page.ipv6 && page.addresses.len() == 2,
        "{page:?}"
    );
    assert!(lab.p2pvm("p1", &["netcheck"]).unwrap().contains("p2pvm up"));
    lab.found("p1", "lab").unwrap();
    assert!(
        lab.p2pvm("p1", &["netcheck"])
            .unwrap()
            .contains("p2pvm invite")
    );
    assert!(lab.netcheck("p1").unwrap().daemon);
    refused(&lab, "p1", &["netcheck", "nonsense"], 2);
    lab.down().unwrap();
}

/// Writes the pauses for docs/nat.md, where that is asked for: to a member behind a NAT, to an open
/// one.
fn keep(pauses: (Duration, Duration)) {
    let silence = |took: Duration, to: &str| {
        let what = "longest silence of a TCP stream";
        Figure::new("silence", what, "s", [took.as_secs_f64()])
            .of(format!("all UDP of a member dropped at once, to {to}"))
            .digits(1)
    };
    let figures = [
        silence(pauses.0, "a member behind a NAT"),
        silence(pauses.1, "an open member"),
    ];
    Recorder::from_environment()
        .record_part(
            "paths",
            "cargo nextest run -p p2pvm --test e2e_nat",
            &figures,
        )
        .expect("the figures are written");
}

#[test]
fn when_all_udp_is_dropped_a_stream_stands_still_for_seconds() {
    // How long QUIC takes to notice by itself is more than ten seconds; a dial, a handshake and the
    // stream's own timers come on top.
    const LIMIT: Duration = Duration::from_secs(15);
    let lab = lab(
        "nomoreudp",
        "seed=9\n[default]\nrtt_ms=30\nmbit=500\n[[site]]\nname='pub'\n[[site]]\nname='open'\n\
         [[site]]\nname='home'\nnat='port-restricted'\n[[site]]\nname='office'\n\
         nat='port-restricted'\n",
    );
    network(&lab, &["pub", "open", "home", "office"]);
    for (from, to) in [("home", "office"), ("home", "open")] {
        until_direct(&lab, from, to, Duration::from_secs(40));
    }
    let (natted, open) = (stream(&lab, "home", "office"), stream(&lab, "home", "open"));
    std::thread::sleep(Duration::from_secs(3));
    let _ = (natted.silence(), open.silence());
    nft(
        &lab,
        "home",
        "table inet blocked { chain everything { type filter hook forward priority -10; policy \
            accept; meta l4proto udp drop; }; }",
    );
    std::thread::sleep(Duration::from_secs(25));
    let pauses = (natted.silence(), open.silence());
    println!(
        "all UDP of a member dropped: its stream to one behind a NAT paused for {:.1?}, to an \
            open one for {:.1?}",
        pauses.0, pauses.1
    );
    keep(pauses);
    let logs = || {
        format!(
            "{}\n-- office\n{}",
            lab.log_tail("home", 80),
            lab.log_tail("office", 60)
        )
    };
    assert!(
        pauses.0 < LIMIT && pauses.1 < LIMIT,
        "{pauses:?}\n{}",
        logs()
    );
    wait_for(&lab, "home", "nat", |status| status.nat == "UDP blocked");
    for to in ["office", "open"] {
        let path = lab.ping("home", to, 2, "100ms").unwrap().path;
        assert!(path.contains("stream"), "{path}\n{}", logs());
    }
    nft(&lab, "home", "delete table inet blocked");
    forget(&lab, "home");
    natted.end().unwrap();
    open.end().unwrap();
    lab.down().unwrap();
}
