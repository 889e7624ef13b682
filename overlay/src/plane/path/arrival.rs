//! By which path a datagram came to this node.

use crate::{
    id::MemberId,
    plane::{io::second_port::UdpSource, types::Path},
    ring::Position,
};

/// The path by which a datagram came, as this node sees it.
#[derive(Clone, Copy)]
pub(crate) enum Arrival {
    Udp(UdpSource),
    Relay(MemberId),
    Ring(RingArrival),
    Stream,
}

/// How a datagram came over the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingArrival {
    /// The member to which answers go while the sender has no position of its own.
    pub agent: Option<Position>,
    /// How many neighbours handed it on.
    pub hops: u8,
}

impl Arrival {
    pub fn path(self) -> Path {
        match self {
            Self::Udp(from) => Path::Direct(from.addr),
            Self::Relay(relay) => Path::Relayed(relay),
            Self::Ring(_) => Path::Ring,
            Self::Stream => Path::Stream,
        }
    }

    /// How many links it took over the ring; `None` for other paths.
    pub fn hops(self) -> Option<u8> {
        if let Self::Ring(over) = self {
            Some(over.hops + 1)
        } else {
            None
        }
    }
}
