//! The facts of a network that every member knows, signed by the root, and the addresses derived
//! from them.
//!
//! IPv6 needs no claim: the /48 comes from the network's key (RFC 4193 wants 40 random bits), a
//! member's host part from its key, a VM's from its MAC address by modified EUI-64 (RFC 4291,
//! appendix A), which a guest configures by itself from the router advertisement.

use super::Refusal;
use crate::{
    id::{MemberId, NetworkId, UnixTime, VmId},
    identity::{KeyPair, Signature, verify},
};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

const DOMAIN: &str = "p2pvm network 1";

/// An IPv4 subnet, `prefix` in 8..=28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Subnet {
    /// The network address, host bits zero.
    pub addr: Ipv4Addr,
    /// The prefix length in bits.
    pub prefix: u8,
}

impl Ipv4Subnet {
    /// The subnet that `addr` lies in, or `None` for a prefix outside 8..=28.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Option<Self> {
        (8..=28).contains(&prefix).then(|| Self {
            addr: Ipv4Addr::from_bits(addr.to_bits() & Self::mask(prefix)),
            prefix,
        })
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }

    /// Whether `addr` lies in the subnet.
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & Self::mask(self.prefix) == self.addr.to_bits()
    }

    /// The guests' gateway: the first address, reserved.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | 1)
    }
}

impl std::fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A network's unchanging facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The root's public key.
    pub id: NetworkId,
    /// The name in `<host>.<name>.p2p`.
    pub name: String,
    /// The subnet of members' and guests' IPv4 addresses.
    pub subnet: Ipv4Subnet,
    /// When the network was founded.
    pub created: UnixTime,
    signature: Signature,
}

impl NetworkConfig {
    /// Founds a network: `root` is its key from now on.
    ///
    /// # Errors
    /// [`Refusal::BadName`] for a name that cannot be a DNS label.
    pub fn found(
        root: &KeyPair,
        name: &str,
        subnet: Ipv4Subnet,
        created: UnixTime,
    ) -> Result<Self, Refusal> {
        if !super::valid_name(name) {
            return Err(Refusal::BadName);
        }
        let id = NetworkId(root.public());
        let signature = root.sign(DOMAIN, &Self::signed(id, name, &subnet, created));
        Ok(Self {
            id,
            name: name.to_owned(),
            subnet,
            created,
            signature,
        })
    }

    fn signed(id: NetworkId, name: &str, subnet: &Ipv4Subnet, created: UnixTime) -> Vec<u8> {
        super::certificate::bytes(&(id, name, subnet, created))
    }

    /// Whether the root signed exactly this.
    ///
    /// # Errors
    /// [`Refusal::Tampered`], also for a subnet or name that the root could not have founded.
    pub fn verify(&self) -> Result<(), Refusal> {
        let fits = Ipv4Subnet::new(self.subnet.addr, self.subnet.prefix) == Some(self.subnet)
            && super::valid_name(&self.name);
        let signed = Self::signed(self.id, &self.name, &self.subnet, self.created);
        (fits && verify(&self.id.0, DOMAIN, &signed, &self.signature))
            .then_some(())
            .ok_or(Refusal::Tampered)
    }

    /// The network's unique local /48 (RFC 4193): `fd` and 40 bits of a hash of the network's key.
    pub fn ula_prefix(&self) -> Ipv6Addr {
        let hash = blake3::derive_key("p2pvm 2026 unique local prefix of a network", &self.id.0);
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&hash[..5]);
        octets.into()
    }

    /// A member's address: subnet 0 of the /48, a host part from its key.
    pub fn member_v6(&self, member: MemberId) -> Ipv6Addr {
        let hash = blake3::derive_key("p2pvm 2026 interface id of a member", &member.0);
        let mut octets = self.ula_prefix().octets();
        octets[8..].copy_from_slice(&hash[..8]);
        octets.into()
    }

    /// The /64 (as an address with a zero host part) that guests configure themselves in: subnet 1
    /// of the /48.
    pub fn vm_prefix(&self) -> Ipv6Addr {
        let mut octets = self.ula_prefix().octets();
        octets[7] = 1;
        octets.into()
    }

    /// The address that a guest gives itself in [`NetworkConfig::vm_prefix`] from its MAC address.
    pub fn vm_v6(&self, vm: VmId) -> Ipv6Addr {
        let mac = vm_mac(vm);
        let mut octets = self.vm_prefix().octets();
        octets[8..].copy_from_slice(&[
            mac[0] ^ 2,
            mac[1],
            mac[2],
            0xff,
            0xfe,
            mac[3],
            mac[4],
            mac[5],
        ]);
        octets.into()
    }
}

/// A VM's MAC address: unicast, locally administered, 46 bits of a hash of its id.
pub fn vm_mac(vm: VmId) -> [u8; 6] {
    let hash = blake3::derive_key("p2pvm 2026 mac address of a vm", &vm.0);
    [
        (hash[0] & 0xfc) | 2,
        hash[1],
        hash[2],
        hash[3],
        hash[4],
        hash[5],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkConfig {
        let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 77, 3, 9), 16).unwrap();
        NetworkConfig::found(&KeyPair::from_seed(&[1; 32]), "lab", subnet, UnixTime(5)).unwrap()
    }

    #[test]
    fn a_network_is_what_its_root_signed() {
        let network = network();
        assert_eq!(network.verify(), Ok(()));
        assert_eq!(network.subnet.to_string(), "10.77.0.0/16");
        for altered in [
            NetworkConfig {
                name: "lap".into(),
                ..network.clone()
            },
            NetworkConfig {
                created: UnixTime(6),
                ..network.clone()
            },
            NetworkConfig {
                id: NetworkId([9; 32]),
                ..network.clone()
            },
            NetworkConfig {
                subnet: Ipv4Subnet {
                    addr: network.subnet.addr,
                    prefix: 30,
                },
                ..network.clone()
            },
        ] {
            assert_eq!(altered.verify(), Err(Refusal::Tampered));
        }
    }

    #[test]
    fn a_subnet_has_a_useful_size_and_no_host_bits() {
        assert_eq!(Ipv4Subnet::new(Ipv4Addr::new(10, 0, 0, 0), 7), None);
        assert_eq!(Ipv4Subnet::new(Ipv4Addr::new(10, 0, 0, 0), 29), None);
        let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 1, 2, 255), 28).unwrap();
        assert_eq!(subnet.addr, Ipv4Addr::new(10, 1, 2, 240));
        assert!(
            subnet.contains(Ipv4Addr::new(10, 1, 2, 250))
                && !subnet.contains(Ipv4Addr::new(10, 1, 2, 239))
        );
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 1, 2, 241));
    }

    #[test]
    fn addresses_follow_from_keys_and_stay_in_the_unique_local_prefix() {
        let network = network();
        let (member, vm) = (
            network.member_v6(MemberId([4; 32])),
            network.vm_v6(VmId([4; 32])),
        );
        for address in [member, vm] {
            assert_eq!(address.octets()[0], 0xfd);
            assert_eq!(address.octets()[..6], network.ula_prefix().octets()[..6]);
        }
        assert_ne!(member.octets()[..8], vm.octets()[..8]);
        assert_eq!(vm_mac(VmId([4; 32]))[0] & 3, 2);
    }
}
