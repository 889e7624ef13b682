//! The ring: every member reaches every other over few edges, and no member knows all.
//!
//! A member stands on a ring of 2^64 positions at a hash of its key. It keeps three kinds of edges:
//! to the [`NEAR_EACH_SIDE`] members nearest on each side, which alone make routing correct; far
//! ones drawn by the harmonic law, which make it short; and shortcuts to members with much traffic
//! (Brunet: Boykin et al. 2006; Symphony: Manku et al. 2003; Kleinberg 2000). Packets are routed
//! greedily ([`table`]); their content is sealed end to end.
//!
//! **The invariant**, once no member has come, gone or been cut off for long enough: every live
//! member's near edges are its true nearest live members on both sides, and for every place all
//! live members route a closest-packet to the same member, the closest of all. While members come
//! and go it may fail for a while, never silently for good. Neighbours compare their lists whenever
//! they change and with every keepalive ([`near`]). Each member now and then also asks for the
//! member closest to itself along a random edge ([`seek`]), which finds what neighbours cannot: a
//! second ring. A joiner carries packets only once it has its place, so that joins make no hole.
//!
//! A state machine without clock, socket or randomness of its own: the driver passes events in
//! ([`Input`]) and carries out the results ([`Output`]). A peer's statement about a third member is
//! not believed until a link with that member stands; links prove identities.

mod api;
pub mod ask;
mod edges;
mod far;
#[cfg(test)]
mod golden_tests;
mod keepalive;
mod known;
pub mod message;
mod near;
mod neighbour;
mod position;
mod seek;
mod shortcut;
pub mod table;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod wire;

pub use api::{Event, Input, Neighbour, Output, RingOptions, RingStatus};
pub use position::{Node, Position, Range};
pub use table::{RingHop, Table};
pub use wire::{HOP_LIMIT, Header, Kind, Mode, Packet};

use crate::{
    coordinates::{Coordinate, Vivaldi},
    id::MemberId,
};
use edges::{IDLE_EDGE, LINK_LIMIT, PendingEdge};
use known::KnownMembers;
use message::{Message, Roles};
use neighbour::Edge;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

/// How many near neighbours a member has on each side. Reason: two keep the ring whole when one
/// dies, the third while the first repair is under way. With their lists a member knows nine on
/// each side.
pub const NEAR_EACH_SIDE: usize = 3;
/// A member's part of the ring.
pub struct Ring {
    me: Node,
    options: RingOptions,
    rng: StdRng,
    vivaldi: Vivaldi,
    joined: bool,
    was_joined: bool,
    edges: BTreeMap<MemberId, Edge>,
    pending: BTreeMap<MemberId, PendingEdge>,
    known: KnownMembers,
    near: near::NearState,
    seek: seek::SeekState,
    far: far::FarState,
    shortcuts: shortcut::Shortcuts,
    repairs: u64,
    /// Whether neighbours, their roles or their lists have changed since the last plan.
    changed: bool,
    /// Whether our wishes for an edge have changed, so that the other end must be told before the
    /// next timeout.
    hurry: bool,
    /// When the next timeout is due.
    wake: Option<Instant>,
    table: Arc<Table>,
    outputs: VecDeque<Output>,
}

