//! The steps from what is there to what is wanted. Pure: the same function restores what another
//! program removed, follows a change of what is wanted, and removes everything at the end. If
//! nothing is to be done, it gives no steps.
//!
//! Several networks share the machine: rules around the accepted routes stay until no network has
//! accepted routes, and an interface's forwarding stays on until the last network that offers
//! through it is gone.

use crate::{
    forwarding::ForwardingState,
    links::Mark,
    net::Net,
    observed::{Observed, TableState},
    passage::Passage,
    rules::{PlacedRule, Rule, Sockets},
    sharing,
    wanted::{NetworkNeeds, routing_table},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// One change of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Close a passage through another firewall.
    Close(Passage),
    /// Make a route in the network's own routing table.
    Route(Net),
    /// Remove such a route.
    Unroute(Net),
    /// Except a block from the routes, because this machine reaches it by itself.
    Throw(Net),
    /// Remove such an exception.
    Unthrow(Net),
    /// Make a policy rule.
    Rule(PlacedRule),
    /// Remove a policy rule.
    Unrule(PlacedRule),
    /// Make the network's nftables table from this text.
    Table(String),
    /// Switch an interface's forwarding on and note it. `change` is false if another network has
    /// done it.
    Switch {
        /// The interface that forwards.
        interface: String,
        /// Whether something is to be written to the kernel.
        change: bool,
    },
    /// An interface's forwarding is no longer needed here. `change` is false if others need it.
    Restore {
        /// The interface that forwards.
        interface: String,
        /// Whether it is to be switched off.
        change: bool,
    },
    /// Remove the network's nftables table.
    DropTable,
    /// Open a passage through another firewall.
    Open(Passage),
}

/// The steps from what is there to what is wanted, in order.
pub fn plan(wanted: &NetworkNeeds, seen: &Observed) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let passages = if wanted.open_firewalls {
        seen.passages.clone()
    } else {
        BTreeSet::new()
    };
    steps.extend(
        seen.passages_there
            .difference(&passages)
            .cloned()
            .map(Step::Close),
    );
    routes(wanted, seen, &mut steps);
    forwarding(wanted, seen, &mut steps);
    let good = |passage: &Passage| {
        seen.passages_there.contains(passage) && !seen.passages_stale.contains(passage)
    };
    steps.extend(
        passages
            .into_iter()
            .filter(|passage| !good(passage))
            .map(Step::Open),
    );
    steps
}

fn routes(wanted: &NetworkNeeds, seen: &Observed, steps: &mut Vec<Step>) {
    // What this machine reaches by itself has precedence over what others offer, as a whole or in
    // part.
    let is_local = |net: &Net| seen.local.iter().any(|own| own.covers(net));
    let elsewhere = sharing::elsewhere(wanted, seen);
    let is_ours = |net: &&Net| !is_local(net) && !elsewhere.contains_key(*net);
    let accepted: BTreeSet<Net> = wanted.accepted.iter().filter(is_ours).copied().collect();
    let inside = |own: &&Net| accepted.iter().any(|net| net.covers(own));
    let left = elsewhere.keys().filter(|net| !is_local(net));
    let throws: BTreeSet<Net> = seen
        .local
        .iter()
        .filter(inside)
        .chain(left)
        .copied()
        .collect();
    steps.extend(throws.difference(&seen.throws).copied().map(Step::Throw));
    if seen.device.is_some() {
        steps.extend(
            seen.routes
                .difference(&accepted)
                .copied()
                .map(Step::Unroute),
        );
        let is_made = |net: &&Net| {
            seen.routes.contains(*net) && seen.silent.contains(*net) == wanted.silent.contains(*net)
        };
        steps.extend(
            accepted
                .iter()
                .filter(|net| !is_made(net))
                .copied()
                .map(Step::Route),
        );
    }
    steps.extend(seen.throws.difference(&throws).copied().map(Step::Unthrow));
    let others = seen
        .marks
        .iter()
        .filter(|(device, _)| **device != wanted.device)
        .map(|(_, mark)| mark);
    let own = OwnRules {
        wanted,
        has_routes: !wanted.accepted.is_empty(),
        goes_past: seen.carried.is_some(),
    };
    let rules = rules_for(Some(own), others, &seen.rules);
    change_rules(&seen.rules, &rules, seen.rules_base, steps);
}

