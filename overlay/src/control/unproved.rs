//! Counts the inbound connections that have proved no membership yet. Each takes memory, and a
//! descriptor over TCP, until the proof or its timeout; beyond a number, of all and of one address,
//! new ones are turned away, so that a stranger can exhaust neither. A member that is turned away
//! dials again.

use super::address::ip_of;
use libp2p::{
    Multiaddr,
    swarm::{ConnectionDenied, ConnectionId},
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

/// How many connections may be unproved at once. Reason: a quarter of the 1024 descriptors that
/// systems commonly give a process.
const MAX: usize = 256;
/// How many of one IPv4 address or IPv6 /64. Reason: a site whose members all return at once, by
/// QUIC and TCP, is behind one.
const MAX_OF_ADDRESS: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("too many connections wait for their proof of membership")]
struct Full;

/// See the module.
#[derive(Default)]
pub(super) struct Unproved {
    by_id: HashMap<ConnectionId, Option<IpAddr>>,
    /// Whether it was logged that some are turned away.
    told: bool,
}

impl Unproved {
    /// Notes a connection that begins.
    ///
    /// # Errors
    /// If there are too many already.
    pub fn begin(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let from = ip_of(remote).and_then(site_of);
        let of_address = || self.by_id.values().filter(|ip| **ip == from).count();
        if self.by_id.len() >= MAX || from.is_some() && of_address() >= MAX_OF_ADDRESS {
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(%remote, "connections are turned away: too many wait for their \
                    proof of membership");
            }
            return Err(ConnectionDenied::new(Full));
        }
        self.by_id.insert(id, from);
        Ok(())
    }

    /// Notes that a connection has ended or is proved.
    pub fn end(&mut self, id: ConnectionId) {
        self.by_id.remove(&id);
        self.told &= !self.by_id.is_empty();
    }
}

/// What the connections of one machine or site have in common; `None` for this host's own, which
/// need no such limit, as for those through a relay, whose address is not known.
fn site_of(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
        v4 => Some(v4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Multiaddr {
        format!("{address}/tcp/4001").parse().unwrap()
    }

    /// How many of so many connections are let begin.
    fn begun(unproved: &mut Unproved, ids: std::ops::Range<usize>, address: &str) -> usize {
        ids.filter(|id| {
            let id = ConnectionId::new_unchecked(*id);
            unproved.begin(id, &from(address)).is_ok()
        })
        .count()
    }

    #[test]
    fn a_stranger_that_opens_hundreds_leaves_room_for_other_addresses() {
        let mut unproved = Unproved::default();
        assert_eq!(begun(&mut unproved, 0..500, "/ip4/192.0.2.1"), 64);
        assert_eq!(begun(&mut unproved, 500..501, "/ip4/192.0.2.2"), 1);
        let in_one_net = (1000..1500).map(|i| {
            let address = format!("/ip6/2001:db8::{i:x}");
            begun(&mut unproved, i..i + 1, &address)
        });
        assert_eq!(in_one_net.sum::<usize>(), 64);
        assert_eq!(begun(&mut unproved, 2000..2001, "/ip6/2001:db8:0:1::1"), 1);
    }

    #[test]
    fn all_together_are_limited_until_some_end_or_are_proved() {
        let mut unproved = Unproved::default();
        let strangers = (0..1000).map(|i| {
            let address = format!("/ip4/198.51.{}.{}", i / 250, i % 250);
            begun(&mut unproved, i..i + 1, &address)
        });
        assert_eq!(strangers.sum::<usize>(), MAX);
        for id in 0..3 {
            unproved.end(ConnectionId::new_unchecked(id));
            unproved.end(ConnectionId::new_unchecked(id));
        }
        assert_eq!(begun(&mut unproved, 1000..1010, "/ip4/192.0.2.1"), 3);
    }
}
