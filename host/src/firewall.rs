//! Whether other firewalls on this machine let packets of our interface through, by walking their
//! chains with an example packet.
//!
//! Each base chain of a hook has to let a packet pass: an accept ends one chain only. A rule whose
//! conditions cannot all be decided (rates, ports, foreign sets) counts neither for nor against the
//! packet; a chain's policy or its closing reject, by which other firewalls drop unknown
//! interfaces, decides then.

use crate::{
    net::Net,
    ruleset::{Chain, ChainId, Rule, Ruleset},
};
use serde_json::Value;
use std::{cell::Cell, fmt, net::Ipv4Addr};

/// How deep jumps between chains are followed, as by the kernel.
const DEPTH: usize = 16;

/// The packet that chains are asked about.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// The interface by which it came in; empty for this machine's own packet.
    pub iif: String,
    /// The interface by which it leaves; `None` if it is for this machine.
    pub oif: Option<String>,
    /// Its source address.
    pub source: Option<Ipv4Addr>,
    /// Its destination address.
    pub destination: Option<Ipv4Addr>,
    /// Whether it belongs to a known connection; otherwise it begins one.
    pub established: bool,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Its ports if it is UDP; `None` if its protocol is unknown.
    pub udp: Option<Ports>,
}

/// The ports of a packet, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// The source port.
    pub source: Option<u16>,
    /// The destination port.
    pub destination: Option<u16>,
}

/// A base chain that does not let the packet through, as far as can be told.
#[derive(Clone, Debug)]
pub(crate) struct PossibleBlock {
    pub block: BlockingChain,
    /// Whether an earlier rule that p2pvm understands only in part may let it through.
    pub is_doubtful: bool,
}

/// A base chain that does not let a packet through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockingChain {
    /// The table's family.
    pub family: String,
    /// The table's name.
    pub table: String,
    /// The base chain's name.
    pub chain: String,
    /// The rule or policy that drops it.
    pub by: String,
}

impl fmt::Display for BlockingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chain {} of table {} {} ({})",
            self.chain, self.family, self.table, self.by
        )
    }
}

