//! What one network wants of the machine's kernel: plain data for [`crate::plan`].

use crate::{links::Mark, net::Net};
use std::collections::BTreeSet;

/// What a network wants, besides its own interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkNeeds {
    /// The network's interface.
    pub device: String,
    /// The network's id in text form.
    pub network: String,
    /// The UDP port of its packet plane.
    pub link_port: u16,
    /// The UDP and TCP port of its control plane; 0 if not known yet.
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

impl NetworkNeeds {
    /// The mark in the interface's alias.
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

    /// The same network with nothing wanted.
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

/// The routing table of a network: a number that no person would choose, the same at every start
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
