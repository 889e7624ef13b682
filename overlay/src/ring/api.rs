//! What goes into the ring's state machine and what comes out.

use super::{
    position::{Node, Position},
    table::Table,
    wire::Packet,
};
use crate::{coordinates::Coordinate, id::MemberId};
use std::{sync::Arc, time::Duration};

/// What a ring may do.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Far neighbours to draw; `None`: log2 of the estimated number of members.
    pub far: Option<usize>,
    /// Shortcuts that this member asks for at most.
    pub max_shortcuts: usize,
    /// Traffic with one member from which on it is worth a shortcut, in bytes per second.
    pub shortcut_above: u64,
    /// Traffic below which a shortcut counts as idle, in bytes per second.
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

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// There is an edge to this member now, whoever asked for it.
    Linked {
        /// The member.
        member: MemberId,
        /// Its round trip, if known.
        rtt: Option<Duration>,
    },
    /// The edge to this member is gone.
    Unlinked {
        /// The member.
        member: MemberId,
    },
    /// The edge that [`Output::Link`] asked for could not be made.
    LinkFailed {
        /// The member.
        member: MemberId,
    },
    /// A neighbour handed this packet over.
    Received {
        /// The neighbour, proved by its link.
        from: MemberId,
        /// The packet, as it was received: its hop is taken off here.
        packet: Packet,
    },
    /// What this member sends to and receives from others now, in bytes per second. A member that
    /// is not named has no traffic.
    Traffic(&'a [(MemberId, u64)]),
    /// Where members with whom we have traffic are in the coordinate space, as they said elsewhere
    /// than on the ring.
    Places(&'a [(MemberId, Coordinate)]),
    /// A member that may be reached from outside of the ring: a bootstrap, a cached peer, a member
    /// of another part of a network that was divided. Makes a member that has not joined join
    /// there, and two rings merge.
    Seed(MemberId),
    /// The time that [`super::Ring::wake_at`] named has come.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Hand this packet to a neighbour.
    Send {
        /// The neighbour.
        to: MemberId,
        /// The packet.
        packet: Packet,
    },
    /// Make an edge to this member and say [`Input::Linked`] or [`Input::LinkFailed`].
    Link {
        /// The member.
        member: MemberId,
        /// Where there is no other way: call it through this neighbour, naming it as our agent.
        /// `None`: route the call as anyone's.
        agent: Option<Position>,
    },
    /// The ring has no use for the edge any more. The link may live on for other reasons; its end
    /// is not to be reported.
    Unlink {
        /// The member.
        member: MemberId,
    },
    /// Route with this table from now on.
    TableChanged(Arc<Table>),
    /// A packet that ends here and that is not the ring's own: a datagram, a call, an answer.
    Deliver {
        /// The neighbour that handed it over.
        from: MemberId,
        /// The packet.
        packet: Packet,
    },
    /// For the log.
    Event(Event),
}

/// What an operator may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This member has its place in the ring and carries packets of others.
    Joined,
    /// No member of the ring is a neighbour any more.
    Alone,
    /// A neighbour did not answer any more.
    Died(MemberId),
    /// A member was found in between that the ring did not know: a repair, or the merge of two
    /// rings.
    Found(MemberId),
}

/// A neighbour as the outside sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Who and where.
    pub node: Node,
    /// One of our nearest.
    pub near: bool,
    /// Drawn by the distance law, by us or by it.
    pub far: bool,
    /// For much traffic, by us or by it.
    pub shortcut: bool,
    /// It has not joined yet.
    pub leaf: bool,
    /// The ring's own measurement.
    pub rtt: Option<Duration>,
    /// Where it says it is.
    pub coordinate: Option<Coordinate>,
}

/// The state of a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct RingStatus {
    /// Whether this member has its place in a ring of two or more.
    pub joined: bool,
    /// Whether it has had one since its start: without neighbours now, it has lost them.
    pub was_joined: bool,
    /// All neighbours that answer, by position.
    pub neighbours: Vec<Neighbour>,
    /// Edges asked for and not made yet.
    pub pending: usize,
    /// Members in the network, estimated from their spacing.
    pub size: f64,
    /// Far neighbours that we want now.
    pub far_wanted: usize,
    /// Near neighbours replaced or found since the start.
    pub repairs: u64,
    /// Where we are in the coordinate space.
    pub coordinate: Coordinate,
    /// Expected relative error of estimates from it.
    pub coordinate_error: f32,
}