/// What a chain does with the packet.
enum Fate {
    Passed,
    Dropped(String),
    /// No rule decided.
    Open,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Truth {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It cannot be told.
    Unknown,
}

impl From<bool> for Truth {
    fn from(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

/// The base chains of `hook` (`input` or `forward`) that do not let the packet through.
pub fn blocks(ruleset: &Ruleset, hook: &str, packet: &Packet) -> Vec<BlockingChain> {
    drops(ruleset, hook, packet)
        .into_iter()
        .map(|judged| judged.block)
        .collect()
}

/// As [`blocks`], for any hook, also those of interfaces (`ingress`, `egress`), and with doubts.
pub(crate) fn drops(ruleset: &Ruleset, hook: &str, packet: &Packet) -> Vec<PossibleBlock> {
    let mut found = Vec::new();
    let at_interface = match hook {
        "ingress" => Some(packet.iif.as_str()),
        "egress" => packet.oif.as_deref(),
        _ => None,
    };
    for (id, chain) in ruleset.base_chains(hook) {
        let (family, table, name) = id;
        let judged = match family.as_str() {
            "inet" => true,
            "ip" => !packet.v6,
            "ip6" => packet.v6,
            "netdev" => at_interface.is_some(),
            _ => false,
        } && at_interface
            .is_none_or(|name| chain.devices.iter().any(|device| device == name));
        // Our own tables judge our own packets.
        if !judged || table.starts_with("p2pvm_") {
            continue;
        }
        let doubt = Cell::new(false);
        let by = match walk(ruleset, id, chain, packet, (0, &doubt)) {
            Fate::Passed => continue,
            Fate::Open if !chain.drops => continue,
            Fate::Open => "policy drop".to_owned(),
            Fate::Dropped(by) => by,
        };
        let block = BlockingChain {
            family: family.clone(),
            table: table.clone(),
            chain: name.clone(),
            by,
        };
        found.push(PossibleBlock {
            block,
            is_doubtful: doubt.get(),
        });
    }
    found
}

/// The depth of jumps, and whether a rule that p2pvm understands only in part may have let the
/// packet through.
type WalkState<'a> = (usize, &'a Cell<bool>);

fn walk(
    ruleset: &Ruleset,
    id: &ChainId,
    chain: &Chain,
    packet: &Packet,
    way: WalkState<'_>,
) -> Fate {
    let mut may_have_returned = false;
    for rule in &chain.rules {
        match apply(ruleset, id, rule, packet, way) {
            RuleOutcome::Next => {}
            RuleOutcome::MayReturn => may_have_returned = true,
            RuleOutcome::Return => return Fate::Open,
            // ufw's chain for packets to no local address: its returns match by iptables' own
            // extensions, its drop by nothing. The rules after the jump decide, so that ufw is
            // not blamed wrongly.
            RuleOutcome::Done(Fate::Dropped(_)) if may_have_returned && way.0 > 0 => {
                way.1.set(true);
                return Fate::Open;
            }
            RuleOutcome::Done(fate) => return fate,
        }
    }
    Fate::Open
}

enum RuleOutcome {
    Next,
    Return,
    /// A return that may be taken.
    MayReturn,
    Done(Fate),
}

fn apply(
    ruleset: &Ruleset,
    id: &ChainId,
    rule: &Rule,
    packet: &Packet,
    way: WalkState<'_>,
) -> RuleOutcome {
    let mut certain = true;
    for expression in &rule.expressions {
        let Some((kind, body)) = expression.as_object().and_then(|o| o.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => match holds(ruleset, id, body, packet) {
                Truth::Yes => {}
                Truth::No => return RuleOutcome::Next,
                Truth::Unknown => certain = false,
            },
            "counter" | "log" | "comment" | "mangle" | "notrack" => {}
            "xt" if body["type"] == "match" && body["name"] == "comment" => {}
            "vmap" => {
                if let Some(verdict) = looked_up(ruleset, id, body, packet).filter(|_| certain)
                    && let Some((kind, body)) = verdict.as_object().and_then(|o| o.iter().next())
                    && let Some(step) = decide(ruleset, id, (kind, body), packet, way)
                {
                    return step;
                }
                way.1.set(true);
            }
            "xt" if body["type"] == "target" => {
                let name = body["name"].as_str().unwrap_or_default();
                if certain && matches!(name, "REJECT" | "DROP") {
                    return RuleOutcome::Done(Fate::Dropped(format!(
                        "its rule '{}' in chain {}",
                        name.to_lowercase(),
                        id.2
                    )));
                }
            }
            "return" if !certain => return RuleOutcome::MayReturn,
            other if !certain => {
                // A verdict that may be taken may also let the packet through.
                let lets_through = matches!(other, "accept" | "queue" | "jump" | "goto");
                way.1.set(way.1.get() || lets_through);
            }
            other => match decide(ruleset, id, (other, body), packet, way) {
                Some(step) => return step,
                // A limit, a quota, a match of an iptables extension.
                None => certain = false,
            },
        }
    }
    RuleOutcome::Next
}

/// What a verdict does; `None` if it is no verdict.
fn decide(
    ruleset: &Ruleset,
    id: &ChainId,
    verdict: (&str, &Value),
    packet: &Packet,
    way: WalkState<'_>,
) -> Option<RuleOutcome> {
    let (kind, body) = verdict;
    Some(match kind {
        "accept" | "queue" => RuleOutcome::Done(Fate::Passed),
        "drop" | "reject" => RuleOutcome::Done(Fate::Dropped(format!(
            "its rule '{kind}' in chain {}",
            id.2
        ))),
        "return" => RuleOutcome::Return,
        "continue" => RuleOutcome::Next,
        "jump" | "goto" => {
            let target = (
                id.0.clone(),
                id.1.clone(),
                body["target"].as_str().unwrap_or_default().to_owned(),
            );
            let fate = match ruleset.chains.get(&target) {
                Some(chain) if way.0 < DEPTH => {
                    walk(ruleset, &target, chain, packet, (way.0 + 1, way.1))
                }
                _ => Fate::Open,
            };
            match fate {
                Fate::Open if kind == "jump" => RuleOutcome::Next,
                Fate::Open => RuleOutcome::Return,
                fate => RuleOutcome::Done(fate),
            }
        }
        _ => return None,
    })
}

/// The verdict of a verdict map for the packet, if one of its keys holds for certain.
fn looked_up<'a>(
    ruleset: &'a Ruleset,
    id: &ChainId,
    body: &'a Value,
    packet: &Packet,
) -> Option<&'a Value> {
    let pairs = match &body["data"] {
        Value::String(name) => ruleset.sets.get(&(
            id.0.clone(),
            id.1.clone(),
            name.trim_start_matches('@').to_owned(),
        ))?,
        set => set["set"].as_array()?,
    };
    let pair = pairs
        .iter()
        .find(|pair| equals(&body["key"], &pair[0], packet, &|_| None) == Truth::Yes)?;
    pair.get(1)
}

fn holds(ruleset: &Ruleset, id: &ChainId, body: &Value, packet: &Packet) -> Truth {
    let named = |name: &str| {
        ruleset
            .sets
            .get(&(id.0.clone(), id.1.clone(), name.to_owned()))
            .cloned()
    };
    let truth = equals(&body["left"], &body["right"], packet, &named);
    match body["op"].as_str() {
        Some("==" | "in") => truth,
        Some("!=") => match truth {
            Truth::Yes => Truth::No,
            Truth::No => Truth::Yes,
            Truth::Unknown => Truth::Unknown,
        },
        _ => Truth::Unknown,
    }
}

