//! What p2pvm found when it looked at the machine's kernel: plain data for [`crate::plan`].

use crate::{
    forwarding::ForwardingState, links::Mark, net::Net, outbound::CarriedVpn, passage::Passage,
    rules::PlacedRule,
};
use std::collections::{BTreeMap, BTreeSet};

/// Whether another network leads to a block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldState {
    /// It leads there, and its router answers.
    Answering,
    /// It leads there, and none of its routers answers.
    Silent,
    /// It accepts a route there, but leaves it to another network.
    Away,
}

/// A route in another network's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourRoute {
    /// The other network's interface.
    pub device: String,
    /// Where it leads.
    pub net: Net,
    /// How.
    pub holds: HoldState,
}

/// The state of the network's own nftables table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum TableState {
    /// There is none.
    #[default]
    Absent,
    /// It was made from this text and has not been changed since.
    Made(String),
    /// Another program changed it, or it is from an earlier run.
    Changed,
}

/// What the machine is like now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Index of the network's interface, if it is there and up.
    pub device: Option<u32>,
    /// The marks of all p2pvm interfaces, this network's included, by interface.
    pub marks: BTreeMap<String, Mark>,
    /// p2pvm's policy rules; a doubled rule is here twice.
    pub rules: Vec<PlacedRule>,
    /// The base where they belong.
    pub rules_base: u32,
    /// The VPN that takes this machine's packets and is itself carried by the network.
    pub carried: Option<CarriedVpn>,
    /// Routes in the network's own routing table that lead into its interface.
    pub routes: BTreeSet<Net>,
    /// Those of them that are marked as having a router that does not answer.
    pub silent: BTreeSet<Net>,
    /// The routes in the tables of other p2pvm networks of this machine.
    pub held: BTreeSet<NeighbourRoute>,
    /// The exceptions (`throw`) in the network's own table.
    pub throws: BTreeSet<Net>,
    /// The networks that this machine reaches by itself, other than by a default route.
    pub local: BTreeSet<Net>,
    /// `net.ipv4.conf.IF.forwarding` of the interfaces that matter.
    pub forwarding: BTreeMap<String, ForwardingState>,
    /// The interfaces behind which each offered subnet lies.
    pub lans: BTreeSet<String>,
    /// What this network switched on, by the journal.
    pub switched: BTreeSet<String>,
    /// What other p2pvm networks switched on, by their tables.
    pub switched_by_others: BTreeSet<String>,
    /// The network's own nftables table.
    pub table: TableState,
    /// Passages that p2pvm can open, and without which other firewalls drop packets.
    pub passages: BTreeSet<Passage>,
    /// This network's passages that are open.
    pub passages_there: BTreeSet<Passage>,
    /// Those of them that have to be opened again: their place does not help, or another program
    /// has saved and loaded them.
    pub passages_stale: BTreeSet<Passage>,
}
