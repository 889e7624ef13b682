//! A block of IP addresses in the usual notation, such as `192.168.7.0/24`, `10.1.2.3` or
//! `fd00::/8`.

use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, u8)", into = "(IpAddr, u8)")]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

/// A text that is no block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address block: write it as 192.168.7.0/24, with no host bits set")]
pub struct ParseCidrError(String);

fn bits(addr: &IpAddr) -> (u128, u8) {
    match addr {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Cidr {
    /// The block of `addr` and its first `prefix` bits; `None` for too many of them, or host bits
    /// that are set.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        let (value, width) = bits(&addr);
        (prefix <= width && value & !mask(prefix) == 0).then_some(Self { addr, prefix })
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// How many bits are shared.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `addr` is one of them.
    pub fn contains(&self, addr: &IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4()
            && (bits(&self.addr).0 ^ bits(addr).0) & mask(self.prefix) == 0
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.prefix <= other.prefix {
            self.contains(&other.addr)
        } else {
            other.contains(&self.addr)
        }
    }
}

impl TryFrom<(IpAddr, u8)> for Cidr {
    type Error = ParseCidrError;
    fn try_from((addr, prefix): (IpAddr, u8)) -> Result<Self, ParseCidrError> {
        Self::new(addr, prefix).ok_or_else(|| ParseCidrError(format!("{addr}/{prefix}")))
    }
}

impl From<Cidr> for (IpAddr, u8) {
    fn from(cidr: Cidr) -> Self {
        (cidr.addr, cidr.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;
    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let failed = || ParseCidrError(text.to_owned());
        match text.split_once('/') {
            Some((addr, prefix)) => {
                let prefix = Some(prefix)
                    .filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|p| p.parse().ok());
                Self::new(
                    addr.parse().map_err(|_| failed())?,
                    prefix.ok_or_else(failed)?,
                )
                .ok_or_else(failed)
            }
            None => {
                let addr: IpAddr = text.parse().map_err(|_| failed())?;
                Self::new(addr, bits(&addr).1).ok_or_else(failed)
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_are_read_and_host_bits_are_not_accepted() {
        let block: Cidr = "192.168.7.0/24".parse().unwrap();
        assert!(
            block.contains(&"192.168.7.255".parse().unwrap())
                && !block.contains(&"192.168.8.0".parse().unwrap())
        );
        assert_eq!(
            "10.1.2.3".parse::<Cidr>().unwrap().to_string(),
            "10.1.2.3/32"
        );
        assert!(
            "fd00::/8"
                .parse::<Cidr>()
                .unwrap()
                .contains(&"fd12::1".parse().unwrap())
        );
        assert!(
            !"0.0.0.0/0"
                .parse::<Cidr>()
                .unwrap()
                .contains(&"::1".parse().unwrap())
        );
        for bad in [
            "192.168.7.1/24",
            "1.2.3.4/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "lab",
            "/8",
            "",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn blocks_overlap_when_one_holds_the_others_first_address(
            a: u32, b: u32, pa in 0u8..=32, pb in 0u8..=32
        ) {
            let block = |bits: u32, prefix: u8| Cidr::new(
                IpAddr::from((bits & (mask(prefix) >> 96) as u32).to_be_bytes()), prefix
            ).unwrap();
            let (x, y) = (block(a, pa), block(b, pb));
            prop_assert_eq!(x.overlaps(&y), x.contains(&y.addr()) || y.contains(&x.addr()));
            prop_assert_eq!(x.to_string().parse::<Cidr>().unwrap(), x);
        }
    }
}
