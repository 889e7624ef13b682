//! The inputs and outputs of the ring's state machine.

use super::{
    position::{Node, Position},
    table::Table,
    wire::Packet,
};
use crate::{coordinates::Coordinate, id::MemberId};
use std::{sync::Arc, time::Duration};

/// The limits of a ring.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// How many far neighbours to draw; `None` for log2 of the estimated number of members.
    pub far: Option<usize>,
    /// How many shortcuts this member asks for at most.
    pub max_shortcuts: usize,
    /// How many bytes a second with one member are worth a shortcut.
    pub shortcut_above: u64,
    /// How many bytes a second leave a shortcut idle.
    pub shortcut_below: u64,
}

impl Default for RingOptions {
    fn default() -> Self {
        // A shell or a ping stays on the ring, a copy or a call does not.
        Self {
            far: None,
            max_shortcuts: 16,
            shortcut_above: 8_000,
            shortcut_below: 1_000,
        }
    }
}

/// An event.
#[derive(Debug)]
pub enum Input<'a> {
    /// There is an edge to this member now, whichever side asked for it.
    Linked {
        /// The other end.
        member: MemberId,
        /// Its round trip, if known.
        rtt: Option<Duration>,
    },
    /// The edge to this member is gone.
    Unlinked {
        /// The other end.
        member: MemberId,
    },
    /// The edge that [`Output::Link`] asked for could not be made.
    LinkFailed {
        /// The other end.
        member: MemberId,
    },
    /// A neighbour handed this packet over.
    Received {
        /// The neighbour, proved by its link.
        from: MemberId,
        /// The packet as received; the ring takes the hop off.
        packet: Packet,
    },
    /// The present traffic with other members, in bytes per second. A member that is not named has
    /// none.
    Traffic(&'a [(MemberId, u64)]),
    /// The coordinates of members with traffic, as they gave them outside of the ring.
    Places(&'a [(MemberId, Coordinate)]),
    /// A member to reach from outside of the ring: a bootstrap, a cached peer, a member of another
    /// part of a divided network. A member that has not joined then joins there, and two rings
    /// merge.
    Seed(MemberId),
    /// The time that [`super::Ring::wake_at`] named has come.
    Tick,
}

/// A thing to do.
#[derive(Debug)]
pub enum Output {
    /// Hand this packet to a neighbour.
    Send {
        /// The other end of one of our edges.
        to: MemberId,
        /// Its header and body.
        packet: Packet,
    },
    /// Make an edge to this member and say [`Input::Linked`] or [`Input::LinkFailed`].
    Link {
        /// The other end.
        member: MemberId,
        /// The neighbour to call it through, named as our agent, if there is no other way. `None`
        /// routes the call as usual.
        agent: Option<Position>,
    },
    /// The ring has no use for the edge any more. The link may stay for other reasons; its end need
    /// not be reported.
    Unlink {
        /// The other end.
        member: MemberId,
    },
    /// Route with this table from now on.
    TableChanged(Arc<Table>),
    /// A packet for this member that is not the ring's own: a datagram, a call, an answer.
    Deliver {
        /// The neighbour that handed it over.
        from: MemberId,
        /// Its header and body.
        packet: Packet,
    },
    /// For the log.
    Event(Event),
}

/// An event for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This member has its place in the ring and carries packets of others.
    Joined,
    /// This member has no neighbour on the ring any more.
    Alone,
    /// A neighbour no longer answers.
    Died(MemberId),
    /// A member was found that the ring should have known: a repair, or the merge of two rings.
    Found(MemberId),
}

/// A neighbour, for other modules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// The member and its position.
    pub node: Node,
    /// Whether it is one of our nearest.
    pub near: bool,
    /// Whether it was drawn by the distance law, by either side.
    pub far: bool,
    /// Whether it is a shortcut of either side.
    pub shortcut: bool,
    /// Whether it is still joining.
    pub leaf: bool,
    /// The round trip that the ring measured.
    pub rtt: Option<Duration>,
    /// Its network coordinate, as it says.
    pub coordinate: Option<Coordinate>,
}

/// The state of a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct RingStatus {
    /// Whether this member has its place in a ring of two or more.
    pub joined: bool,
    /// Whether it has had one since its start; if it has no neighbours now, it has lost them.
    pub was_joined: bool,
    /// All neighbours that answer, by position.
    pub neighbours: Vec<Neighbour>,
    /// Edges asked for and not made yet.
    pub pending: usize,
    /// The estimated number of members in the network.
    pub size: f64,
    /// How many far neighbours we want now.
    pub far_wanted: usize,
    /// How many near neighbours were replaced or found since the start.
    pub repairs: u64,
    /// Our network coordinate.
    pub coordinate: Coordinate,
    /// The expected relative error of estimates from it.
    pub coordinate_error: f32,
}
