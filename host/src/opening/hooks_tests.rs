//! Rules of people's own at hooks other than input and forward, as nft 1.0.6 lists them.

use super::*;
use serde_json::{Value, json};

fn base(family: &str, name: &str, hook: &str, policy: &str) -> Value {
    let mut chain =
        json!({ "family": family, "table": "own", "name": name, "hook": hook, "policy": policy });
    if family == "netdev" {
        chain["dev"] = json!("p2pvm0");
    }
    json!({ "chain": chain })
}

fn rule(family: &str, chain: &str, expressions: Value) -> Value {
    let rule = json!(
        { "family": family, "table": "own", "chain": chain, "handle": 5, "expr": expressions }
    );
    json!({ "rule": rule })
}

fn is(left: Value, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

fn meta(key: &str, right: &str) -> Value {
    is(json!({ "meta": { "key": key } }), right.into())
}

fn payload(protocol: &str, field: &str, right: Value) -> Value {
    is(
        json!({ "payload": { "protocol": protocol, "field": field } }),
        right,
    )
}

fn found(objects: &[Value]) -> Vec<(String, &'static str, String)> {
    let ruleset = Ruleset::parse(json!({ "nftables": objects }).to_string().as_bytes()).unwrap();
    let wanted = NetworkNeeds {
        device: "p2pvm0".into(),
        link_port: 4002,
        control_port: 4001,
        overlay: Some("10.9.0.0/16".parse().unwrap()),
        offered: BTreeSet::from(["192.168.7.0/24".parse().unwrap()]),
        ..NetworkNeeds::default()
    };
    let (lans, uplinks) = (
        BTreeSet::from(["lan0".to_owned()]),
        BTreeSet::from(["eth0".to_owned()]),
    );
    let all = survey(
        &wanted,
        (&lans, &uplinks),
        &ruleset,
        &OtherFirewalls::default(),
    );
    all.into_iter()
        .map(|found| (found.what, found.hook, found.command))
        .collect()
}

/// What alone is found.
fn only(objects: &[Value]) -> (String, &'static str, String) {
    let all = found(objects);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

const DROP: &str = "drop";

fn drop() -> Value {
    json!({ DROP: null })
}

#[test]
fn a_drop_of_the_networks_interface_is_named_at_every_hook() {
    for (hook, key, way) in [
        ("prerouting", "iifname", "comes in"),
        ("output", "oifname", "goes out"),
        ("postrouting", "oifname", "goes out"),
    ] {
        let rules = [
            base("inet", "c", hook, "accept"),
            rule("inet", "c", json!([meta(key, "p2pvm0"), drop()])),
        ];
        let (what, at, command) = only(&rules);
        assert_eq!((what, at), (format!("what {way} by p2pvm0"), hook));
        assert_eq!(
            command,
            format!("nft insert rule inet own c {key} \"p2pvm0\" accept")
        );
    }
    for (hook, key) in [("ingress", "iifname"), ("egress", "oifname")] {
        let rules = [base("netdev", "c", hook, "drop")];
        let (_, at, command) = only(&rules);
        assert_eq!(
            (at, command),
            (
                hook,
                format!("nft insert rule netdev own c {key} \"p2pvm0\" accept")
            )
        );
        let mut other = base("netdev", "c", hook, "drop");
        other["chain"]["dev"] = json!(["eth9", "eth8"]);
        assert_eq!(found(&[other]), [], "of another interface");
    }
}

#[test]
fn only_a_drop_of_the_networks_own_addresses_is_named() {
    let of = |address: &str| {
        let saddr = payload(
            "ip",
            "saddr",
            json!({ "prefix": { "addr": address, "len": 16 } }),
        );
        [
            base("ip", "c", "prerouting", "accept"),
            rule("ip", "c", json!([saddr, drop()])),
        ]
    };
    assert_eq!(only(&of("10.9.0.0")).0, "what comes in by p2pvm0");
    assert_eq!(found(&of("10.8.0.0")), []);
}

#[test]
fn a_drop_of_our_udp_is_named_unless_rules_may_pass_it() {
    let drops = |field: &str, hook: &str| {
        let rule = rule(
            "inet",
            "c",
            json!([
                payload("udp", field, json!({ "range": [4002, 4100] })),
                drop()
            ]),
        );
        [base("inet", "c", hook, "accept"), rule]
    };
    let (what, at, command) = only(&drops("dport", "prerouting"));
    assert_eq!(
        (what.as_str(), at),
        ("members' packets to UDP port 4002 by eth0", "prerouting")
    );
    assert_eq!(command, "nft insert rule inet own c udp dport 4002 accept");
    assert_eq!(
        only(&drops("sport", "output")).0,
        "members' packets from UDP port 4002 by eth0"
    );
    assert_eq!(only(&drops("dport", "input")).1, "input");

    // A hardened host: what is not known to be let out is not said to be dropped.
    let udp = |expressions: Value| {
        let rules = [
            base("inet", "c", "output", "drop"),
            rule("inet", "c", expressions),
        ];
        found(&rules)
            .into_iter()
            .filter(|(what, ..)| what.contains("UDP"))
            .count()
    };
    let accept = || json!({ "accept": null });
    assert_eq!(
        udp(json!([payload("tcp", "dport", 22.into()), accept()])),
        2,
        "TCP is something else"
    );
    assert_eq!(
        udp(json!([
            payload("udp", "sport", json!({ "set": [4001, 4002] })),
            accept()
        ])),
        0
    );
    assert_eq!(
        udp(json!([
            payload("ip", "daddr", "198.51.100.7".into()),
            accept()
        ])),
        0
    );
}

#[test]
fn what_is_dropped_beside_an_offered_lan_is_named_as_such() {
    let rules = |hook: &str, key: &str| {
        [
            base("inet", "c", hook, "accept"),
            rule("inet", "c", json!([meta(key, "lan0"), drop()])),
        ]
    };
    let (what, _, command) = only(&rules("postrouting", "oifname"));
    assert_eq!(
        what,
        "what p2pvm0 forwards into the offered subnets by lan0"
    );
    assert!(
        command.ends_with("oifname \"lan0\" ip daddr 192.168.7.0/24 accept"),
        "{command}"
    );
    assert!(
        only(&rules("prerouting", "iifname"))
            .0
            .starts_with("answers from")
    );
}

#[test]
fn the_tables_of_iptables_legacy_are_judged_at_all_their_hooks() {
    let raw = "-P PREROUTING ACCEPT\n-P OUTPUT ACCEPT\n-A PREROUTING -i p2pvm+ -j DROP\n";
    let programs = OtherFirewalls {
        tables: [(("ip".into(), "raw".into()), raw.into())].into(),
        ..OtherFirewalls::default()
    };
    let wanted = NetworkNeeds {
        device: "p2pvm0".into(),
        ..NetworkNeeds::default()
    };
    let none = BTreeSet::new();
    let found = survey(&wanted, (&none, &none), &Ruleset::default(), &programs);
    let [found] = Vec::from_iter(found).try_into().unwrap();
    assert_eq!(found.hook, "prerouting");
    assert_eq!(
        found.command,
        "iptables-legacy -t raw -I PREROUTING -i p2pvm0 -j ACCEPT"
    );
    assert!(
        found
            .block
            .to_string()
            .contains("chain PREROUTING of table iptables-legacy raw"),
        "{}",
        found.block
    );
}