/// The rules that a network needs.
struct OwnRules<'a> {
    wanted: &'a NetworkNeeds,
    /// It has accepted routes.
    has_routes: bool,
    /// Its own packets must not take the VPN that it carries.
    goes_past: bool,
}

/// The rules that have to be there, given the present ones: those of the `own` network, and those
/// of the others, each known by its mark. The others' rules count while their interfaces are there.
fn rules_for<'a>(
    own: Option<OwnRules>,
    others: impl Iterator<Item = &'a Mark>,
    present: &[PlacedRule],
) -> BTreeSet<Rule> {
    let mut marks: Vec<Mark> = others.cloned().collect();
    let living: BTreeSet<u32> = marks.iter().map(routing_table).collect();
    let mut tables: BTreeSet<u32> = present
        .iter()
        .filter_map(|placed| {
            if let Rule::Table(table) = placed.rule {
                Some(table)
            } else {
                None
            }
        })
        .filter(|table| living.contains(table))
        .collect();
    let past = |mark: &Mark| by_port(mark).map(Rule::Past);
    let is_past =
        |mark: &&Mark| past(mark).any(|rule| present.iter().any(|placed| placed.rule == rule));
    let mut rules: BTreeSet<Rule> = marks.iter().filter(is_past).flat_map(past).collect();
    if let Some(OwnRules {
        wanted,
        has_routes,
        goes_past,
    }) = own
    {
        let mark = wanted.mark();
        if has_routes {
            tables.insert(wanted.routing_table());
        }
        if goes_past {
            rules.extend(past(&mark));
        }
        marks.push(mark);
    }
    if !rules.is_empty() {
        rules.insert(Rule::Past(Sockets::Marked));
    }
    if tables.is_empty() {
        return rules;
    }
    rules.extend([Rule::End, Rule::Around(Sockets::Marked)]);
    rules.extend(marks.iter().flat_map(by_port).map(Rule::Around));
    rules.extend(tables.into_iter().map(Rule::Table));
    rules
}

/// The sockets of a network that are known by a port. The others are known by their mark.
fn by_port(mark: &Mark) -> impl Iterator<Item = Sockets> + use<> {
    let Mark {
        link_port: link,
        control_port: control,
        ..
    } = *mark;
    [
        (link, Sockets::Udp(link)),
        (control, Sockets::Udp(control)),
        (control, Sockets::Tcp(control)),
    ]
    .into_iter()
    .filter(|(port, _)| *port != 0)
    .map(|(_, sockets)| sockets)
}

/// The steps after which only the other networks' rules are left, once the network with this
/// routing table has gone.
pub fn rules_without(
    table: u32,
    marks: &BTreeMap<String, Mark>,
    present: &[PlacedRule],
) -> Vec<Step> {
    let others = marks.values().filter(|mark| routing_table(mark) != table);
    let mut steps = Vec::new();
    // The others' place; if that changes, their own keeper moves them.
    let others_base = present
        .iter()
        .filter(|placed| placed.rule != Rule::Table(table))
        .map(|placed| placed.base)
        .min();
    change_rules(
        present,
        &rules_for(None, others, present),
        others_base.unwrap_or_default(),
        &mut steps,
    );
    steps
}

/// Makes the rules that lead own sockets around the tables first and those of the tables last, so
/// that no own socket ever meets a table. Removes them in the reverse order.
fn change_rules(present: &[PlacedRule], rules: &BTreeSet<Rule>, base: u32, steps: &mut Vec<Step>) {
    let wanted: BTreeSet<PlacedRule> = rules
        .iter()
        .map(|rule| PlacedRule { base, rule: *rule })
        .collect();
    let mut kept = BTreeSet::new();
    let mut gone: Vec<PlacedRule> = present
        .iter()
        .filter(|placed| !wanted.contains(placed) || !kept.insert(**placed))
        .copied()
        .collect();
    steps.extend(wanted.difference(&kept).copied().map(Step::Rule));
    gone.sort_unstable_by_key(|placed| std::cmp::Reverse(placed.rule));
    steps.extend(gone.into_iter().map(Step::Unrule));
}

