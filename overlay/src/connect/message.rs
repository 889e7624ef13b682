//! The messages of two connectors, over the control plane's service "link" or as a call over the
//! ring: a version byte, then postcard. Over the ring nothing proves the sender, and everything has
//! to fit into one datagram: the reachability travels sealed in the handshake itself, with the
//! sender's certificate, and neighbours are left out as needed.

use crate::{coordinates::Coordinate, id::MemberId, membership::Certificate, stun::TransactionId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeSet, net::SocketAddr};

const VERSION: u8 = 3;
/// How many addresses a member may offer; further ones are ignored.
pub const MAX_CANDIDATES: usize = 16;
/// How many neighbours a member may name.
pub const MAX_NEIGHBOURS: usize = 64;
/// How many bytes a message has at most.
const MAX_BYTES: usize = 16 << 10;

/// How a member learned an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CandidateKind {
    /// It is on one of its interfaces.
    Local,
    /// Another member saw it (STUN).
    Reflexive,
    /// The router mapped it on request (UPnP, PCP, NAT-PMP).
    Mapped,
    /// A counting NAT is expected to give it to one of the next mappings.
    Predicted,
}

/// An address at which a member's plane may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Candidate {
    /// How the member learned it.
    pub kind: CandidateKind,
    /// UDP address and port.
    pub addr: SocketAddr,
}

/// The NAT or firewall in front of a member, as far as the member can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NatKind {
    /// Not found out yet.
    #[default]
    Unknown,
    /// No NAT: others see its own address.
    Open,
    /// A NAT that gives one mapping for all destinations (RFC 4787: endpoint-independent) and, as
    /// far as known, lets in only packets from the addresses and ports that it wrote to.
    Cone,
    /// A NAT that gives each destination another mapping.
    Symmetric,
    /// UDP does not get through.
    Blocked,
    /// Like a cone, but lets in packets from anywhere once a mapping exists.
    FullCone,
    /// Like a cone, but lets in packets from every port of an address that it wrote to.
    AddressCone,
    /// No NAT, but a firewall that lets in only packets from the addresses and ports that it wrote
    /// to.
    Firewalled,
    /// A NAT that gives each destination another mapping with the next port, which can be guessed.
    Counting,
}

impl std::fmt::Display for NatKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not known yet",
            Self::Open => "none",
            Self::Cone => "cone, port-restricted",
            Self::Symmetric => "symmetric",
            Self::Blocked => "UDP blocked",
            Self::FullCone => "full cone",
            Self::AddressCone => "cone, address-restricted",
            Self::Firewalled => "none, but a firewall",
            Self::Counting => "symmetric, ports count up",
        })
    }
}

impl NatKind {
    /// Whether all destinations see the member at one address, which others can be told beforehand.
    pub fn keeps_its_address(self) -> bool {
        !matches!(self, Self::Symmetric | Self::Counting | Self::Blocked)
    }

    /// Whether packets from every port of a host that it wrote to come in, or from anywhere.
    pub fn hears_every_port(self) -> bool {
        matches!(
            self,
            Self::Unknown | Self::Open | Self::FullCone | Self::AddressCone
        )
    }

    /// Whether two members behind these may reach each other directly when both write at once (RFC
    /// 5128 §3.3, RFC 4787). With an unknown kind it is worth a try.
    ///
    /// If both keep their address: always. If one does not: the other must accept packets from any
    /// port, or the port must be guessed. If neither does: only if both ports are guessed.
    pub fn may_punch(self, other: Self) -> bool {
        if [self, other].contains(&Self::Blocked) {
            return false;
        }
        match (self.keeps_its_address(), other.keeps_its_address()) {
            (true, true) => true,
            (true, false) => self.hears_every_port() || other == Self::Counting,
            (false, true) => other.hears_every_port() || self == Self::Counting,
            (false, false) => self == Self::Counting && other == Self::Counting,
        }
    }
}

/// How to reach a member: its addresses, its NAT, and the members that may relay to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// Its addresses.
    pub candidates: Vec<Candidate>,
    /// The NAT or firewall in front of it.
    pub nat: NatKind,
    /// Members that it is connected to, each with the round trip of the direct link in
    /// milliseconds, if there is one.
    pub neighbours: Vec<(MemberId, Option<u32>)>,
    /// Whether it relays datagrams of others.
    pub relay: bool,
    /// Its network coordinate, once it has one.
    pub coordinate: Option<Coordinate>,
}

