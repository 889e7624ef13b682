//! The messages between the state machines of two members: a version byte, then postcard, in the
//! body of a control packet.
//!
//! Every message fits in one packet, so that nothing is reassembled. Lists are bounded; a message
//! with a longer one is refused as a whole.

use super::wire::{Kind, MAX_BODY_LEN, Packet};
use crate::{coordinates::Coordinate, id::MemberId};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
/// How many ids a list has at most. Two lists and the rest of a message fit in [`MAX_BODY_LEN`].
pub const MAX_IDS: usize = 16;

/// How many dead members a list has at most.
pub const MAX_GONE: usize = 4;

/// The roles that a member wants an edge for, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Roles(pub u8);

impl Roles {
    /// The other is one of the nearest on its side.
    pub const NEAR: Self = Self(1);
    /// A far neighbour, drawn by the distance law.
    pub const FAR: Self = Self(2);
    /// A shortcut, for much traffic.
    pub const SHORTCUT: Self = Self(4);
    /// The way into the ring of a joiner, or between two rings.
    pub const SEED: Self = Self(8);

    /// Whether all of `roles` are among these.
    pub fn has(self, roles: Self) -> bool {
        self.0 & roles.0 == roles.0
    }

    /// Adds or takes away `roles`.
    pub fn set(&mut self, roles: Self, on: bool) {
        if on {
            self.0 |= roles.0;
        } else {
            self.0 &= !roles.0;
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The purpose of a [`Message::Locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// The members nearest to its own place.
    Near,
    /// A far neighbour.
    Far,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To a neighbour: I live. The first message on an edge, and its keepalive.
    Hello(Hello),
    /// To a neighbour: the members that I know around you and around me.
    List {
        /// The digest of the sender's near neighbours that this list was made with.
        digest: u32,
        /// Neighbours of the sender, nearest to the receiver first.
        direct: Vec<MemberId>,
        /// Members that the sender knows by hearsay.
        heard: Vec<MemberId>,
        /// Members whose link to the sender died lately.
        gone: Vec<MemberId>,
    },
    /// To a neighbour: send me your list.
    AskList,
    /// Routed to the member closest to a place: which members are there?
    Locate {
        /// Repeated in the answer.
        nonce: u32,
        /// The member that looks up the place.
        origin: MemberId,
        /// What it wants members there for.
        purpose: Purpose,
    },
    /// Answers [`Message::Locate`].
    Found {
        /// The question's id.
        nonce: u32,
        /// The answering member and its neighbours around the place, each with its network
        /// coordinate.
        members: Vec<(MemberId, Option<Coordinate>)>,
    },
    /// To a neighbour: I have too many edges of this role; try this one instead.
    Decline {
        /// The role that has too many.
        role: Roles,
        /// A neighbour of the sender.
        instead: Option<MemberId>,
    },
    /// To a neighbour: I have no use for this edge, or gave it up for dead.
    Bye,
}

/// A keepalive with the state that a neighbour must always know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Grows by one with each hello on this edge.
    pub seq: u32,
    /// The `seq` of the hello that this answers; `None` asks for an answer.
    pub answers: Option<u32>,
    /// Whether the sender is in the ring and carries packets.
    pub joined: bool,
    /// The roles that the sender wants this edge for.
    pub roles: Roles,
    /// The digest of the sender's near neighbours.
    pub digest: u32,
    /// The sender's own estimate of the network's size, from its spacing: eighths of log2.
    pub size: u8,
    /// The sender's network coordinate.
    pub coordinate: Coordinate,
}

impl Message {
    /// The body of a packet with this message.
    pub fn encode(&self) -> Vec<u8> {
        // Room for all of it at once: a keepalive, or ids and coordinates.
        let room = if matches!(self, Self::List { .. } | Self::Found { .. }) {
            MAX_BODY_LEN
        } else {
            128
        };
        let mut body = Vec::with_capacity(room);
        body.push(VERSION);
        postcard::to_extend(self, body).unwrap_or_default()
    }

    /// Reads a message; `None` for another version, nonsense or too much. Never panics.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let message: Self = match body.split_first() {
            Some((&VERSION, rest)) if rest.len() < MAX_BODY_LEN => {
                postcard::from_bytes(rest).ok()?
            }
            _ => return None,
        };
        let longest = match &message {
            Self::List { gone, .. } if gone.len() > MAX_GONE => return None,
            Self::List { direct, heard, .. } => direct.len().max(heard.len()),
            Self::Found { members, .. } => members.len(),
            _ => 0,
        };
        (longest <= MAX_IDS).then_some(message)
    }
}

impl Packet {
    /// Whether it only answers a neighbour's hello, so that no answer follows.
    pub fn is_answer(&self) -> bool {
        self.header.kind == Kind::Control
            && matches!(
                Message::decode(&self.body), Some(Message::Hello(hello)) if hello.answers.is_some()
            )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{position::Position, wire::Header};
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn id() -> impl Strategy<Value = MemberId> {
        any::<[u8; 32]>().prop_map(MemberId)
    }

    fn messages() -> impl Strategy<Value = Message> {
        let ids = || vec(id(), 0..=MAX_IDS);
        prop_oneof![
            any::<(u32, Option<u32>, bool, u8, u32, u8)>().prop_map(
                |(seq, answers, joined, roles, digest, size)| {
                    Message::Hello(Hello {
                        seq,
                        answers,
                        joined,
                        roles: Roles(roles),
                        digest,
                        size,
                        coordinate: Coordinate::default(),
                    })
                }
            ),
            (any::<u32>(), ids(), ids(), vec(id(), 0..=MAX_GONE)).prop_map(
                |(digest, direct, heard, gone)| Message::List {
                    digest,
                    direct,
                    heard,
                    gone
                }
            ),
            Just(Message::AskList),
            (any::<u32>(), id(), any::<bool>()).prop_map(|(nonce, origin, near)| Message::Locate {
                nonce,
                origin,
                purpose: if near { Purpose::Near } else { Purpose::Far }
            }),
            (any::<u32>(), ids(), any::<bool>()).prop_map(|(nonce, ids, known)| {
                let members = ids
                    .into_iter()
                    .map(|id| (id, known.then(Coordinate::default)))
                    .collect();
                Message::Found { nonce, members }
            }),
            (any::<u8>(), proptest::option::of(id())).prop_map(|(role, instead)| {
                Message::Decline {
                    role: Roles(role),
                    instead,
                }
            }),
            Just(Message::Bye),
        ]
    }

    #[test]
    fn after_the_answer_to_a_hello_nothing_is_expected() {
        let hello = |answers| {
            let hello = Hello {
                seq: 1,
                answers,
                joined: true,
                roles: Roles::NEAR,
                digest: 0,
                size: 0,
                coordinate: Coordinate::default(),
            };
            Packet {
                header: Header::new(Kind::Control, Position(1), Position(2)),
                body: Message::Hello(hello).encode(),
            }
        };
        assert!(hello(Some(7)).is_answer() && !hello(None).is_answer());
        let forwarded = Packet {
            header: Header::new(Kind::Datagram, Position(1), Position(2)),
            ..hello(Some(7))
        };
        assert!(
            !forwarded.is_answer(),
            "what others carry in a datagram is not looked into"
        );
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire_and_fits_in_a_packet(message in messages()) {
            let body = message.encode();
            prop_assert!(body.len() <= MAX_BODY_LEN);
            prop_assert_eq!(Message::decode(&body), Some(message));
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        let members = vec![(MemberId([1; 32]), None); MAX_IDS + 1];
        assert_eq!(
            Message::decode(&Message::Found { nonce: 1, members }.encode()),
            None
        );
    }
}
