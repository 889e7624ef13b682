//! What may drop the packets that leave by one interface: nftables' chains of the hook `egress`, and traffic control.

use crate::{ruleset::Ruleset, run::run};
use serde_json::Value;

/// What stands in the way of packets that leave by `ifname`, each with the command that shows it; found by asking `nft` and `tc`,
/// which takes some milliseconds.
pub fn rules_on(ifname: &str) -> Vec<(String, String)> {
    let ruleset = run("nft", &["-j", "list", "ruleset"], "").ok().and_then(|printed| Ruleset::parse(&printed).ok());
    let filters = run("tc", &["-j", "filter", "show", "dev", ifname, "egress"], "").unwrap_or_default();
    let queues = run("tc", &["-j", "qdisc", "show", "dev", ifname], "").unwrap_or_default();
    let parse = |printed: Vec<u8>| serde_json::from_slice::<Value>(&printed).unwrap_or_default();
    let listed = |family: &str, table: &str, chain: &str| {
        let printed = run("nft", &["list", "chain", family, table, chain], "").unwrap_or_default();
        String::from_utf8_lossy(&printed).into_owned()
    };
    found(ifname, &ruleset.unwrap_or_default(), &parse(filters), &parse(queues), listed)
}

/// Whether a chain, as nft lists it for people, is on an interface. Reason: nft before 1.0.7 leaves the interfaces of egress chains
/// out of its JSON.
fn is_on(listed: &str, ifname: &str) -> bool {
    let quoted = format!("\"{ifname}\"");
    let mut hooks = listed.lines().filter(|line| line.contains(" hook egress "));
    hooks.any(|line| line.split([' ', ',', '{', '}']).any(|word| word == quoted))
}

fn found(
    ifname: &str,
    ruleset: &Ruleset,
    filters: &Value,
    queues: &Value,
    listed: impl Fn(&str, &str, &str) -> String,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for ((family, table, name), chain) in ruleset.base_chains("egress") {
        if !chain.drops && chain.rules.is_empty() {
            continue;
        }
        let is_here = match chain.devices.as_slice() {
            [] => is_on(&listed(family, table, name), ifname),
            devices => devices.iter().any(|device| device == ifname),
        };
        if is_here {
            found.push((format!("chain {family} {table} {name} of nftables"), format!("nft -a list chain {family} {table} {name}")));
        }
    }
    if filters.as_array().is_some_and(|filters| !filters.is_empty()) {
        found.push(("a filter of traffic control".to_owned(), format!("tc filter show dev {ifname} egress")));
    }
    // These are the kernel's own; anything else somebody has put there.
    let plain = ["noqueue", "pfifo_fast", "fq_codel", "mq", "clsact", "ingress"];
    let kinds = queues.as_array().into_iter().flatten().filter_map(|queue| queue["kind"].as_str());
    if let Some(kind) = kinds.into_iter().find(|kind| !plain.contains(kind)) {
        found.push((format!("the queue {kind} of traffic control"), format!("tc -s qdisc show dev {ifname}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn chains_filters_and_queues_of_this_interface_are_named_and_no_others() {
        let chain = |name: &str, device: Value| json!({ "chain": { "family": "netdev", "table": "t", "name": name, "hook": "egress", "dev": device, "policy": "accept" } });
        let rule = |name: &str| json!({ "rule": { "family": "netdev", "table": "t", "chain": name, "handle": 2, "expr": [] } });
        let printed = json!({ "nftables": [
            chain("mine", json!("pv1")), rule("mine"),
            chain("ours", json!(["pv1", "pv2"])), rule("ours"),
            chain("empty", json!("pv1")),
            chain("others", json!("pv2")), rule("others"),
        ]});
        let ruleset = Ruleset::parse(printed.to_string().as_bytes()).unwrap();
        let queues = json!([{ "kind": "tbf" }, { "kind": "clsact" }]);
        let unlisted = |_: &str, _: &str, _: &str| String::new();
        let named = found("pv1", &ruleset, &json!([{ "protocol": "all" }]), &queues, unlisted);
        let commands: Vec<&str> = named.iter().map(|(_, command)| command.as_str()).collect();
        let expected = [
            "nft -a list chain netdev t mine",
            "nft -a list chain netdev t ours",
            "tc filter show dev pv1 egress",
            "tc -s qdisc show dev pv1",
        ];
        assert_eq!(commands, expected, "{named:?}");
        assert_eq!(found("pv3", &ruleset, &json!([]), &json!([{ "kind": "fq_codel" }]), unlisted), []);
    }

    #[test]
    fn the_interface_of_a_chain_is_read_where_nft_leaves_it_out_of_its_json() {
        // As nft 1.0.6 prints both.
        let printed = json!({ "nftables": [
            { "chain": { "family": "netdev", "table": "guard", "name": "out", "type": "filter", "hook": "egress", "prio": 0, "policy": "drop" } },
        ]});
        let ruleset = Ruleset::parse(printed.to_string().as_bytes()).unwrap();
        let listed = |devices: &'static str| {
            move |_: &str, _: &str, _: &str| {
                format!(
                    "table netdev guard {{\n\tchain out {{\n\t\ttype filter hook egress {devices} priority filter; policy drop;\n\t}}\n}}\n"
                )
            }
        };
        let named = |devices| found("pv1", &ruleset, &json!([]), &json!([]), listed(devices)).len();
        assert_eq!(named("device \"pv1\""), 1);
        assert_eq!(named("devices = { \"pv0\", \"pv1\" }"), 1);
        assert_eq!(named("device \"pv10\""), 0);
    }
}
