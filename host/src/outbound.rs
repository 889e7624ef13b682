//! What may drop the packets that leave by an interface, or lead them elsewhere: nftables' chains
//! at the hook `egress`, traffic control, and VPNs.

use crate::lock;
use crate::{
    device, kernel,
    links::{Link, links},
    netlink::Netlink,
    routes::{self, MAIN},
    rules::{DEFAULT_LIKE, SOCKET_MARK},
    ruleset::Ruleset,
    run::{run, run_within},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Addresses that nobody has (RFC 5737), and one more in case those are filtered. Packets to them
/// would take the way of packets to the internet. No packet is sent to them.
const SOMEWHERE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(1, 0, 0, 1),
];
/// How long to wait for `wg`.
/// Reason: repairs of the machine wait for it.
const WG_LIMIT: Duration = Duration::from_secs(2);
/// How long before `wg` is asked again after it timed out.
const WG_PAUSE: Duration = Duration::from_secs(60);

/// The index of the interface by which packets with this mark leave to the internet; 0 is no mark.
fn way_out(mark: u32) -> Option<u32> {
    SOMEWHERE
        .into_iter()
        .find_map(|ip| device::way_of_marked(&ip.into(), mark).ok().flatten())
}

/// Packets of this machine leave by another interface than that of its default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The interface by which they leave.
    pub by: String,
    /// The interface of the main table's default route.
    pub instead_of: String,
}

/// Where packets to the internet leave, if a rule or a part of a default route, as VPNs make them,
/// leads them past the default route of the main table. Also `None` if it cannot be told.
pub fn detour() -> Option<Detour> {
    let by = way_out(0)?;
    let main = routes::routes(&mut Netlink::open().ok()?, MAIN).ok()?;
    let links = links().ok()?;
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
pub struct CarriedVpn {
    /// Its interface.
    pub by: String,
    /// Its server, as this machine reaches it.
    pub server: IpAddr,
    /// Whether p2pvm's own packets go past it.
    pub is_passed: bool,
}

impl CarriedVpn {
    /// A sentence for people.
    pub fn sentence(&self) -> String {
        let Self { by, server, .. } = self;
        if self.is_passed {
            return format!(
                "p2pvm's own packets go past the VPN {by}, whose server {server} is reached \
                through this network"
            );
        }
        format!(
            "the VPN {by} takes p2pvm's own packets, and its server {server} is reached through \
            this network: each carries the other, and no rule before its routes helps"
        )
    }
}

/// The VPN that packets to the internet take, if its server is reached through the interface of
/// this index. p2pvm's own packets must then not take it, because each would carry the other. Only
/// WireGuard can be asked for its server.
pub(crate) fn carried_by(index: u32, links: &[Link]) -> Option<CarriedVpn> {
    let out = way_out(0).filter(|out| *out != index)?;
    let by = links.iter().find(|link| link.index == out)?.name.clone();
    if !may_be_vpn(&by) {
        return None;
    }
    let servers = servers(&wg(&by, "allowed-ips")?, &wg(&by, "endpoints")?);
    let mark = mark(&wg(&by, "fwmark")?);
    // The look-up has the VPN's mark, because its own packets do.
    let leads_in =
        |ip: &IpAddr| device::way_of_marked(ip, mark).is_ok_and(|way| way == Some(index));
    let server = servers.into_iter().find(leads_in)?;
    Some(CarriedVpn {
        by,
        server,
        is_passed: way_out(SOCKET_MARK).is_some_and(|way| way != out),
    })
}

/// Whether an interface may be a VPN's: WireGuard and TUN have no hardware address (ARPHRD_NONE).
fn may_be_vpn(ifname: &str) -> bool {
    let kind = std::fs::read_to_string(format!("/sys/class/net/{ifname}/type"));
    // In a container /sys may show another network namespace.
    kind.is_ok_and(|kind| kind.trim() == "65534") || !Path::new("/sys/class/net/lo").exists()
}

/// What `wg show` prints about an interface; `None` if it fails or has timed out lately.
fn wg(ifname: &str, what: &str) -> Option<String> {
    static UNASKED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut unasked = lock(&UNASKED);
    if unasked.is_some_and(|since| since.elapsed() < WG_PAUSE) {
        return None;
    }
    let began = Instant::now();
    let printed = run_within(WG_LIMIT, "wg", &["show", ifname, what], "");
    *unasked = (began.elapsed() >= WG_LIMIT).then(Instant::now);
    Some(String::from_utf8_lossy(&printed.ok()?).into_owned())
}

/// The mark of a WireGuard interface's own packets, from the text of `wg show`; 0 if it has none.
fn mark(printed: &str) -> u32 {
    let hex = printed.trim().strip_prefix("0x");
    hex.and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .unwrap_or(0)
}

/// The addresses of the peers that packets to the internet go to, from what `wg show` prints about
/// their allowed addresses and endpoints.
fn servers(allowed: &str, endpoints: &str) -> Vec<IpAddr> {
    let is_wide = |net: &str| {
        net.split_once('/').is_some_and(|(ip, prefix)| {
            ip.contains('.') && prefix.parse().is_ok_and(|n: u32| n <= DEFAULT_LIKE)
        })
    };
    let by_peer = |text| str::lines(text).filter_map(|line: &str| line.split_once('\t'));
    let wide: BTreeSet<&str> = by_peer(allowed)
        .filter(|(_, nets)| nets.split_whitespace().any(is_wide))
        .map(|(peer, _)| peer)
        .collect();
    by_peer(endpoints)
        .filter(|(peer, _)| wide.contains(peer))
        .filter_map(|(_, at)| at.trim().parse::<SocketAddr>().ok())
        .map(|at| at.ip())
        .collect()
}

/// What `tc` prints as JSON; null if it is missing or fails.
fn tc(arguments: &[&str]) -> Value {
    let printed = run("tc", arguments, "").unwrap_or_default();
    serde_json::from_slice(&printed).unwrap_or_default()
}

/// What may drop packets that leave by `ifname`, each with the command that shows it. It runs `nft`
/// and `tc`, which takes some milliseconds.
pub fn rules_on(ifname: &str) -> Vec<(String, String)> {
    let ruleset = kernel::ruleset().unwrap_or_default();
    let filters = tc(&["-j", "filter", "show", "dev", ifname, "egress"]);
    let queues = tc(&["-j", "qdisc", "show", "dev", ifname]);
    found(ifname, &ruleset, &filters, &queues)
}

/// The filters of traffic control that redirect packets of an interface, out or in, each with the
/// command that shows it. The kernel counts such packets as sent.
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

/// Where filters redirect packets to.
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
        // What a BPF program does cannot be told from outside.
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
    // These are the kernel's own; another program has added any other.
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
        assert_eq!(["off\n", "0xca6c\n", ""].map(mark), [0, 51820, 0]);
        assert!(servers(allowed, "AAA=\t(none)\n\nnonsense").is_empty());
    }
}
