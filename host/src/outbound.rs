//! What may drop the packets that leave by one interface: nftables' chains of the hook `egress`,
//! and traffic control; and what leads them elsewhere.

use crate::{
    device, kernel,
    links::{Link, links},
    netlink::Netlink,
    routes::{self, MAIN, Route},
    rules::DEFAULT_LIKE,
    ruleset::Ruleset,
    run::run,
};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address that is nobody's (TEST-NET-1, RFC 5737): a packet to it takes the way of those to the
/// internet.
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Packets of this machine leave by another interface than that of its default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The interface by which they leave.
    pub by: String,
    /// That of the main table's default route.
    pub instead_of: String,
}

/// Where packets to the internet leave, if a rule or a part of a default route, as VPNs make them,
/// leads them past the default route of the main table; none also where that cannot be told.
pub fn detour() -> Option<Detour> {
    let main = routes::routes(&mut Netlink::open().ok()?, MAIN).ok()?;
    detour_past(&main, &links().ok()?)
}

fn detour_past(main: &[Route], links: &[Link]) -> Option<Detour> {
    let by = device::way_to(&SOMEWHERE).ok().flatten()?;
    let defaults: Vec<u32> = main
        .iter()
        .filter(|route| route.net.prefix() == 0 && !route.throw)
        .filter_map(|route| route.device)
        .collect();
    let name = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index)
            .map(|link| link.name.clone())
    };
    let instead_of = name(*defaults.first().filter(|_| !defaults.contains(&by))?)?;
    Some(Detour {
        by: name(by)?,
        instead_of,
    })
}

/// A VPN that takes this machine's packets and is itself carried by a network here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its interface.
    pub by: String,
    /// Its server, as this machine reaches it.
    pub server: IpAddr,
}

/// Whether packets to the internet take a VPN whose server is reached through the interface of this
/// index: p2pvm's own packets must not take it then, as each would carry the other. Only WireGuard
/// can be asked for its server.
pub(crate) fn carried_by(index: u32, main: &[Route], links: &[Link]) -> Option<Carried> {
    let Detour { by, .. } = detour_past(main, links)?;
    let show = |what| {
        run("wg", &["show", &by, what], "")
            .ok()
            .map(|printed| String::from_utf8_lossy(&printed).into_owned())
    };
    let servers = servers(&show("allowed-ips")?, &show("endpoints")?);
    let server = servers
        .into_iter()
        .find(|server| device::way_to(server).is_ok_and(|way| way == Some(index)))?;
    Some(Carried { by, server })
}

/// The peers that packets to the internet go to, as `wg show` prints what is allowed to each and
/// where it is.
fn servers(allowed: &str, endpoints: &str) -> Vec<IpAddr> {
    let is_wide = |net: &str| {
        net.split_once('/').is_some_and(|(ip, prefix)| {
            ip.contains('.') && prefix.parse().is_ok_and(|n: u32| n <= DEFAULT_LIKE)
        })
    };
    let takes_all = |key: &str| {
        let of_peer = allowed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .filter(|(peer, _)| *peer == key);
        of_peer
            .flat_map(|(_, nets)| nets.split_whitespace())
            .any(is_wide)
    };
    let peers = endpoints
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(peer, _)| takes_all(peer));
    peers
        .filter_map(|(_, at)| at.trim().parse::<SocketAddr>().ok())
        .map(|at| at.ip())
        .collect()
}

/// What `tc` prints as JSON; nothing where it is missing or refuses.
fn tc(arguments: &[&str]) -> Value {
    let printed = run("tc", arguments, "").unwrap_or_default();
    serde_json::from_slice(&printed).unwrap_or_default()
}

/// What stands in the way of packets that leave by `ifname`, each with the command that shows it;
/// found by asking `nft` and `tc`, which takes some milliseconds.
pub fn rules_on(ifname: &str) -> Vec<(String, String)> {
    let ruleset = kernel::ruleset().unwrap_or_default();
    let filters = tc(&["-j", "filter", "show", "dev", ifname, "egress"]);
    let queues = tc(&["-j", "qdisc", "show", "dev", ifname]);
    found(ifname, &ruleset, &filters, &queues)
}

/// What leads packets of an interface elsewhere, out or in: filters of traffic control that
/// redirect, each with the command that shows it. The kernel counts such packets as sent.
pub fn redirects_on(ifname: &str) -> Vec<(String, String)> {
    let places = [
        ("leave by", &["egress"][..]),
        ("come in by", &["ingress"]),
        ("leave by", &[]),
    ];
    let mut all = Vec::new();
    for (way, place) in places {
        let shown = [&["filter", "show", "dev", ifname][..], place].concat();
        let filters = tc(&[&["-j"][..], &shown].concat());
        let said = redirects(&filters).into_iter();
        all.extend(said.map(|to| {
            (
                format!("packets that {way} {ifname} go to {to}"),
                format!("tc {}", shown.join(" ")),
            )
        }));
    }
    all
}

