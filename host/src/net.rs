//! A block of IPv4 addresses, as routes and firewall rules name it.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Addresses that share their first bits; host bits are never set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Net {
    addr: Ipv4Addr,
    prefix: u8,
}

/// The text is no block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no block of IPv4 addresses")]
pub struct ParseNetError(String);

impl Net {
    /// The block that `addr` is in; a prefix above 32 counts as 32.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            addr: Ipv4Addr::from_bits(addr.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// The first address.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// How many bits are shared.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `addr` is one of them.
    pub fn contains(&self, addr: &Ipv4Addr) -> bool {
        (self.addr.to_bits() ^ addr.to_bits()) & mask(self.prefix) == 0
    }

    /// Whether all addresses of `other` are among these.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(&other.addr)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Net {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let (addr, prefix) = text.split_once('/').unwrap_or((text, "32"));
        match (addr.parse(), prefix.parse()) {
            (Ok(addr), Ok(prefix @ 0..=32)) => Ok(Self::new(addr, prefix)),
            _ => Err(ParseNetError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Net {
    type Error = ParseNetError;

    fn try_from(text: String) -> Result<Self, ParseNetError> {
        text.parse()
    }
}

impl From<Net> for String {
    fn from(net: Net) -> Self {
        net.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_block_is_read_as_written_and_holds_its_own_addresses(
            bits: u32, prefix in 0u8..=32, other: u32
        ) {
            let net = Net::new(Ipv4Addr::from_bits(bits), prefix);
            prop_assert_eq!(net.to_string().parse(), Ok(net));
            prop_assert!(net.contains(&Ipv4Addr::from_bits(bits)));
            let host = Net::new(Ipv4Addr::from_bits(other), 32);
            prop_assert_eq!(net.contains(&host.addr()), net.covers(&host));
            prop_assert!(Net::new(net.addr(), 0).covers(&net) && net.overlaps(&net));
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/8",
            "10.0.0.0/-1",
            "10.0.0.0/",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}