impl Ring {
    /// A member without neighbours. Random values are drawn from `seed`.
    pub fn new(me: MemberId, options: RingOptions, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            me: Node::from(me),
            options,
            vivaldi: Vivaldi::new(rng.random()),
            rng,
            joined: false,
            was_joined: false,
            edges: BTreeMap::new(),
            pending: BTreeMap::new(),
            known: KnownMembers::default(),
            near: near::NearState::default(),
            seek: seek::SeekState::default(),
            far: far::FarState::default(),
            shortcuts: shortcut::Shortcuts::default(),
            repairs: 0,
            changed: false,
            hurry: false,
            wake: None,
            table: Arc::new(Table::new(me, false, [], [])),
            outputs: VecDeque::new(),
        }
    }

    /// Takes an event. The caller then calls [`Ring::poll`] until it returns `None`.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Linked { member, rtt } => self.linked(now, member, rtt),
            Input::Unlinked { member } => self.lose(now, member),
            Input::LinkFailed { member } => self.link_failed(now, member),
            Input::Received { from, packet } => self.received(now, from, packet),
            Input::Traffic(rates) => self.count_traffic(now, rates),
            Input::Places(places) => self.place(places),
            Input::Seed(member) => self.seed(now, member),
            Input::Tick => {}
        }
        if self.changed || self.hurry {
            self.settle(now);
        } else if self.wake.is_some_and(|at| at <= now) {
            // Most timeouts have been delayed since: a neighbour that asked us need not be asked.
            self.wake = self.next_wake();
            if self.wake.is_some_and(|at| at <= now) {
                self.settle(now);
            }
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to pass in [`Input::Tick`] at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        self.wake
    }

    /// The present routing table.
    pub fn table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// Our network coordinate.
    pub fn coordinate(&self) -> Coordinate {
        self.vivaldi.mine()
    }

    /// The present state.
    pub fn status(&self) -> RingStatus {
        let either = |e: &Edge, role| e.mine.has(role) || e.theirs.has(role);
        let mut neighbours: Vec<Neighbour> = (self.edges.values().filter(|e| e.heard))
            .map(|e| Neighbour {
                node: e.node,
                near: e.mine.has(Roles::NEAR),
                far: either(e, Roles::FAR),
                shortcut: either(e, Roles::SHORTCUT),
                leaf: !e.joined,
                rtt: e.rtt,
                coordinate: e.coordinate,
            })
            .collect();
        neighbours.sort_unstable_by_key(|n| n.node);
        RingStatus {
            joined: self.joined,
            was_joined: self.was_joined,
            neighbours,
            pending: self.pending.len(),
            size: self.far.size(),
            far_wanted: self.far.wanted(),
            repairs: self.repairs,
            coordinate: self.vivaldi.mine(),
            coordinate_error: self.vivaldi.error(),
        }
    }

    /// Does everything that is due; cheap when nothing is.
    fn settle(&mut self, now: Instant) {
        self.keep_alive(now);
        self.expire(now);
        let replanned = std::mem::take(&mut self.changed) || self.near.plan_is_due(now);
        if replanned {
            self.plan_near(now);
            self.far.neighbours_changed();
        }
        self.estimate_size(now);
        self.keep_seeking(now);
        self.keep_far(now);
        self.keep_shortcuts(now);
        self.drop_unwanted(now);
        self.tell(now);
        let is_renewed = replanned || self.changed;
        if is_renewed {
            self.renew_table();
        }
        // A release checks a new table only: most timeouts change nothing, and a member with many
        // neighbours has many of them.
        if is_renewed || cfg!(debug_assertions) {
            self.assert_table();
        }
        self.hurry = false;
        // The steps above may have lost or gained a neighbour: plan again at once rather than at
        // the next input.
        self.wake = if self.changed {
            Some(now)
        } else {
            self.next_wake()
        };
    }

    fn next_wake(&self) -> Option<Instant> {
        let edges = self.edges.values().flat_map(|e| {
            [
                Some(e.ask_at),
                e.check_list_at,
                e.idle_since.filter(|_| e.heard).map(|t| t + IDLE_EDGE),
            ]
        });
        let pending = self.pending.values().map(|p| Some(p.since + LINK_LIMIT));
        let parts = [
            self.near.wake_at(),
            self.seek.wake_at(),
            self.far.wake_at().filter(|_| self.joined),
            self.shortcuts.wake_at(),
            self.known.wake_at(),
        ];
        edges.chain(pending).chain(parts).flatten().min()
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn renew_table(&mut self) {
        let (mut members, mut leaves) = (Vec::with_capacity(self.edges.len()), Vec::new());
        for edge in self.edges.values().filter(|e| e.heard) {
            if edge.joined {
                members.push(edge.node)
            } else {
                leaves.push(edge.node)
            }
        }
        let table = Table::of(self.me, self.joined, members, leaves);
        if *self.table != table {
            self.table = Arc::new(table);
            self.outputs
                .push_back(Output::TableChanged(self.table.clone()));
        }
    }

    /// The table has each neighbour that has spoken, and nobody else. Reason: packets are routed by
    /// the table while near neighbours are chosen by the edges. If a change of an edge did not
    /// reach the table, this member would send packets to a dead neighbour, or answer for a place
    /// that is another's, and the ring's own checks would find nothing wrong.
    ///
    /// Builds with debug assertions check it at each timeout too, and so find an edge that changed
    /// without [`Ring::changed`]. Two members at one place have one entry, so no peer can make it
    /// fail.
    fn assert_table(&self) {
        assert!(
            self.table.joined() == self.joined,
            "the table says otherwise whether this member has joined"
        );
        for edge in self.edges.values().filter(|e| e.heard) {
            assert!(
                edge.node.position == self.me.position || self.table.has(&edge.node, edge.joined),
                "an edge to {:?} is missing in the table",
                edge.node
            );
        }
        for (node, carries) in self.table.nodes() {
            let edge = self.edges.get(&node.member);
            assert!(
                edge.is_some_and(|e| e.heard && e.joined == carries),
                "the table has {node:?}, which is no such neighbour"
            );
        }
    }

    /// A member's position, without hashing its id again if it is a neighbour.
    fn place_of(&self, member: &MemberId) -> Position {
        self.edges
            .get(member)
            .map_or_else(|| Position::of(member), |e| e.node.position)
    }

    /// Sends a message to a neighbour over our edge.
    fn send(&mut self, member: MemberId, message: &Message) {
        let header = Header::new(Kind::Control, self.me.position, self.place_of(&member));
        self.outputs.push_back(Output::Send {
            to: member,
            packet: Packet {
                header,
                body: message.encode(),
            },
        });
    }

    /// Takes a packet from a neighbour: for us, or on its way to others.
    fn received(&mut self, now: Instant, from: MemberId, mut packet: Packet) {
        let header = packet.header;
        // Our own packets never come back to us by routing: greedy paths have no loop.
        if header.from == self.me.position {
            return;
        }
        if header.kind == Kind::Trace {
            let rtt = self.edges.get(&from).and_then(|e| e.rtt);
            trace::stamp(&mut packet.body, &self.me.member, rtt);
        }
        let next = self.table.route(&header);
        match (next, header.kind) {
            (RingHop::Via(to), _) if to == from => {}
            (RingHop::Via(to), _) => {
                packet.header.hops_left = header.hops_left.saturating_sub(1);
                self.outputs.push_back(Output::Send { to, packet });
            }
            (RingHop::Here, Kind::Control | Kind::ControlClosest) => {
                if let Some(message) = Message::decode(&packet.body) {
                    self.told(now, from, &header, message);
                }
            }
            (RingHop::Here | RingHop::Nowhere, Kind::Trace) => {
                self.answer_trace(&packet, next == RingHop::Here)
            }
            (RingHop::Here, _) => self.outputs.push_back(Output::Deliver { from, packet }),
            (RingHop::Nowhere, _) => {}
        }
    }

    fn told(&mut self, now: Instant, from: MemberId, header: &Header, message: Message) {
        match message {
            Message::Locate {
                nonce,
                origin,
                purpose,
            } => return self.answer_locate(header, nonce, origin, purpose),
            Message::Found { nonce, members } => return self.found(now, nonce, members),
            _ => {}
        }
        // The other messages are between neighbours: the sender is the neighbour, whose identity
        // the link has proved.
        if header.from != self.place_of(&from) {
            return;
        }
        match message {
            Message::Hello(hello) => self.greeted(now, from, &hello),
            _ if !self.edges.contains_key(&from) => {}
            Message::List {
                digest,
                direct,
                heard,
                gone,
            } => self.listed(now, from, digest, direct, heard, gone),
            Message::AskList => self.asked_for_list(now, from),
            Message::Decline { role, instead } => self.declined(now, from, role, instead),
            Message::Bye => self.bye(now, from),
            Message::Locate { .. } | Message::Found { .. } => {}
        }
    }

    /// Sends a reply to where a routed packet came from.
    fn reply(&mut self, to: &Header, kind: Kind, body: Vec<u8>) {
        let header = to.reply(kind, self.me.position);
        let packet = Packet { header, body };
        // A leaf of our own is reached over its edge, other members over the ring.
        let next = if header.to == self.me.position {
            self.table.route(&header)
        } else {
            self.table.next(header.to, Mode::Exact)
        };
        if let RingHop::Via(to) = next {
            self.outputs.push_back(Output::Send { to, packet });
        }
    }
}