/// Where filters lead packets to.
fn redirects(filters: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for filter in filters.as_array().into_iter().flatten() {
        let kind = filter["kind"].as_str().unwrap_or_default();
        for action in filter["options"]["actions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if action["kind"] == "mirred" && action["mirred_action"] == "redirect" {
                let to = action["to_dev"].as_str().unwrap_or("another interface");
                found.push(format!("{to}, by a filter of traffic control ({kind})"));
            }
        }
        // What such a program does cannot be told from outside.
        if kind == "bpf" && filter["options"]["direct-action"] == true {
            let name = filter["options"]["bpf_name"]
                .as_str()
                .unwrap_or("without a name");
            found.push(format!(
                "where a BPF program of traffic control says ({name})"
            ));
        }
    }
    found
}

fn found(
    ifname: &str,
    ruleset: &Ruleset,
    filters: &Value,
    queues: &Value,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for ((family, table, name), chain) in ruleset.base_chains("egress") {
        if !chain.drops && chain.rules.is_empty() {
            continue;
        }
        if chain.devices.iter().any(|device| device == ifname) {
            found.push((
                format!("chain {family} {table} {name} of nftables"),
                format!("nft -a list chain {family} {table} {name}"),
            ));
        }
    }
    if filters
        .as_array()
        .is_some_and(|filters| !filters.is_empty())
    {
        found.push((
            "a filter of traffic control".to_owned(),
            format!("tc filter show dev {ifname} egress"),
        ));
    }
    // These are the kernel's own; anything else somebody has put there.
    let plain = [
        "noqueue",
        "pfifo_fast",
        "fq_codel",
        "mq",
        "clsact",
        "ingress",
    ];
    let kinds = queues
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|queue| queue["kind"].as_str());
    if let Some(kind) = kinds.into_iter().find(|kind| !plain.contains(kind)) {
        found.push((
            format!("the queue {kind} of traffic control"),
            format!("tc -s qdisc show dev {ifname}"),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn chains_filters_and_queues_of_this_interface_are_named_and_no_others() {
        let chain = |name: &str, device: Value| {
            json!(
                {
                    "chain": {
                        "family": "netdev", "table": "t", "name": name, "hook": "egress",
                        "dev": device, "policy": "accept"
                    }
                }
            )
        };
        let rule = |name: &str| {
            json!(
                {
                    "rule": {
                        "family": "netdev", "table": "t", "chain": name, "handle": 2, "expr": []
                    }
                }
            )
        };
        let printed = json!({ "nftables": [
            chain("mine", json!("pv1")), rule("mine"),
            chain("ours", json!(["pv1", "pv2"])), rule("ours"),
            chain("empty", json!("pv1")),
            chain("others", json!("pv2")), rule("others"),
        ]});
        let ruleset = Ruleset::parse(printed.to_string().as_bytes()).unwrap();
        let queues = json!([{ "kind": "tbf" }, { "kind": "clsact" }]);
        let named = found("pv1", &ruleset, &json!([{ "protocol": "all" }]), &queues);
        let commands: Vec<&str> = named.iter().map(|(_, command)| command.as_str()).collect();
        let expected = [
            "nft -a list chain netdev t mine",
            "nft -a list chain netdev t ours",
            "tc filter show dev pv1 egress",
            "tc -s qdisc show dev pv1",
        ];
        assert_eq!(commands, expected, "{named:?}");
        assert_eq!(
            found(
                "pv3",
                &ruleset,
                &json!([]),
                &json!([{ "kind": "fq_codel" }])
            ),
            []
        );
    }

    #[test]
    fn filters_that_lead_packets_elsewhere_are_named_with_where_to() {
        // As tc of iproute2 6.1.0 prints a filter of u32, shortened.
        let mirred = |action: &str| {
            json!(
                { "order": 1, "kind": "mirred", "mirred_action": action, "to_dev": "v0" }
            )
        };
        let filter = |action: Value| {
            json!(
                { "protocol": "all", "kind": "u32", "options": { "actions": [action] } }
            )
        };
        let said =
            redirects(&json!([{ "protocol": "all", "kind": "u32" }, filter(mirred("redirect"))]));
        assert_eq!(said, ["v0, by a filter of traffic control (u32)"]);
        assert!(
            redirects(&json!([
                filter(mirred("mirror")),
                filter(json!({ "kind": "gact" }))
            ]))
            .is_empty()
        );
        let program =
            json!({ "kind": "bpf", "options": { "bpf_name": "cil.o", "direct-action": true } });
        assert!(redirects(&json!([program]))[0].contains("(cil.o)"));
        assert!(redirects(&Value::Null).is_empty());
    }

    #[test]
    fn the_servers_of_a_vpn_are_the_peers_that_everything_goes_to() {
        // As wg of wireguard-tools 1.0.20210914 prints them.
        let allowed = "AAA=\t0.0.0.0/0 \
            ::/0\nBBB=\t10.1.0.0/16\nCCC=\t(none)\nDDD=\t128.0.0.0/1\nEEE=\t::/0\n";
        let endpoints = "AAA=\t10.2.0.3:51820\nBBB=\t10.2.0.4:51820\nCCC=\t(none)\n\
            DDD=\t[fd00::1]:51820\nEEE=\t10.2.0.5:1\n";
        assert_eq!(
            servers(allowed, endpoints),
            ["10.2.0.3", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert!(servers(allowed, "AAA=\t(none)\n\nnonsense").is_empty());
    }
}
