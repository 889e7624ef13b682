//! Where a network's resolver listens on this machine: addresses within 127.64.0.0/10, other ones for each network.

use std::net::Ipv4Addr;

/// How many addresses a network may try: another network of this machine may have the first, by chance.
pub const CHOICES: u8 = 8;

/// The addresses that a network may listen on, the same ones at each start.
pub fn choices(network: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    (0..CHOICES).map(move |choice| {
        // FNV-1a: nobody gains by a collision, and this crate has no other hash that stays the same.
        let bytes = network.bytes().chain([choice]);
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let [.., a, b, c] = (hash ^ (hash >> 29)).to_be_bytes();
        // Neither the first nor the last of anything, and far from what other programs use (127.0.0.53, 127.0.1.1).
        Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn networks_have_loopback_addresses_of_their_own() {
        let all: Vec<Ipv4Addr> = choices("cprzzofgnb").chain(choices("ng6e4yabcd")).collect();
        assert!(all.iter().all(|ip| ip.is_loopback() && (64..128).contains(&ip.octets()[1])), "{all:?}");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), usize::from(CHOICES) * 2);
        assert!(choices("cprzzofgnb").eq(choices("cprzzofgnb")));
    }
}
