//! Two p2pvm networks of one machine that accept routes to the same LAN: which of them leads
//! packets there.
//!
//! No daemon asks the other: what each needs to know stands in the kernel, in the routing table of
//! the other network, and goes with its interface. A route whose router does not answer carries the
//! protocol number [`SILENT`]; an exception (`throw`) says that the network would lead there and
//! leaves it to another. Whose router answers keeps what it holds, so that connections are not cut
//! when the other's router comes back; if both begin in one moment, the interface that comes first
//! by name holds it. Of two LANs of which one holds the other, the smaller goes before, as among
//! all routes.

use crate::{
    links::Link,
    net::Net,
    netlink::Netlink,
    routes::{self, Route},
    rules::SILENT,
    wanted::{Observed, Wanted, routing_table},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// What another network does with a block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// It leads there, and its router answers.
    Answering,
    /// It leads there, and no router of its answers.
    Silent,
    /// It accepts a route there, and leaves it to another.
    Away,
}

/// A route in another network's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The other network's interface.
    pub device: String,
    /// Where it leads.
    pub net: Net,
    /// How.
    pub holds: Holds,
}

/// A LAN that another network of this machine accepts too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shared {
    /// The LAN, or the part of one, that both lead to.
    pub net: Net,
    /// The accepted LAN that it is a part of, where it is one.
    pub within: Option<Net>,
    /// The other network's interface.
    pub device: String,
    /// Whether packets of this machine go into this network.
    pub is_here: bool,
    /// Whether a router of this network's answers.
    pub answers: bool,
    /// What the other network does.
    pub other: Holds,
}

/// What the tables of this machine's other networks hold.
///
/// # Errors
/// What the kernel says.
pub(crate) fn held(netlink: &mut Netlink, own: &str, links: &[Link]) -> io::Result<BTreeSet<Held>> {
    let mut found = BTreeSet::new();
    for link in links.iter().filter(|link| link.name != own) {
        let Some(mark) = link.mark() else { continue };
        let held = |route: Route| {
            let holds = match route.protocol {
                _ if route.throw => Holds::Away,
                _ if route.device != Some(link.index) => return None,
                SILENT => Holds::Silent,
                _ => Holds::Answering,
            };
            Some(Held {
                device: link.name.clone(),
                net: route.net,
                holds,
            })
        };
        found.extend(
            routes::routes(netlink, routing_table(&mark))?
                .into_iter()
                .filter_map(held),
        );
    }
    Ok(found)
}

/// What other networks lead to of the LANs that are accepted here: those LANs as a whole, and parts
/// of them.
pub(crate) fn elsewhere(wanted: &Wanted, seen: &Observed) -> BTreeMap<Net, String> {
    let answering = || {
        seen.held
            .iter()
            .filter(|held| held.holds == Holds::Answering)
    };
    let mut away = BTreeMap::new();
    for net in &wanted.accepted {
        let first = answering()
            .filter(|held| held.net == *net)
            .map(|held| &held.device)
            .min();
        let is_answered = !wanted.silent.contains(net);
        let holds = is_answered && seen.routes.contains(net) && !seen.silent.contains(net);
        if let Some(first) = first.filter(|first| !holds || **first < wanted.device) {
            away.insert(*net, first.clone());
        }
    }
    // What is accepted here by itself has been decided.
    let undecided = |held: &&Held| !wanted.accepted.contains(&held.net);
    for held in answering().filter(undecided) {
        if wanted.accepted.iter().any(|net| net.covers(&held.net)) {
            away.entry(held.net).or_insert_with(|| held.device.clone());
        }
    }
    away
}

/// The LANs that other networks accept too, for those who read what is found.
pub(crate) fn shared(wanted: &Wanted, seen: &Observed) -> Vec<Shared> {
    let away = elsewhere(wanted, seen);
    let is_local = |net: &Net| seen.local.iter().any(|own| own.covers(net));
    let mut found = Vec::new();
    for held in seen.held.iter().filter(|held| !is_local(&held.net)) {
        let is_same = wanted.accepted.contains(&held.net);
        let mut covers = wanted.accepted.iter().filter(|net| net.covers(&held.net));
        let around = if is_same {
            None
        } else {
            covers.next().copied()
        };
        // An exception inside a larger LAN leaves to a third what is not accepted here by itself.
        if !is_same && (around.is_none() || held.holds == Holds::Away) {
            continue;
        }
        // Of several others the one that leads there.
        if away
            .get(&held.net)
            .is_some_and(|device| *device != held.device)
        {
            continue;
        }
        found.push(Shared {
            net: held.net,
            within: around,
            device: held.device.clone(),
            is_here: !away.contains_key(&held.net),
            answers: !wanted.silent.contains(&around.unwrap_or(held.net)),
            other: held.holds,
        });
    }
    found
}

#[cfg(test)]
#[path = "sharing_tests.rs"]
mod tests;
