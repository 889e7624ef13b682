//! A routed packet on the wire: one frame of a link, so that the packet is sealed hop by hop and
//! its content end to end.
//!
//! ```text
//! byte 0     1            2          3        4..12  12..20  [8 bytes]  [8 bytes]  rest
//!      kind  type, flags  hops left  version  to     from    agent      leaf       body
//! ```
//! `to` is at the place of the word in every frame of a link. A source that is not in the ring yet
//! names an `agent`: answers go to that neighbour of it, with the source as `leaf`. Nothing in a
//! header is proved: a member can write any `from`. Information from a routed packet is a hint
//! until a link to the member named has proved it.

use super::position::Position;

/// Byte 0 of the frame: the ring's kind among the frames of a link.
pub const FRAME_KIND: u8 = 7;
/// The version that we speak.
pub const VERSION: u8 = 1;
/// How many hops a packet may take. Reason: greedy paths of 10 000 members have fewer than 12; the
/// rest is for rings under repair.
pub const HOP_LIMIT: u8 = 32;
/// The longest header: both optional places present.
pub const MAX_HEADER_LEN: usize = 36;
/// The longest body: a header, this and the outer seal fit in the 1452 bytes of a UDP datagram over
/// IPv6 on Ethernet.
pub const MAX_BODY_LEN: usize = 1384;
/// The offset of the hop count.
const HOPS_AT: usize = 2;

const HAS_AGENT: u8 = 0x10;
const HAS_LEAF: u8 = 0x20;
const TYPE_MASK: u8 = 0x0f;

/// The receiver of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The member at that place only.
    Exact,
    /// The member closest to that place.
    Closest,
}

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sealed datagram of a link between `from` and `to`.
    Datagram,
    /// A message for the ring's state machine at `to`.
    Control,
    /// A message for the state machine of the member closest to `to`; never handed to `from`
    /// itself, even if that is the closest.
    ControlClosest,
    /// A request of a connector: an 8-byte id, then opaque.
    Call,
    /// The answer to a call or a trace: its id, then opaque.
    Answer,
    /// Collects the hops on its way ([`super::trace`]).
    Trace,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Datagram,
        Self::Control,
        Self::ControlClosest,
        Self::Call,
        Self::Answer,
        Self::Trace,
    ];

    fn to_byte(self) -> u8 {
        match self {
            Self::Datagram => 0,
            Self::Control => 1,
            Self::ControlClosest => 2,
            Self::Call => 3,
            Self::Answer => 4,
            Self::Trace => 5,
        }
    }

    /// The receiver of a packet of this kind.
    pub fn mode(self) -> Mode {
        if self == Self::ControlClosest {
            Mode::Closest
        } else {
            Mode::Exact
        }
    }
}

/// The header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// How many hops it may still take.
    pub hops_left: u8,
    /// Where it goes.
    pub to: Position,
    /// Where it comes from.
    pub from: Position,
    /// The neighbour through which `from` is reached, if it is not in the ring yet.
    pub agent: Option<Position>,
    /// The neighbour of `to` that `to` keeps the packet for.
    pub leaf: Option<Position>,
}

/// Bytes that are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than its header says.
    #[error("a ring packet is cut short")]
    Short,
    /// The body is longer than [`MAX_BODY_LEN`].
    #[error("a ring packet is too long")]
    Long,
    /// Another version, kind or flag than we know.
    #[error("a ring packet of another version")]
    Unknown,
}

impl Header {
    /// The header of a new packet.
    pub fn new(kind: Kind, from: Position, to: Position) -> Self {
        Self {
            kind,
            hops_left: HOP_LIMIT,
            to,
            from,
            agent: None,
            leaf: None,
        }
    }

    /// The header of the answer to this packet, which goes back the way that the sender asked for.
    pub fn reply(&self, kind: Kind, me: Position) -> Self {
        let leaf = self.agent.is_some().then_some(self.from);
        Self {
            leaf,
            ..Self::new(kind, me, self.agent.unwrap_or(self.from))
        }
    }

    /// How many bytes it takes.
    pub fn encoded_len(&self) -> usize {
        20 + 8 * (usize::from(self.agent.is_some()) + usize::from(self.leaf.is_some()))
    }

    /// Writes it, and returns how many bytes of `out` it took.
    pub fn write(&self, out: &mut [u8; MAX_HEADER_LEN]) -> usize {
        let flags = if self.agent.is_some() { HAS_AGENT } else { 0 }
            | if self.leaf.is_some() { HAS_LEAF } else { 0 };
        out[..4].copy_from_slice(&[
            FRAME_KIND,
            self.kind.to_byte() | flags,
            self.hops_left,
            VERSION,
        ]);
        let places = [Some(self.to), Some(self.from), self.agent, self.leaf];
        let mut len = 4;
        for place in places.into_iter().flatten() {
            out[len..len + 8].copy_from_slice(&place.0.to_be_bytes());
            len += 8;
        }
        len
    }

