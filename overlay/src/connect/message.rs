//! What two connectors say to each other, over the control plane's service "link" or as a call over
//! the ring: a version byte, then postcard. Over the ring nothing proves who speaks, and everything
//! fits into one datagram: whereabouts travel sealed in the handshake itself, with the sender's
//! certificate, and neighbours are left out as far as need be.

use crate::{coordinates::Coordinate, id::MemberId, membership::Certificate, stun::TransactionId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeSet, net::SocketAddr};

const VERSION: u8 = 3;
/// Addresses that a member may offer; the rest is not looked at.
pub const MAX_CANDIDATES: usize = 16;
/// Neighbours that a member may name.
pub const MAX_NEIGHBOURS: usize = 64;
/// Nothing in this protocol is longer.
const MAX_BYTES: usize = 16 << 10;

/// How a member came to know an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CandidateKind {
    /// It stands on one of its interfaces.
    Local,
    /// Another member saw it (STUN).
    Reflexive,
    /// The router was asked to map it (UPnP, PCP, NAT-PMP).
    Mapped,
    /// A NAT that counts is expected to give it to one of the next mappings.
    Predicted,
}

/// An address at which a member's plane may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Candidate {
    /// Whence it is known.
    pub kind: CandidateKind,
    /// UDP address and port.
    pub addr: SocketAddr,
}

/// What stands between a member and the others, as far as it can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NatKind {
    /// Not found out yet.
    #[default]
    Unknown,
    /// Nothing: its own address is what others see.
    Open,
    /// A NAT that gives one mapping for all destinations (RFC 4787: endpoint-independent) and, as
    /// far as known, lets in only the very addresses and ports that were written to.
    Cone,
    /// A NAT that gives each destination another mapping.
    Symmetric,
    /// UDP does not get through.
    Blocked,
    /// Like a cone, but lets in everybody once a mapping is there.
    FullCone,
    /// Like a cone, but lets in every port of an address that was written to.
    AddressCone,
    /// No NAT, but a firewall that lets in only the very addresses and ports that were written to.
    Firewalled,
    /// A NAT that gives each destination another mapping, whose ports count up: the next can be
    /// guessed.
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
    /// Whether all destinations see it at one address, which can be told to others beforehand.
    pub fn keeps_its_address(self) -> bool {
        !matches!(self, Self::Symmetric | Self::Counting | Self::Blocked)
    }

    /// Whether it hears every port of a host that it has written to, or everybody.
    pub fn hears_every_port(self) -> bool {
        matches!(
            self,
            Self::Unknown | Self::Open | Self::FullCone | Self::AddressCone
        )
    }

    /// Whether two members behind these may reach each other directly when both write at once (RFC
    /// 5128 §3.3, RFC 4787). Unknown: worth a try.
    ///
    /// Both at an address known beforehand: always. One of them elsewhere than expected: the other
    /// must hear it from any port, or the port must have been guessed. Neither: only if both are
    /// guessed.
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

/// Where a member can be reached, and through whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Its addresses.
    pub candidates: Vec<Candidate>,
    /// What stands before it.
    pub nat: NatKind,
    /// Members it is connected with, and the round trip of the direct link in milliseconds where
    /// there is one.
    pub neighbours: Vec<(MemberId, Option<u32>)>,
    /// Whether it passes on datagrams of others.
    pub relay: bool,
    /// Where it stands by round trips, once it knows.
    pub coordinate: Option<Coordinate>,
}

impl Whereabouts {
    /// Whether the member is reached otherwise than it was, guesses aside.
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
    /// Where are you?
    Where,
    /// Let us link: my whereabouts, and the first message of a handshake.
    Link(Whereabouts, Vec<u8>),
    /// Send this STUN answer, which I did not ask for, to me at this address, from your usual port:
    /// does my NAT let it in?
    Knock(SocketAddr, TransactionId),
    /// The same from a port of its own, at which STUN requests are then answered for a while.
    KnockElsewhere(SocketAddr, TransactionId),
    /// Have a link to this member, I want to send through you.
    Relay(MemberId),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Here I am.
    Here(Whereabouts),
    /// My whereabouts, and the second message of the handshake.
    Linked(Whereabouts, Vec<u8>),
    /// It is sent.
    Knocked,
    /// It is sent, from this port.
    KnockedFrom(u16),
    /// The link is there; its round trip in milliseconds.
    Relaying(u32),
}

/// A request over the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RingRequest {
    /// Are you there?
    Alive,
    /// Who are you? To be asked before a link to a member whose certificate is not known.
    Who,
    /// Let us link: the first message of a handshake, with a sealed [`Introduction`].
    Link(Vec<u8>),
}

/// An answer over the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RingAnswer {
    /// I am.
    Alive,
    /// This is my certificate.
    Me(Box<Certificate>),
    /// The second message of the handshake, with my sealed [`Whereabouts`].
    Linked(Vec<u8>),
    /// I will not.
    Refused,
}

/// What a member says of itself to one that may never have heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its proof of membership, with the link key of the handshake.
    pub certificate: Certificate,
    /// Where it is.
    pub whereabouts: Whereabouts,
}

/// Encodes what `message` makes of `whereabouts`, leaving out its last neighbours, then its last
/// addresses, until it has at most `limit` bytes.
pub fn encode_within<T: Serialize>(
    limit: usize,
    mut whereabouts: Whereabouts,
    message: impl Fn(Whereabouts) -> T,
) -> Vec<u8> {
    loop {
        let bytes = encode(&message(whereabouts.clone()));
        if bytes.len() <= limit
            || (whereabouts.neighbours.pop().is_none() && whereabouts.candidates.pop().is_none())
        {
            return bytes;
        }
    }
}

/// Bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default()
}

/// Reads a message; `None` for another version or nonsense. Never panics.
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
        let here = Whereabouts {
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
    fn two_reach_each_other_exactly_where_the_rules_of_mapping_and_filtering_let_them() {
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
    fn whereabouts_are_cut_to_what_a_datagram_holds_neighbours_first() {
        let candidate = |port| Candidate {
            kind: CandidateKind::Local,
            addr: ([192, 0, 2, 1], port).into(),
        };
        let here = Whereabouts {
            candidates: (1..=16).map(candidate).collect(),
            nat: NatKind::Open,
            neighbours: (0..64)
                .map(|n| (MemberId([n; 32]), Some(u32::from(n))))
                .collect(),
            relay: true,
            coordinate: None,
        };
        let bytes = encode_within(700, here.clone(), |w| w);
        let cut: Whereabouts = decode(&bytes).unwrap();
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
