//! The content of a sealed data datagram: one frame with a 12-byte header (kind, flags, two more
//! bytes, one 8-byte word) and the kind's payload. The word is the two epochs of an IP packet, a
//! ping's token, the receiver of a forwarded datagram, or the position on the ring to which a
//! routed packet goes. Only the last uses the two bytes, for the hops left and its version.

use crate::id::{Epoch, MemberId};
use std::net::{IpAddr, Ipv6Addr};

/// How many bytes precede a frame's payload.
pub const FRAME_HEADER_LEN: usize = 12;

const IP: u8 = 1;
const PING: u8 = 2;
const PONG: u8 = 3;
const KEEPALIVE: u8 = 4;
const FORWARD: u8 = 5;
const MOVED: u8 = 6;
const RING: u8 = 7;
const PIECE: u8 = 16;
/// Flag of an IP frame: passed on by the host that held the destination previously.
const PASSED_ON: u8 = 1;
/// Flag of a forward frame: the word names the sender, not the receiver.
const FROM: u8 = 1;

/// Bit of a path's ping token: the sender's addresses have changed, and the far end should answer
/// by this path from now on.
pub const ROAMED: u64 = 1 << 62;

/// The first bytes of a member's id: enough for a relay to tell its peers apart. The far end proves
/// itself by its session, so a collision can at most misdirect sealed bytes.
pub type ShortId = [u8; 8];

/// The short id of a member.
pub fn short_id(member: &MemberId) -> ShortId {
    std::array::from_fn(|i| member.0[i])
}

/// An epoch as it travels in a frame: 32 bits, saturating (a VM that moves each second gets there
/// in 136 years).
pub fn wire_epoch(epoch: Epoch) -> u32 {
    u32::try_from(epoch.0).unwrap_or(u32::MAX)
}

/// A frame without the packet or datagram that follows its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An IP packet follows.
    Ip {
        /// The epoch under which the sender holds the source address.
        from_epoch: u32,
        /// The epoch under which it believes the destination to be held.
        to_epoch: u32,
        /// Passed on by the destination's previous host.
        passed_on: bool,
    },
    /// Answer with a pong of this token, on the path of this ping.
    Ping(u64),
    /// Answers a ping.
    Pong(u64),
    /// Empty, but sealed: confirms a session or keeps a NAT's mapping.
    Keepalive,
    /// A datagram of another pair's link follows: relay it to this member.
    ForwardTo(ShortId),
    /// A datagram of another pair's link follows: this member sent it.
    ForwardFrom(ShortId),
    /// A packet from neighbour to neighbour over the ring follows, with a header of its own
    /// ([`crate::ring::wire`]).
    Ring {
        /// Its kind and which optional fields it has.
        flags: u8,
        /// How many hops it may still take.
        hops: u8,
        /// The version of the packet.
        version: u8,
        /// Its destination on the ring.
        to: u64,
    },
    /// A part of a frame that did not fit into one datagram follows.
    Piece {
        /// The number of the frame.
        id: u32,
        /// The number of the part.
        index: u8,
        /// How many parts there are.
        count: u8,
    },
    /// This address is now held elsewhere.
    Moved {
        /// The address.
        addr: IpAddr,
        /// Its present holder.
        member: MemberId,
        /// The epoch of that holding.
        epoch: Epoch,
    },
}