    /// Reads a header; what follows it is the body. Never panics.
    ///
    /// # Errors
    /// Why the bytes are no packet.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (&[frame, kind, hops_left, version], mut rest) =
            bytes.split_first_chunk::<4>().ok_or(WireError::Short)?;
        let flags = kind & !TYPE_MASK;
        let known = frame == FRAME_KIND
            && version == VERSION
            && flags & !(HAS_AGENT | HAS_LEAF) == 0
            && hops_left <= HOP_LIMIT;
        let kind = Kind::ALL
            .into_iter()
            .find(|k| k.to_byte() == kind & TYPE_MASK)
            .filter(|_| known)
            .ok_or(WireError::Unknown)?;
        let mut place = || {
            let (word, after) = rest.split_first_chunk::<8>().ok_or(WireError::Short)?;
            rest = after;
            Ok(Position(u64::from_be_bytes(*word)))
        };
        let (to, from) = (place()?, place()?);
        let agent = if flags & HAS_AGENT != 0 {
            Some(place()?)
        } else {
            None
        };
        let leaf = if flags & HAS_LEAF != 0 {
            Some(place()?)
        } else {
            None
        };
        if rest.len() > MAX_BODY_LEN {
            return Err(WireError::Long);
        }
        Ok((
            Self {
                kind,
                hops_left,
                to,
                from,
                agent,
                leaf,
            },
            rest,
        ))
    }
}

/// Takes one hop off a packet in place, as a forwarder does; `false` if it has none left and must
/// be dropped.
pub fn take_hop(packet: &mut [u8]) -> bool {
    match packet.get_mut(HOPS_AT) {
        Some(hops) if *hops > 0 => {
            *hops -= 1;
            true
        }
        _ => false,
    }
}

/// A packet: header and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes and what it is.
    pub header: Header,
    /// At most [`MAX_BODY_LEN`] bytes.
    pub body: Vec<u8>,
}

impl Packet {
    /// The packet's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut header = [0; MAX_HEADER_LEN];
        let len = self.header.write(&mut header);
        [&header[..len], &self.body].concat()
    }

    /// How many bytes it takes.
    pub fn encoded_len(&self) -> usize {
        self.header.encoded_len() + self.body.len()
    }
}

/// Reads a packet. Never panics.
///
/// # Errors
/// Why the bytes are no packet.
pub fn parse(bytes: &[u8]) -> Result<Packet, WireError> {
    let (header, body) = Header::parse(bytes)?;
    Ok(Packet {
        header,
        body: body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = Header> {
        let place = || any::<u64>().prop_map(Position);
        (
            0..Kind::ALL.len(),
            0..=HOP_LIMIT,
            place(),
            place(),
            proptest::option::of(place()),
            proptest::option::of(place()),
        )
            .prop_map(|(kind, hops_left, to, from, agent, leaf)| Header {
                kind: Kind::ALL[kind],
                hops_left,
                to,
                from,
                agent,
                leaf,
            })
    }

    proptest! {
        #[test]
        fn a_packet_survives_the_wire(
            header in headers(), body in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let packet = Packet { header, body };
            let bytes = packet.to_bytes();
            prop_assert_eq!(bytes.len(), packet.encoded_len());
            prop_assert_eq!(parse(&bytes), Ok(packet));
        }

        #[test]
        fn a_packet_cut_within_its_header_is_refused(
            header in headers(), cut in 0usize..MAX_HEADER_LEN
        ) {
            let bytes = Packet { header, body: Vec::new() }.to_bytes();
            if cut < bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Err(WireError::Short));
            }
        }

        #[test]
        fn any_bytes_parse_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), ours: bool
        ) {
            let mut bytes = bytes;
            if ours && bytes.len() > 3 { bytes[0] = FRAME_KIND; bytes[3] = VERSION; }
            if let Ok(packet) = parse(&bytes) {
                prop_assert_eq!(packet.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn an_overlong_body_and_an_impossible_hop_count_are_refused() {
        let header = Header::new(Kind::Call, Position(1), Position(2));
        assert_eq!(
            parse(
                &Packet {
                    header,
                    body: vec![0; MAX_BODY_LEN + 1]
                }
                .to_bytes()
            ),
            Err(WireError::Long)
        );
        let header = Header {
            hops_left: HOP_LIMIT + 1,
            ..header
        };
        assert_eq!(
            parse(
                &Packet {
                    header,
                    body: vec![]
                }
                .to_bytes()
            ),
            Err(WireError::Unknown)
        );
    }

    #[test]
    fn the_last_hop_is_taken_once() {
        let mut bytes = Packet {
            header: Header {
                hops_left: 1,
                ..Header::new(Kind::Trace, Position(1), Position(2))
            },
            body: vec![],
        }
        .to_bytes();
        assert!(take_hop(&mut bytes) && !take_hop(&mut bytes) && !take_hop(&mut []));
        assert_eq!(parse(&bytes).map(|p| p.header.hops_left), Ok(0));
    }

    #[test]
    fn an_answer_to_a_leaf_goes_to_its_agent() {
        let mut asked = Header::new(Kind::Call, Position(1), Position(2));
        assert_eq!(
            asked.reply(Kind::Answer, Position(2)),
            Header::new(Kind::Answer, Position(2), Position(1))
        );
        asked.agent = Some(Position(9));
        let reply = asked.reply(Kind::Answer, Position(2));
        assert_eq!((reply.to, reply.leaf), (Position(9), Some(Position(1))));
    }
}
