//! Other programs' rules as nft prints them, shortened to what decides.

use super::*;
use serde_json::json;

fn base(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
    json!(
        {
            "chain": {
                "family": family, "table": table, "name": name, "hook": hook, "policy": policy
            }
        }
    )
}

fn chain(family: &str, table: &str, name: &str) -> Value {
    json!({ "chain": { "family": family, "table": table, "name": name } })
}

fn rule(family: &str, table: &str, chain: &str, expressions: Value) -> Value {
    json!(
        {
            "rule": {
                "family": family, "table": table, "chain": chain, "handle": 5, "expr": expressions
            }
        }
    )
}

fn ruleset(objects: &[Value]) -> Ruleset {
    Ruleset::parse(json!({ "nftables": objects }).to_string().as_bytes()).unwrap()
}

fn packet(iif: &str, oif: Option<&str>) -> Packet {
    Packet {
        iif: iif.into(),
        oif: oif.map(str::to_owned),
        ..Packet::default()
    }
}

fn name_is(key: &str, name: &str) -> Value {
    json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": name } })
}

fn state(states: Value) -> Value {
    json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": states } })
}

#[test]
fn dockers_chain_drops_forwarded_packets_of_unknown_interfaces() {
    let jump = |to: &str| json!([{ "counter": null }, { "jump": { "target": to } }]);
    let rules = ruleset(&[
        base("ip", "filter", "FORWARD", "forward", "drop"),
        chain("ip", "filter", "DOCKER-USER"),
        rule("ip", "filter", "FORWARD", jump("DOCKER-USER")),
        rule(
            "ip",
            "filter",
            "FORWARD",
            json!(
                [
                    name_is("oifname", "docker0"),
                    { "xt": { "type": "match", "name": "conntrack" } }, { "accept": null }
                ]
            ),
        ),
        rule(
            "ip",
            "filter",
            "FORWARD",
            json!([name_is("iifname", "docker0"), { "accept": null }]),
        ),
    ]);
    let found = blocks(&rules, "forward", &packet("p2pvm0", Some("lan0")));
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].to_string(),
        "chain FORWARD of table ip filter (policy drop)"
    );
    assert_eq!(
        blocks(&rules, "forward", &packet("docker0", Some("lan0"))),
        []
    );
    assert_eq!(blocks(&rules, "input", &packet("p2pvm0", None)), []);
    let mut open = rules.clone();
    let id = (
        "ip".to_owned(),
        "filter".to_owned(),
        "DOCKER-USER".to_owned(),
    );
    open.chains.get_mut(&id).unwrap().rules.push(Rule {
        handle: 9,
        comment: Some("p2pvm p2pvm0 in".into()),
        expressions: vec![name_is("iifname", "p2pvm0"), json!({ "accept": null })],
        ..Rule::default()
    });
    assert_eq!(
        blocks(&open, "forward", &packet("p2pvm0", Some("lan0"))),
        []
    );
    assert_eq!(
        blocks(
            &open.without_ours(),
            "forward",
            &packet("p2pvm0", Some("lan0"))
        ),
        found
    );
}

