//! The limits of the dashboard's callers: how often one source may ask or show a wrong token, and
//! how often all callers together may use one token.

use crate::http::{
    caller::WIDE,
    rate::{Buckets, Rate},
};
use p2pvm_api::Role;
use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// How many sources have buckets of their own. Reason: a network of some hundred members, each with
/// a browser.
const MOST_SOURCES: usize = 1024;
/// The wrong tokens of one source: ten at once, then one in six seconds.
const WRONG_TOKENS: Rate = Rate::new(10, Duration::from_secs(6));
/// The requests of one source. Reason: a page asks once a second, and loads a dozen files at once.
const REQUESTS: Rate = Rate::new(100, Duration::from_millis(20));
/// The requests with one token, from all sources. Reason: a hundred open pages.
const OF_TOKEN: Rate = Rate::new(200, Duration::from_millis(10));
/// How many bits of an IPv6 address outside the network tell sources apart. Reason: one host has
/// all addresses of a /64.
const V6_BITS: u32 = 64;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The unix socket.
    Local,
    /// An address; of IPv6 outside the network only its prefix.
    Address(IpAddr),
}

impl Source {
    /// A connection from an address of the network. Reason: a member has only addresses that it
    /// claimed.
    pub fn in_network(address: IpAddr) -> Self {
        Self::Address(address)
    }

    /// A connection from elsewhere, as on a LAN.
    pub fn outside(address: IpAddr) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => {
                let prefix = v6.to_bits() & (u128::MAX << (128 - V6_BITS));
                IpAddr::V6(Ipv6Addr::from_bits(prefix))
            }
            v4 => v4,
        };
        Self::Address(address)
    }
}

/// The limits of the dashboard.
pub struct Limits {
    wrong_tokens: Buckets<Source>,
    requests: Buckets<Source>,
    with_operators: Buckets<()>,
    with_readers: Buckets<()>,
    wide_of_operators: Buckets<()>,
    wide_of_readers: Buckets<()>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wrong_tokens: Buckets::new(WRONG_TOKENS, MOST_SOURCES),
            requests: Buckets::new(REQUESTS, MOST_SOURCES),
            with_operators: Buckets::new(OF_TOKEN, 1),
            with_readers: Buckets::new(OF_TOKEN, 1),
            wide_of_operators: Buckets::new(WIDE, 1),
            wide_of_readers: Buckets::new(WIDE, 1),
        }
    }
}

impl Limits {
    /// Counts a request of a source.
    pub fn request(&self, source: Source) -> Result<(), Duration> {
        self.requests.take(source)
    }

    /// Counts a wrong token of a source.
    pub fn wrong_token(&self, source: Source) -> Result<(), Duration> {
        self.wrong_tokens.take(source)
    }

    /// Counts a request of a role that asks every member of the network.
    pub fn wide(&self, role: &Role) -> Result<(), Duration> {
        match role {
            Role::Operator => self.wide_of_operators.take(()),
            _ => self.wide_of_readers.take(()),
        }
    }

    /// Counts a request with the token of a role.
    pub fn with_token(&self, role: &Role) -> Result<(), Duration> {
        match role {
            Role::Operator => self.with_operators.take(()),
            _ => self.with_readers.take(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_on_a_lan_is_one_source_with_all_its_addresses() {
        let of = |text: &str| Source::outside(text.parse().unwrap());
        assert_eq!(of("fd00:1:2:3::1"), of("fd00:1:2:3:ffff::9"));
        assert_ne!(of("fd00:1:2:3::1"), of("fd00:1:2:4::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        let member = |text: &str| Source::in_network(text.parse().unwrap());
        assert_ne!(member("fd00:1:2:3::1"), member("fd00:1:2:3::2"));
    }

    #[test]
    fn a_reader_that_asks_too_often_keeps_no_operator_waiting() {
        let limits = Limits::default();
        let asked = (0..100).take_while(|_| limits.wide(&Role::Reader).is_ok());
        assert!(asked.count() < 100);
        assert_eq!(limits.wide(&Role::Operator), Ok(()));
    }
}