fn forwarding(wanted: &NetworkNeeds, seen: &Observed, steps: &mut Vec<Step>) {
    let mut switched = seen.switched.clone();
    let mut switch = Vec::new();
    let needed: BTreeSet<&String> = match wanted.offered.is_empty() {
        true => BTreeSet::new(),
        false => seen.lans.iter().chain([&wanted.device]).collect(),
    };
    for interface in &needed {
        let change = match seen.forwarding.get(*interface) {
            Some(ForwardingState::No) => true,
            // Another network switched it on: the last one that ends switches it off.
            Some(ForwardingState::ForUs) if !switched.contains(*interface) => false,
            _ => continue,
        };
        switched.insert((*interface).clone());
        switch.push(Step::Switch {
            interface: (*interface).clone(),
            change,
        });
    }
    if !needed.is_empty() {
        let text = table(wanted, seen, &switched);
        if seen.table != TableState::Made(text.clone()) {
            steps.push(Step::Table(text));
        }
    }
    steps.extend(switch);
    let ours = |interface: &String| {
        seen.forwarding.get(interface) == Some(&ForwardingState::ForUs)
            && !seen.switched_by_others.contains(interface)
    };
    // An interface that was switched on and is gone may have been renamed: then an unknown one
    // forwards for p2pvm.
    if seen
        .switched
        .iter()
        .any(|interface| !seen.forwarding.contains_key(interface))
    {
        let strays = seen
            .forwarding
            .keys()
            .filter(|interface| !seen.switched.contains(*interface) && !needed.contains(interface));
        steps.extend(
            strays
                .filter(|interface| ours(interface))
                .map(|i| Step::Restore {
                    interface: i.clone(),
                    change: true,
                }),
        );
    }
    for interface in seen
        .switched
        .iter()
        .filter(|interface| !needed.contains(interface))
    {
        steps.push(Step::Restore {
            interface: interface.clone(),
            change: ours(interface),
        });
    }
    if needed.is_empty() && seen.table != TableState::Absent {
        steps.push(Step::DropTable);
    }
}

/// How many rules a text of [`table`] makes.
pub(crate) fn rules_in(text: &str) -> usize {
    text.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with("iifname ") || line.starts_with("ip "))
        .count()
}

/// The nftables rules of a host that forwards from the network's interface into offered subnets. A
/// connection that comes in by that interface goes into these subnets, or to where the host's owner
/// has redirected it (a container's published port), and nowhere else. Answers to a container's own
/// connections come back. No connection from these subnets into the network begins. Interfaces that
/// forward only for p2pvm let nothing else through. All other packets are left alone.
fn table(wanted: &NetworkNeeds, seen: &Observed, switched: &BTreeSet<String>) -> String {
    let (table, device) = (wanted.nft_table(), &wanted.device);
    let list = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
    let nets = list(&mut wanted.offered.iter().map(ToString::to_string));
    let quoted =
        |names: &BTreeSet<&String>| list(&mut names.iter().map(|name| format!("\"{name}\"")));
    let marked: BTreeSet<&String> = switched.iter().collect();
    let own: BTreeSet<&String> = seen.marks.keys().chain([device]).collect();
    // Also those that are about to be switched off.
    let for_us = |interface: &&String| {
        seen.forwarding
            .get(*interface)
            .is_some_and(|forwards| *forwards != ForwardingState::ForOthers)
    };
    let guarded: BTreeSet<&String> = switched
        .iter()
        .filter(for_us)
        .filter(|interface| !own.contains(interface))
        .collect();
    // Adding before deleting makes deleting no error; the whole text is one transaction.
    let mut text = format!("add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
    if !marked.is_empty() {
        let _ = writeln!(
            text,
            "set switched {{ type ifname; elements = {{ {} }}; }}",
            quoted(&marked)
        );
    }
    let source = wanted
        .overlay
        .map(|overlay| format!("ip saddr {overlay} "))
        .unwrap_or_default();
    let _ = write!(
        text,
        "chain outward {{ type nat hook postrouting priority srcnat; policy accept;
            {source}ip daddr {{ {nets} }} iifname \"{device}\" oifname != \"{device}\" masquerade
        }}
        chain through {{ type filter hook forward priority filter; policy accept;
            iifname \"{device}\" ct state established,related accept
            iifname \"{device}\" oifname != \"{device}\" ip daddr {{ {nets} }} accept
            iifname \"{device}\" ct status dnat accept
            iifname \"{device}\" drop
            ip saddr {{ {nets} }} oifname \"{device}\" ct state new drop\n"
    );
    if !guarded.is_empty() {
        let (lans, own) = (quoted(&guarded), quoted(&own));
        let _ = write!(
            text,
            "iifname {{ {lans} }} oifname != {{ {own} }} drop
            iifname {{ {lans} }} ct state new drop\n"
        );
    }
    text.push_str("}\n}\n");
    text
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