/// firewalld's table with an interface in its zone "trusted".
fn firewalld() -> Ruleset {
    ruleset(&[
        base("inet", "firewalld", "filter_INPUT", "input", "accept"),
        chain("inet", "firewalld", "filter_INPUT_ZONES"),
        chain("inet", "firewalld", "filter_IN_trusted"),
        chain("inet", "firewalld", "filter_IN_public"),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT",
            json!([state(json!({ "set": ["established", "related"] })), { "accept": null }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT",
            json!([name_is("iifname", "lo"), { "accept": null }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT",
            json!([{ "jump": { "target": "filter_INPUT_ZONES" } }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT",
            json!([state(json!(["invalid"])), { "drop": null }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT",
            json!([{ "reject": { "type": "icmpx", "expr": "admin-prohibited" } }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT_ZONES",
            json!([name_is("iifname", "vpn0"), { "goto": { "target": "filter_IN_trusted" } }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_INPUT_ZONES",
            json!([{ "goto": { "target": "filter_IN_public" } }]),
        ),
        rule(
            "inet",
            "firewalld",
            "filter_IN_trusted",
            json!([{ "accept": null }]),
        ),
    ])
}

#[test]
fn firewallds_closing_reject_is_met_by_an_interface_in_no_zone() {
    let rules = firewalld();
    for v6 in [false, true] {
        let found = blocks(
            &rules,
            "input",
            &Packet {
                v6,
                ..packet("p2pvm0", None)
            },
        );
        assert_eq!(
            found[0].to_string(),
            "chain filter_INPUT of table inet firewalld (its rule 'reject' in chain filter_INPUT)"
        );
    }
    assert_eq!(blocks(&rules, "input", &packet("vpn0", None)), []);
    assert_eq!(
        blocks(
            &rules,
            "input",
            &Packet {
                established: true,
                ..packet("p2pvm0", None)
            }
        ),
        []
    );
}

#[test]
fn a_rule_that_cannot_be_decided_counts_neither_way() {
    let port = json!(
        {
            "match": {
                "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } },
                "right": 22
            }
        }
    );
    let of = |policy: &str, expressions: Value| {
        ruleset(&[
            base("inet", "f", "in", "input", policy),
            rule("inet", "f", "in", expressions),
        ])
    };
    let dropped = |rules: &Ruleset| !blocks(rules, "input", &packet("p2pvm0", None)).is_empty();
    assert!(dropped(&of("drop", json!([port, { "accept": null }]))));
    assert!(!dropped(&of("accept", json!([port, { "drop": null }]))));
    assert!(!dropped(&of(
        "accept",
        json!([{ "limit": { "rate": 1 } }, { "drop": null }])
    )));
    assert!(dropped(&of(
        "accept",
        json!([{ "counter": null }, { "xt": { "type": "target", "name": "REJECT" } }])
    )));
    assert!(!dropped(&of(
        "accept",
        json!([{ "xt": { "type": "match", "name": "recent" } }, { "drop": null }])
    )));
}

#[test]
fn sets_maps_wildcards_and_addresses_are_understood() {
    let of = |expressions: Value| {
        ruleset(&[
            json!(
                {
                    "set": {
                        "family": "inet", "table": "f", "name": "mine", "elem": ["eth0", "p2pvm0"]
                    }
                }
            ),
            base("inet", "f", "in", "input", "drop"),
            rule("inet", "f", "in", expressions),
        ])
    };
    let lets_in = |expressions: Value| {
        let packet = Packet {
            source: Some(Ipv4Addr::new(10, 9, 3, 4)),
            ..packet("p2pvm0", None)
        };
        blocks(&of(expressions), "input", &packet).is_empty()
    };
    let not = |key: &str, name: &str| {
        json!(
            { "match": { "op": "!=", "left": { "meta": { "key": key } }, "right": name } }
        )
    };
    let source = |right: Value| {
        let left = json!({ "payload": { "protocol": "ip", "field": "saddr" } });
        json!({ "match": { "op": "==", "left": left, "right": right } })
    };
    assert!(lets_in(
        json!([name_is("iifname", "@mine"), { "accept": null }])
    ));
    assert!(lets_in(
        json!([name_is("iifname", "p2p*"), { "accept": null }])
    ));
    assert!(lets_in(json!([not("iifname", "eth0"), { "accept": null }])));
    assert!(!lets_in(
        json!([name_is("iifname", "@unknown"), { "accept": null }])
    ));
    assert!(lets_in(
        json!([source(json!({ "prefix": { "addr": "10.0.0.0", "len": 8 } })), { "accept": null }])
    ));
    assert!(!lets_in(json!(
        [
            source(json!({ "set": ["10.9.3.5", { "range": ["10.9.4.0", "10.9.5.0"] }] })),
            { "accept": null }
        ]
    )));
    let map = |verdict: &str| {
        json!(
            [
                {
                    "vmap": {
                        "key": { "ct": { "key": "state" } },
                        "data": { "set": [
                            ["established", { "accept": null }], ["new", { verdict: null }]
                        ] }
                    }
                }
            ]
        )
    };
    assert!(lets_in(map("accept")) && !lets_in(map("drop")));
}

#[test]
fn unfiltered_packets_are_not_blocked_and_nonsense_does_not_panic() {
    assert_eq!(blocks(&ruleset(&[]), "input", &packet("p2pvm0", None)), []);
    for text in [
        "",
        "null",
        "[]",
        "{\"nftables\":7}",
        "{\"nftables\":[{\"rule\":{\"expr\":[1,{},{\"jump\":1}]}}]}",
    ] {
        if let Ok(ruleset) = Ruleset::parse(text.as_bytes()) {
            assert_eq!(blocks(&ruleset, "input", &packet("p2pvm0", None)), []);
        }
    }
}

#[test]
fn ufw_drops_what_is_for_nobody_and_lets_in_our_own() {
    let fib = |flags: Value, kind: &str| {
        json!({ "match": { "op": "==", "left": { "fib": { "result": "type", "flags": flags } },
            "right": kind } })
    };
    let jump = |to: &str| json!({ "jump": { "target": to } });
    let from_p2pvm0 = json!([name_is("iifname", "p2pvm0"), { "accept": null }]);
    let of = |chain: &str, expressions: Value| rule("ip", "filter", chain, expressions);
    // As nft's own rule, and as iptables-nft's, of which nft does not say more.
    let by_iptables = json!({ "xt": { "type": "match", "name": "addrtype" } });
    for addrtype in [Some(json!("daddr")), Some(json!(["daddr", "iif"])), None] {
        let returns = |kind: &str| {
            let matched = addrtype
                .clone()
                .map_or(by_iptables.clone(), |flags| fib(flags, kind));
            of("ufw-not-local", json!([matched, { "return": null }]))
        };
        let rules = ruleset(&[
            base("ip", "filter", "INPUT", "input", "drop"),
            chain("ip", "filter", "ufw-not-local"),
            chain("ip", "filter", "ufw-user-input"),
            of("INPUT", json!([jump("ufw-not-local")])),
            of("INPUT", json!([jump("ufw-user-input")])),
            returns("local"),
            returns("multicast"),
            of("ufw-not-local", json!([{ "drop": null }])),
            of("ufw-user-input", from_p2pvm0.clone()),
        ]);
        assert_eq!(blocks(&rules, "input", &packet("p2pvm0", None)), []);
        let other = blocks(&rules, "input", &packet("eth1", None));
        assert_eq!(
            other[0].by, "policy drop",
            "not the chain for what is for nobody here"
        );
    }
    // Docker's own jump, for what is for this machine, is not met by what is forwarded.
    let forwarded = ruleset(&[
        base("ip", "filter", "FORWARD", "forward", "accept"),
        of(
            "FORWARD",
            json!([fib(json!("daddr"), "local"), { "drop": null }]),
        ),
    ]);
    assert_eq!(
        blocks(&forwarded, "forward", &packet("p2pvm0", Some("lan0"))),
        []
    );
}