impl Reachability {
    /// Whether the member's NAT or addresses have changed; guessed addresses do not count.
    pub fn differs(&self, later: &Self) -> bool {
        let told = |of: &Self| -> BTreeSet<SocketAddr> {
            of.candidates
                .iter()
                .filter(|c| c.kind != CandidateKind::Predicted)
                .map(|c| c.addr)
                .collect()
        };
        self.nat != later.nat || told(self) != told(later)
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Send me your reachability.
    Where,
    /// Make a link: my reachability, and the first message of a handshake.
    Link(Reachability, Vec<u8>),
    /// Send me this STUN answer, which I did not ask for, at this address, from your usual port:
    /// does my NAT let it in?
    Knock(SocketAddr, TransactionId),
    /// As [`Request::Knock`], from a new port, at which STUN requests are then answered for a
    /// while.
    KnockElsewhere(SocketAddr, TransactionId),
    /// Make a link to this member: I want to send through you.
    Relay(MemberId),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// My reachability.
    Here(Reachability),
    /// My reachability, and the second message of the handshake.
    Linked(Reachability, Vec<u8>),
    /// The knock is sent.
    Knocked,
    /// The knock is sent, from this port.
    KnockedFrom(u16),
    /// The link to the member stands; its round trip in milliseconds.
    Relaying(u32),
}

/// A request over the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RingRequest {
    /// Do you live?
    Alive,
    /// Send me your certificate. To be asked before a link to a member whose certificate is
    /// unknown.
    Who,
    /// Make a link: the first message of a handshake, with a sealed [`Introduction`].
    Link(Vec<u8>),
}

/// An answer over the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RingAnswer {
    /// I live.
    Alive,
    /// This is my certificate.
    Me(Box<Certificate>),
    /// The second message of the handshake, with my sealed [`Reachability`].
    Linked(Vec<u8>),
    /// I refuse.
    Refused,
}

/// The statement of a member to another that may not know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its proof of membership, with the link key of the handshake.
    pub certificate: Certificate,
    /// How to reach it.
    pub reachability: Reachability,
}

/// Encodes `message` of `reachability`, dropping its last neighbours, then its last addresses,
/// until the result has at most `limit` bytes.
pub fn encode_within<T: Serialize>(
    limit: usize,
    mut reachability: Reachability,
    message: impl Fn(Reachability) -> T,
) -> Vec<u8> {
    loop {
        let bytes = encode(&message(reachability.clone()));
        if bytes.len() <= limit
            || (reachability.neighbours.pop().is_none() && reachability.candidates.pop().is_none())
        {
            return bytes;
        }
    }
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default()
}

/// Parses a message; `None` for another version or invalid bytes. Never panics.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&VERSION, rest)) if rest.len() <= MAX_BYTES => postcard::from_bytes(rest).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_wire_and_another_version_is_refused() {
        let here = Reachability {
            candidates: vec![Candidate {
                kind: CandidateKind::Reflexive,
                addr: ([192, 0, 2, 1], 7).into(),
            }],
            nat: NatKind::Cone,
            neighbours: vec![(MemberId([3; 32]), Some(20)), (MemberId([4; 32]), None)],
            relay: true,
            coordinate: Some(Coordinate::default()),
        };
        let request = Request::Link(here, vec![1, 2, 3]);
        let mut bytes = encode(&request);
        assert_eq!(decode(&bytes), Some(request));
        bytes[0] += 1;
        assert_eq!(decode::<Request>(&bytes), None);
    }

    #[test]
    fn two_meet_exactly_where_mapping_and_filtering_let_them() {
        use NatKind::*;
        let kept = [Open, FullCone, AddressCone, Cone, Firewalled];
        for a in kept {
            for b in kept {
                assert!(a.may_punch(b), "{a} and {b}");
            }
        }
        for (other, reached) in [
            (Open, true),
            (FullCone, true),
            (AddressCone, true),
            (Cone, false),
            (Firewalled, false),
            (Symmetric, false),
        ] {
            assert_eq!(
                (Symmetric.may_punch(other), other.may_punch(Symmetric)),
                (reached, reached),
                "{other}"
            );
        }
        for other in [Open, FullCone, AddressCone, Cone, Firewalled, Counting] {
            assert!(
                Counting.may_punch(other) && other.may_punch(Counting),
                "{other}"
            );
        }
        assert!(!Counting.may_punch(Symmetric) && !Symmetric.may_punch(Counting));
        assert!(
            !Blocked.may_punch(Open) && !Open.may_punch(Blocked) && Unknown.may_punch(Symmetric)
        );
    }

    #[test]
    fn reachability_is_cut_to_what_a_datagram_holds_neighbours_first() {
        let candidate = |port| Candidate {
            kind: CandidateKind::Local,
            addr: ([192, 0, 2, 1], port).into(),
        };
        let here = Reachability {
            candidates: (1..=16).map(candidate).collect(),
            nat: NatKind::Open,
            neighbours: (0..64)
                .map(|n| (MemberId([n; 32]), Some(u32::from(n))))
                .collect(),
            relay: true,
            coordinate: None,
        };
        let bytes = encode_within(700, here.clone(), |w| w);
        let cut: Reachability = decode(&bytes).unwrap();
        assert!(bytes.len() <= 700 && bytes.len() > 640, "{}", bytes.len());
        assert_eq!(cut.candidates, here.candidates);
        assert_eq!(cut.neighbours, here.neighbours[..cut.neighbours.len()]);
        assert!(encode_within(40, here, |w| w).len() <= 40);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            let _ = (decode::<Request>(&bytes), decode::<Answer>(&bytes));
            let _ = (
                decode::<RingRequest>(&bytes), decode::<RingAnswer>(&bytes),
                decode::<Introduction>(&bytes)
            );
        }
    }
}
