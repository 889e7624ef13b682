//! The loopback addresses of a network's resolver: within 127.64.0.0/10, different for each
//! network.

use crate::links::{Link, links};
use std::net::{IpAddr, Ipv4Addr};

/// How many addresses a network may try.
/// Reason: another network of this machine may have the first, by chance.
pub const CHOICES: u8 = 8;

/// The addresses that a network may listen on, the same ones at each start.
pub fn choices(network: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    (0..CHOICES).map(move |choice| {
        // FNV-1a: nobody gains by a collision, and this crate has no other stable hash.
        let bytes = network.bytes().chain([choice]);
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let [.., a, b, c] = (hash ^ (hash >> 29)).to_be_bytes();
        // Neither the first nor the last address of a block, and far from those that other programs
        // use (127.0.0.53, 127.0.1.1).
        Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254))
    })
}

/// Why no program on this machine reaches a loopback address, and the command that helps; `None` if
/// the loopback interface is right.
pub fn fault() -> Option<(&'static str, &'static str)> {
    let links = links().ok()?;
    fault_of(links.iter().find(|link| link.name == "lo"))
}

fn fault_of(lo: Option<&Link>) -> Option<(&'static str, &'static str)> {
    let is_whole = |(ip, bits): &(IpAddr, u8)| ip.is_ipv4() && ip.is_loopback() && *bits <= 8;
    match lo {
        Some(lo) if !lo.up => Some(("the loopback interface lo is down", "ip link set lo up")),
        Some(lo) if !lo.addresses.iter().any(is_whole) => Some((
            "the loopback interface lo has lost its address 127.0.0.1/8",
            "ip addr add 127.0.0.1/8 dev lo",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn networks_have_loopback_addresses_of_their_own() {
        let all: Vec<Ipv4Addr> = choices("cprzzofgnb").chain(choices("ng6e4yabcd")).collect();
        assert!(
            all.iter()
                .all(|ip| ip.is_loopback() && (64..128).contains(&ip.octets()[1])),
            "{all:?}"
        );
        assert_eq!(
            all.iter().collect::<BTreeSet<_>>().len(),
            usize::from(CHOICES) * 2
        );
        assert!(choices("cprzzofgnb").eq(choices("cprzzofgnb")));
    }

    #[test]
    fn a_broken_loopback_is_named_with_the_command() {
        let lo = |up, address: &str, bits| Link {
            index: 1,
            name: "lo".into(),
            up,
            carrier: up,
            loopback: true,
            mtu: 65536,
            alias: None,
            addresses: vec![(address.parse().unwrap(), bits)],
        };
        assert_eq!(fault_of(Some(&lo(true, "127.0.0.1", 8))), None);
        assert_eq!(
            fault_of(Some(&lo(false, "127.0.0.1", 8))).map(|(_, helps)| helps),
            Some("ip link set lo up")
        );
        assert!(
            fault_of(Some(&lo(true, "::1", 128)))
                .is_some_and(|(_, helps)| helps.starts_with("ip addr add 127.0.0.1/8"))
        );
        assert!(
            fault_of(Some(&lo(true, "127.0.0.1", 32))).is_some(),
            "the resolver's address is not in it"
        );
    }
}