/// Whether the packet's property `left` equals `right` or is one of it.
fn equals(
    left: &Value,
    right: &Value,
    packet: &Packet,
    named: &dyn Fn(&str) -> Option<Vec<Value>>,
) -> Truth {
    let elements = match right {
        Value::Array(several) => Some(several.clone()),
        Value::Object(object) if object.contains_key("set") => right["set"].as_array().cloned(),
        Value::String(name) if name.starts_with('@') => match named(&name[1..]) {
            Some(elements) => Some(elements),
            None => return Truth::Unknown,
        },
        _ => None,
    };
    if let Some(elements) = elements {
        let each = elements.iter().map(|element| {
            let plain = element
                .get("elem")
                .map_or(element, |elem| elem.get("val").unwrap_or(elem));
            equals(left, plain, packet, named)
        });
        let truths: Vec<Truth> = each.collect();
        return match () {
            () if truths.contains(&Truth::Yes) => Truth::Yes,
            () if truths.contains(&Truth::Unknown) => Truth::Unknown,
            () => Truth::No,
        };
    }
    if let Some(udp) = &packet.udp
        && let Some(truth) = of_udp(left, right, udp)
    {
        return truth;
    }
    let meta = left["meta"]["key"].as_str();
    let field = left["payload"]["field"]
        .as_str()
        .filter(|_| left["payload"]["protocol"] == "ip");
    match (meta, field) {
        (Some("iifname" | "iif"), _) => name_is(&packet.iif, right),
        (Some("oifname" | "oif"), _) => name_is(packet.oif.as_deref().unwrap_or_default(), right),
        (Some("nfproto"), _) => Truth::from((right == "ipv6") == packet.v6),
        (Some("protocol"), _) => Truth::from(right == if packet.v6 { "ip6" } else { "ip" }),
        (_, Some("saddr")) => address_is(packet.source, right),
        (_, Some("daddr")) => address_is(packet.destination, right),
        _ if left["ct"]["key"] == "state" => Truth::from(
            right
                == if packet.established {
                    "established"
                } else {
                    "new"
                },
        ),
        // Nothing of ours is translated on its way in.
        _ if left["ct"]["key"] == "status" && right == "dnat" => Truth::No,
        _ if left["fib"]["result"] == "type" => {
            destination_is(&left["fib"]["flags"], right, packet)
        }
        _ => Truth::Unknown,
    }
}

/// Whether the packet's destination has the address type `right` in the routing table. A packet of
/// ours is for one machine, this or another.
fn destination_is(flags: &Value, right: &Value, packet: &Packet) -> Truth {
    let flags: Vec<&Value> = flags
        .as_array()
        .map_or(vec![flags], |several| several.iter().collect());
    if !flags.iter().any(|flag| *flag == "daddr") {
        return Truth::Unknown;
    }
    let kind = if packet.oif.is_none() {
        "local"
    } else {
        "unicast"
    };
    right
        .as_str()
        .map_or(Truth::Unknown, |asked| Truth::from(asked == kind))
}

/// A condition about a UDP packet's protocol or ports; `None` if it is about something else.
fn of_udp(left: &Value, right: &Value, udp: &Ports) -> Option<Truth> {
    let (protocol, field) = (
        left["payload"]["protocol"].as_str(),
        left["payload"]["field"].as_str(),
    );
    if left["meta"]["key"] == "l4proto"
        || matches!((protocol, field), (Some("ip"), Some("protocol")))
    {
        return Some(Truth::from(right == "udp" || right == 17));
    }
    match (protocol?, field?) {
        ("udp" | "th", "sport") => Some(port_is(udp.source, right)),
        ("udp" | "th", "dport") => Some(port_is(udp.destination, right)),
        ("tcp" | "icmp" | "icmpv6" | "sctp" | "dccp" | "esp" | "ah", _) => Some(Truth::No),
        _ => None,
    }
}

fn port_is(port: Option<u16>, right: &Value) -> Truth {
    let Some(port) = port.map(u64::from) else {
        return Truth::Unknown;
    };
    let range = (right["range"][0].as_u64(), right["range"][1].as_u64());
    match (right.as_u64(), range) {
        (Some(exact), _) => Truth::from(port == exact),
        (None, (Some(first), Some(last))) => Truth::from((first..=last).contains(&port)),
        _ => Truth::Unknown,
    }
}

fn name_is(name: &str, right: &Value) -> Truth {
    match right.as_str() {
        Some(wild) if wild.ends_with('*') => {
            Truth::from(name.starts_with(wild.trim_end_matches('*')))
        }
        Some(exact) => Truth::from(name == exact),
        None => Truth::Unknown,
    }
}

fn address_is(address: Option<Ipv4Addr>, right: &Value) -> Truth {
    let Some(address) = address else {
        return Truth::Unknown;
    };
    if let Some(exact) = right.as_str() {
        return exact
            .parse::<Net>()
            .map_or(Truth::Unknown, |net| Truth::from(net.contains(&address)));
    }
    let parse = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<Ipv4Addr>().ok())
    };
    if let Some(prefix) = right.get("prefix")
        && let (Some(first), Some(length)) = (parse(&prefix["addr"]), prefix["len"].as_u64())
    {
        return Truth::from(Net::new(first, u8::try_from(length).unwrap_or(32)).contains(&address));
    }
    if let Some(range) = right.get("range")
        && let (Some(first), Some(last)) = (parse(&range[0]), parse(&range[1]))
    {
        return Truth::from((first..=last).contains(&address));
    }
    Truth::Unknown
}

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
