//! Two p2pvm networks of one machine that accept routes to the same LAN: which of them leads
//! packets there.
//!
//! No daemon asks the other: what each needs to know is in the kernel, in the routing table of the
//! other network, and goes with its interface. A route whose router does not answer has the
//! protocol number [`SILENT`]; an exception (`throw`) means that the network accepts a route there
//! and leaves it to another. A network whose router answers keeps what it holds, so that
//! connections are not cut when the other's router comes back. If both begin at the same time, the
//! interface that is first by name holds it. If one LAN contains another, the smaller has
//! precedence, as among all routes.

use crate::{
    links::Link,
    net::Net,
    netlink::Netlink,
    observed::{HoldState, NeighbourRoute, Observed},
    routes::{self, Route},
    rules::SILENT,
    wanted::{NetworkNeeds, routing_table},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// A LAN that another network of this machine accepts too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedLan {
    /// The LAN, or the part of one, that both lead to.
    pub net: Net,
    /// The accepted LAN that it is a part of, if it is one.
    pub within: Option<Net>,
    /// The other network's interface.
    pub device: String,
    /// Whether packets of this machine go into this network.
    pub is_here: bool,
    /// Whether a router of this network's answers.
    pub answers: bool,
    /// The other network's state.
    pub other: HoldState,
}

/// The routes in the tables of this machine's other networks.
///
/// # Errors
/// The kernel's error.
pub(crate) fn held(
    netlink: &mut Netlink,
    own: &str,
    links: &[Link],
) -> io::Result<BTreeSet<NeighbourRoute>> {
    let mut found = BTreeSet::new();
    for link in links.iter().filter(|link| link.name != own) {
        let Some(mark) = link.mark() else { continue };
        let held = |route: Route| {
            let holds = match route.protocol {
                _ if route.throw => HoldState::Away,
                _ if route.device != Some(link.index) => return None,
                SILENT => HoldState::Silent,
                _ => HoldState::Answering,
            };
            Some(NeighbourRoute {
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

/// The accepted LANs, and parts of them, that another network of this machine leads to, each with
/// that network's interface.
pub(crate) fn elsewhere(wanted: &NetworkNeeds, seen: &Observed) -> BTreeMap<Net, String> {
    let answering = || {
        seen.held
            .iter()
            .filter(|held| held.holds == HoldState::Answering)
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
    // A LAN that is accepted here itself has been decided.
    let undecided = |held: &&NeighbourRoute| !wanted.accepted.contains(&held.net);
    for held in answering().filter(undecided) {
        if wanted.accepted.iter().any(|net| net.covers(&held.net)) {
            away.entry(held.net).or_insert_with(|| held.device.clone());
        }
    }
    away
}

/// The LANs that other networks accept too, for reports.
pub(crate) fn shared(wanted: &NetworkNeeds, seen: &Observed) -> Vec<SharedLan> {
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
        // An exception inside a larger LAN leaves to a third network what is not accepted here.
        if !is_same && (around.is_none() || held.holds == HoldState::Away) {
            continue;
        }
        // Of several others, only the one that leads there.
        if away
            .get(&held.net)
            .is_some_and(|device| *device != held.device)
        {
            continue;
        }
        found.push(SharedLan {
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