impl Frame {
    /// Parses the header, and the whole of a `Moved`. `None` for unknown kinds. Never panics.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word: [u8; 8] = bytes.get(4..FRAME_HEADER_LEN)?.try_into().ok()?;
        let (high, low) = (
            u64::from_be_bytes(word) >> 32,
            u64::from_be_bytes(word) & 0xffff_ffff,
        );
        match (bytes[0], bytes[1]) {
            (IP, flags) => Some(Self::Ip {
                from_epoch: high as u32,
                to_epoch: low as u32,
                passed_on: flags & PASSED_ON != 0,
            }),
            (PING, _) => Some(Self::Ping(u64::from_be_bytes(word))),
            (PONG, _) => Some(Self::Pong(u64::from_be_bytes(word))),
            (KEEPALIVE, _) => Some(Self::Keepalive),
            (FORWARD, flags) if flags & FROM != 0 => Some(Self::ForwardFrom(word)),
            (FORWARD, _) => Some(Self::ForwardTo(word)),
            (RING, flags) => Some(Self::Ring {
                flags,
                hops: bytes[2],
                version: bytes[3],
                to: u64::from_be_bytes(word),
            }),
            (PIECE, _) => Some(Self::Piece {
                id: high as u32,
                index: word[4],
                count: word[5],
            }),
            (MOVED, _) => {
                let rest: &[u8; 48] = bytes
                    .get(FRAME_HEADER_LEN..FRAME_HEADER_LEN + 48)?
                    .try_into()
                    .ok()?;
                let (member, addr) = rest.split_at(32);
                let addr = Ipv6Addr::from(<[u8; 16]>::try_from(addr).ok()?).to_canonical();
                Some(Self::Moved {
                    addr,
                    member: MemberId(member.try_into().ok()?),
                    epoch: Epoch(u64::from_be_bytes(word)),
                })
            }
            _ => None,
        }
    }

    /// Writes the header into the first [`FRAME_HEADER_LEN`] bytes of `out`.
    pub fn write_header(&self, out: &mut [u8]) {
        let mut routing = [0, 0];
        let (kind, flags, word) = match *self {
            Self::Ip {
                from_epoch,
                to_epoch,
                passed_on,
            } => (
                IP,
                if passed_on { PASSED_ON } else { 0 },
                (u64::from(from_epoch) << 32 | u64::from(to_epoch)).to_be_bytes(),
            ),
            Self::Ping(token) => (PING, 0, token.to_be_bytes()),
            Self::Pong(token) => (PONG, 0, token.to_be_bytes()),
            Self::Keepalive => (KEEPALIVE, 0, [0; 8]),
            Self::ForwardTo(member) => (FORWARD, 0, member),
            Self::ForwardFrom(member) => (FORWARD, FROM, member),
            Self::Ring {
                flags,
                hops,
                version,
                to,
            } => {
                routing = [hops, version];
                (RING, flags, to.to_be_bytes())
            }
            Self::Piece { id, index, count } => {
                let [a, b, c, d] = id.to_be_bytes();
                (PIECE, 0, [a, b, c, d, index, count, 0, 0])
            }
            Self::Moved { epoch, .. } => (MOVED, 0, epoch.0.to_be_bytes()),
        };
        out[..4].copy_from_slice(&[kind, flags, routing[0], routing[1]]);
        out[4..FRAME_HEADER_LEN].copy_from_slice(&word);
    }

    /// Whether a frame with this first byte carries data of members, rather than keeping the link.
    pub fn is_data(kind: Option<&u8>) -> bool {
        matches!(kind, Some(&IP | &PIECE))
    }

    /// The whole of a frame that has no packet: header and, for `Moved`, its payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0; FRAME_HEADER_LEN];
        self.write_header(&mut out);
        if let Self::Moved { addr, member, .. } = self {
            out.extend_from_slice(&member.0);
            let addr = match addr {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => *v6,
            };
            out.extend_from_slice(&addr.octets());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            any::<(u32, u32, bool)>().prop_map(|(from_epoch, to_epoch, passed_on)| Frame::Ip {
                from_epoch,
                to_epoch,
                passed_on
            }),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            Just(Frame::Keepalive),
            any::<[u8; 8]>().prop_map(Frame::ForwardTo),
            any::<[u8; 8]>().prop_map(Frame::ForwardFrom),
            any::<(u8, u8, u8, u64)>().prop_map(|(flags, hops, version, to)| Frame::Ring {
                flags,
                hops,
                version,
                to
            }),
            any::<(u32, u8, u8)>().prop_map(|(id, index, count)| Frame::Piece { id, index, count }),
            any::<([u8; 4], [u8; 32], u64)>().prop_map(|(a, m, e)| Frame::Moved {
                addr: a.into(),
                member: MemberId(m),
                epoch: Epoch(e)
            }),
            any::<([u8; 32], u64)>().prop_map(|(m, e)| Frame::Moved {
                addr: "fd00::7".parse().expect("literal"),
                member: MemberId(m),
                epoch: Epoch(e)
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_wire(frame in frames()) {
            prop_assert_eq!(Frame::parse(&frame.to_bytes()), Some(frame));
        }

        #[test]
        fn any_bytes_parse_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0u8..18
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let _ = Frame::parse(&bytes);
        }
    }
}
