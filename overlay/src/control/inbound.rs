//! Counts inbound connections. Each takes memory, and a descriptor over TCP: one that has proved no
//! membership until its timeout, a proved one for as long as the member likes. Beyond a number, of
//! the unproved and of one peer, new ones are turned away, so that neither a stranger nor a member
//! can exhaust them. A member that is turned away dials again.

use super::address::ip_of;
use libp2p::{
    Multiaddr, PeerId,
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

/// How many connections one peer may have made here. Reason: an honest one has two or three, and
/// for some seconds those that its roaming has left behind.
const MAX_OF_PEER: usize = 32;

#[derive(Debug, thiserror::Error)]
enum LimitError {
    #[error("too many connections wait for their proof of membership")]
    Unproved,
    #[error("the peer has too many connections here")]
    OfPeer,
}

/// See the module.
#[derive(Default)]
pub(super) struct Inbound {
    unproved: HashMap<ConnectionId, Option<IpAddr>>,
    peers: HashMap<ConnectionId, PeerId>,
    /// Whether it was logged that some are turned away.
    told: bool,
}

impl Inbound {
    /// Notes a connection that begins.
    ///
    /// # Errors
    /// If there are too many already.
    pub fn begin(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let from = ip_of(remote).and_then(site_of);
        let of_address = || self.unproved.values().filter(|ip| **ip == from).count();
        if self.unproved.len() >= MAX || from.is_some() && of_address() >= MAX_OF_ADDRESS {
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(%remote, "connections are turned away: too many wait for their \
                    proof of membership");
            }
            return Err(ConnectionDenied::new(LimitError::Unproved));
        }
        self.unproved.insert(id, from);
        Ok(())
    }

    /// Notes whose connection it is: the handshake has shown the peer's key.
    ///
    /// # Errors
    /// If the peer has too many already.
    pub fn established(&mut self, id: ConnectionId, peer: PeerId) -> Result<(), ConnectionDenied> {
        if self.peers.values().filter(|p| **p == peer).count() >= MAX_OF_PEER {
            return Err(ConnectionDenied::new(LimitError::OfPeer));
        }
        self.peers.insert(id, peer);
        Ok(())
    }

    /// Notes that a connection is proved.
    pub fn proved(&mut self, id: ConnectionId) {
        self.unproved.remove(&id);
        self.told &= !self.unproved.is_empty();
    }

    /// Notes that a connection has ended.
    pub fn end(&mut self, id: ConnectionId) {
        self.proved(id);
        self.peers.remove(&id);
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
    fn begun(inbound: &mut Inbound, ids: std::ops::Range<usize>, address: &str) -> usize {
        ids.filter(|id| {
            let id = ConnectionId::new_unchecked(*id);
            inbound.begin(id, &from(address)).is_ok()
        })
        .count()
    }

    #[test]
    fn a_stranger_that_opens_hundreds_leaves_room_for_other_addresses() {
        let mut inbound = Inbound::default();
        assert_eq!(begun(&mut inbound, 0..500, "/ip4/192.0.2.1"), 64);
        assert_eq!(begun(&mut inbound, 500..501, "/ip4/192.0.2.2"), 1);
        let in_one_net = (1000..1500).map(|i| {
            let address = format!("/ip6/2001:db8::{i:x}");
            begun(&mut inbound, i..i + 1, &address)
        });
        assert_eq!(in_one_net.sum::<usize>(), 64);
        assert_eq!(begun(&mut inbound, 2000..2001, "/ip6/2001:db8:0:1::1"), 1);
    }

    #[test]
    fn all_together_are_limited_until_some_end_or_are_proved() {
        let mut inbound = Inbound::default();
        let strangers = (0..1000).map(|i| {
            let address = format!("/ip4/198.51.{}.{}", i / 250, i % 250);
            begun(&mut inbound, i..i + 1, &address)
        });
        assert_eq!(strangers.sum::<usize>(), MAX);
        for id in 0..3 {
            inbound.end(ConnectionId::new_unchecked(id));
            inbound.end(ConnectionId::new_unchecked(id));
        }
        assert_eq!(begun(&mut inbound, 1000..1010, "/ip4/192.0.2.1"), 3);
    }

    #[test]
    fn a_proved_peer_has_so_many_connections_until_some_end() {
        let mut inbound = Inbound::default();
        let id = ConnectionId::new_unchecked;
        let (member, other) = (PeerId::random(), PeerId::random());
        let mut made = 0;
        for n in 0..100 {
            inbound.begin(id(n), &from("/ip4/192.0.2.1")).unwrap();
            made += usize::from(inbound.established(id(n), member).is_ok());
            inbound.proved(id(n));
        }
        assert_eq!(made, MAX_OF_PEER);
        assert!(inbound.established(id(100), other).is_ok());
        inbound.end(id(3));
        assert!(inbound.established(id(101), member).is_ok());
        assert!(inbound.established(id(102), member).is_err());
    }
}
