//! The network's IPv4 subnet: which addresses may be drawn, in which order, and whether a subnet
//! would hide something that this machine already reaches (a route in its main table).

use rand::{Rng, seq::IndexedRandom};
use serde::{Deserialize, Serialize};
use std::{fmt, io, net::Ipv4Addr, str::FromStr};

/// An IPv4 network: an address whose host bits are zero, and a prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subnet {
    /// The network address.
    pub addr: Ipv4Addr,
    /// How many leading bits name the network, 0 to 32.
    pub prefix: u8,
}

/// The text is no subnet.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a subnet: expected an address and a prefix length of 0 to 32, as in 10.77.0.0/16"
)]
pub struct ParseSubnetError(String);

/// Second octets of 10.0.0.0/8 that common software takes by itself: home routers, Docker swarm,
/// k3s, VPNs, Podman, Kubernetes service and pod networks, cloud defaults.
const CROWDED: [u8; 20] = [
    0, 1, 2, 8, 10, 20, 42, 43, 50, 64, 88, 89, 96, 100, 128, 138, 152, 200, 244, 255,
];

impl Subnet {
    /// The subnet that `addr` lies in. A prefix above 32 counts as 32.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            addr: Ipv4Addr::from_bits(addr.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// Whether `ip` lies within.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & mask(self.prefix) == self.addr.to_bits()
    }

    /// The netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// The last address: every host on the subnet.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | !mask(self.prefix))
    }

    /// The first usable address: every guest's gateway. The daemon answers for it at the guest's
    /// port; nobody claims it.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits().saturating_add(1))
    }

    /// Whether an address may be claimed: inside, and neither network, gateway nor broadcast
    /// address.
    pub fn claimable(&self, ip: Ipv4Addr) -> bool {
        self.contains(ip) && ip != self.addr && ip != self.gateway() && ip != self.broadcast()
    }

    /// How many addresses may be claimed.
    pub fn claimable_count(&self) -> u32 {
        let all = 1u64 << (32 - u32::from(self.prefix.min(32)));
        all.saturating_sub(3).min(u64::from(u32::MAX)) as u32
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.addr.to_bits() & shorter == other.addr.to_bits() & shorter
    }

    /// Every claimable address once, in an order that looks random and differs from draw to draw,
    /// so that concurrent claimers seldom meet and a nearly full subnet is still exhausted: a walk
    /// with a random start and a random stride that shares no factor with the count.
    pub fn draw<R: Rng>(&self, rng: &mut R) -> impl Iterator<Item = Ipv4Addr> + use<R> {
        let count = self.claimable_count();
        let first = self.addr.to_bits().saturating_add(2);
        let (mut at, stride) = if count < 2 {
            (0, 1)
        } else {
            (rng.random_range(0..count), coprime_stride(count, rng))
        };
        (0..count).map(move |_| {
            let drawn = Ipv4Addr::from_bits(first + at);
            at = ((u64::from(at) + u64::from(stride)) % u64::from(count)) as u32;
            drawn
        })
    }

    /// A /16 of 10.0.0.0/8 that neither `routes` nor widespread software uses; `None` if every one
    /// is taken.
    pub fn choose(routes: &[Self], rng: &mut impl Rng) -> Option<Self> {
        let free: Vec<Self> = (0..=255u8)
            .filter(|second| !CROWDED.contains(second))
            .map(|second| Self::new(Ipv4Addr::new(10, second, 0, 0), 16))
            .filter(|subnet| subnet.overlapped_route(routes).is_none())
            .collect();
        free.choose(rng).copied()
    }

    /// The route that this subnet would hide or be hidden by. The default route hides nothing and
    /// does not count.
    pub fn overlapped_route(&self, routes: &[Self]) -> Option<Self> {
        routes
            .iter()
            .find(|route| route.prefix > 0 && self.overlaps(route))
            .copied()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

fn coprime_stride(count: u32, rng: &mut impl Rng) -> u32 {
    loop {
        let stride = rng.random_range(1..count);
        let (mut a, mut b) = (count, stride);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        if a == 1 {
            return stride;
        }
    }
}

/// The IPv4 routes of this machine's main table.
///
/// # Errors
/// `/proc/net/route` cannot be read.
pub fn local_routes() -> io::Result<Vec<Subnet>> {
    Ok(parse_routes(&std::fs::read_to_string("/proc/net/route")?))
}

/// Parses `/proc/net/route`; other lines are skipped.
pub fn parse_routes(text: &str) -> Vec<Subnet> {
    text.lines().skip(1).filter_map(parse_route).collect()
}

fn parse_route(line: &str) -> Option<Subnet> {
    let mut columns = line.split_whitespace();
    let hex = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    let destination = hex(columns.nth(1)?)?;
    let netmask = hex(columns.nth(5)?)?;
    Some(Subnet::new(
        Ipv4Addr::from_bits(destination),
        netmask.leading_ones() as u8,
    ))
}

impl From<(Ipv4Addr, u8)> for Subnet {
    fn from((addr, prefix): (Ipv4Addr, u8)) -> Self {
        Self::new(addr, prefix)
    }
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;
    fn from_str(text: &str) -> Result<Self, ParseSubnetError> {
        let parsed = text.split_once('/').and_then(|(addr, prefix)| {
            let prefix: u8 = prefix.parse().ok().filter(|&p| p <= 32)?;
            Some(Self::new(addr.parse().ok()?, prefix))
        });
        parsed.ok_or_else(|| ParseSubnetError(text.to_owned()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::HashSet;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn the_kernels_routes_are_read_and_the_default_route_hides_nothing() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\t\
                    Mask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\nrubbish\n";
        let routes = parse_routes(text);
        assert_eq!(routes, [subnet("0.0.0.0/0"), subnet("172.17.0.0/16")]);
        assert_eq!(
            subnet("172.16.0.0/12").overlapped_route(&routes),
            Some(subnet("172.17.0.0/16"))
        );
        assert_eq!(subnet("10.9.0.0/16").overlapped_route(&routes), None);
    }

    #[test]
    fn the_chosen_subnet_overlaps_no_route() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let routes = [subnet("10.0.0.0/9"), subnet("0.0.0.0/0")];
        for _ in 0..50 {
            let chosen = Subnet::choose(&routes, &mut rng).unwrap();
            assert!(chosen.addr.octets()[1] >= 128, "{chosen}");
        }
        assert_eq!(Subnet::choose(&[subnet("10.0.0.0/8")], &mut rng), None);
    }

    #[test]
    fn edges_of_a_subnet() {
        let s = subnet("10.7.9.200/28");
        assert_eq!(
            (s.addr, s.gateway(), s.broadcast()),
            (
                "10.7.9.192".parse().unwrap(),
                "10.7.9.193".parse().unwrap(),
                "10.7.9.207".parse().unwrap()
            )
        );
        assert_eq!(
            (s.claimable_count(), s.netmask()),
            (13, "255.255.255.240".parse().unwrap())
        );
        assert!(
            "10.0.0.0/33".parse::<Subnet>().is_err()
                && "10.0.0/8".parse::<Subnet>().is_err()
                && "10.0.0.0".parse::<Subnet>().is_err()
        );
    }

    proptest! {
        #[test]
        fn a_draw_visits_each_claimable_address_once(seed: u64, prefix in 20u8..=32, addr: u32) {
            let s = Subnet::new(Ipv4Addr::from_bits(addr), prefix);
            let drawn: Vec<_> = s.draw(&mut ChaCha8Rng::seed_from_u64(seed)).collect();
            prop_assert_eq!(drawn.len(), s.claimable_count() as usize);
            prop_assert!(drawn.iter().all(|ip| s.claimable(*ip)));
            prop_assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
        }

        #[test]
        fn overlap_is_sharing_an_address(a: u32, b: u32, pa in 0u8..=32, pb in 0u8..=32) {
            let (x, y) = (
                Subnet::new(Ipv4Addr::from_bits(a), pa), Subnet::new(Ipv4Addr::from_bits(b), pb)
            );
            prop_assert_eq!(x.overlaps(&y), x.contains(y.addr) || y.contains(x.addr));
        }
    }
}
