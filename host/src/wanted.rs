//! What one network wants of the machine's kernel, and what p2pvm found when it looked: plain data
//! for [`crate::plan`].

use crate::{
    links::Mark, net::Net, outbound::Carried, passage::Passage, rules::Placed, sharing::Held,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a network wants, besides its own interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The network's interface.
    pub device: String,
    /// The network's id, as it is written.
    pub network: String,
    /// The UDP port of its packet plane.
    pub link_port: u16,
    /// The UDP and TCP port of its control plane; 0: not known yet.
    pub control_port: u16,
    /// The network's own subnet.
    pub overlay: Option<Net>,
    /// Subnets of others that packets reach through the interface.
    pub accepted: BTreeSet<Net>,
    /// Those of them whose router does not answer.
    pub silent: BTreeSet<Net>,
    /// Subnets that packets from the interface are forwarded into.
    pub offered: BTreeSet<Net>,
    /// Whether other firewalls may be opened for the interface.
    pub open_firewalls: bool,
}

impl Wanted {
    /// What the interface's alias says.
    pub fn mark(&self) -> Mark {
        Mark {
            network: self.network.clone(),
            link_port: self.link_port,
            control_port: self.control_port,
            misses: None,
        }
    }

    /// The routing table of the accepted routes.
    pub fn routing_table(&self) -> u32 {
        routing_table(&self.mark())
    }

    /// The name of the nftables table that is this network's.
    pub fn nft_table(&self) -> String {
        nft_table(&self.device)
    }

    /// The same network with nothing wanted any more.
    pub fn nothing(&self) -> Self {
        Self {
            accepted: BTreeSet::new(),
            silent: BTreeSet::new(),
            offered: BTreeSet::new(),
            open_firewalls: false,
            ..self.clone()
        }
    }
}

/// The routing table of a network: a number that no person chooses by hand, the same at every start
/// ("p" and 24 bits of FNV-1a).
pub fn routing_table(mark: &Mark) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in mark.network.bytes().chain(mark.link_port.to_be_bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    0x7000_0000 | (hash ^ (hash >> 24)) & 0x00ff_ffff
}

/// The nftables table of the network behind `device`: nft takes letters, digits and underscores
/// only.
pub fn nft_table(device: &str) -> String {
    let mut name = String::from("p2pvm_");
    for byte in device.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => name.push(char::from(byte)),
            other => name.push_str(&format!("_{other:02x}")),
        }
    }
    name
}

/// Whether an interface forwards, and who had the last word. The kernel takes every number but 0
/// for yes: p2pvm writes 2, where everybody else writes 1, `net.ipv4.ip_forward` included. So the
/// switch itself says whose it is, whatever happened to it unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwards {
    /// It does not.
    No,
    /// p2pvm switched it on, and nobody has touched it since.
    ForUs,
    /// Somebody else switched it on.
    ForOthers,
}

/// How the network's own nftables table is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum TableState {
    /// There is none.
    #[default]
    Absent,
    /// It was made from this text, and nobody changed it since.
    Made(String),
    /// Somebody changed it, or it is of a former run.
    Changed,
}

/// What the machine is like now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Index of the network's interface, if it is there and up.
    pub device: Option<u32>,
    /// What the aliases of all p2pvm interfaces say, this network's included, by interface.
    pub marks: BTreeMap<String, Mark>,
    /// p2pvm's policy rules; a rule that is there twice is here twice.
    pub rules: Vec<Placed>,
    /// Where they belong.
    pub rules_base: u32,
    /// The VPN that takes this machine's packets and whose own go through the network.
    pub carried: Option<Carried>,
    /// Routes in the network's own routing table that lead into its interface.
    pub routes: BTreeSet<Net>,
    /// Those of them that are marked as led by a router that does not answer.
    pub silent: BTreeSet<Net>,
    /// What other p2pvm networks of this machine hold in theirs.
    pub held: BTreeSet<Held>,
    /// Exceptions from them there.
    pub throws: BTreeSet<Net>,
    /// What this machine reaches by itself, other than by a default route.
    pub local: BTreeSet<Net>,
    /// `net.ipv4.conf.IF.forwarding` of the interfaces that matter.
    pub forwarding: BTreeMap<String, Forwards>,
    /// The interfaces behind which each offered subnet lies.
    pub lans: BTreeSet<String>,
    /// What this network switched on, by the journal.
    pub switched: BTreeSet<String>,
    /// What other p2pvm networks switched on, by their tables.
    pub switched_by_others: BTreeSet<String>,
    /// The network's own nftables table.
    pub table: TableState,
    /// Passages that other firewalls would have to give and can be given by p2pvm.
    pub passages: BTreeSet<Passage>,
    /// Passages of this network's that are there.
    pub passages_there: BTreeSet<Passage>,
    /// Those of them that have to be given anew: they do not help where they stand, or somebody has
    /// saved and loaded them.
    pub passages_stale: BTreeSet<Passage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_on_one_machine_have_tables_of_their_own() {
        let mark = |network: &str, link_port| Mark {
            network: network.into(),
            link_port,
            control_port: 1,
            misses: None,
        };
        let tables = [("a", 4002), ("b", 4002), ("a", 4012)]
            .map(|(network, port)| routing_table(&mark(network, port)));
        assert!(tables[0] != tables[1] && tables[0] != tables[2]);
        assert!(tables.iter().all(|table| table >> 24 == 0x70));
        assert_eq!(nft_table("p2pvm0"), "p2pvm_p2pvm0");
        assert_ne!(nft_table("a-b"), nft_table("a_b"));
    }
}
