//! Decides which members to stay connected to: in a small network all; in a large one the nearest,
//! the ring's neighbours (or, as long as there is no ring, one far member in each doubling of the
//! distance), and the members this node talks to. The end that made a connection closes it when
//! neither needs it. Lookups of this node's own place and of random ones keep the address book
//! fresh.
//!
//! A state machine without socket, clock or randomness of its own, as the ring is. The driver
//! passes events to [`Mesh::handle`], twice a second [`Input::Tick`], and then carries out what
//! [`Mesh::poll`] returns, until that is `None`. It answers each [`Action::Dial`] with
//! [`Input::Dialled`] or [`Input::NoAddress`] before it polls again: the answer counts in the next
//! decision.

mod upkeep;

pub use upkeep::PART_TIMEOUT;

use super::{
    super::{
        address::{ip_of, is_relayed, member_of, peer_of},
        book::Book,
        wire::Contact,
    },
    link::{Attempt, FIRST_BACKOFF, LAST_BACKOFF, Link},
};
use crate::id::{MemberId, RingAddr};
use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use rand::{SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// How many of the nearest members stay connected beyond the full mesh. Reason: twice the replicas
/// of a record, so that the replicas of the records held here are all connected.
const NEAR: usize = 10;
/// How many far members stay connected as long as no ring gives them.
const FAR: usize = 8;
/// How long one selection of unreachable members is tried before the next.
const ROUND: Duration = Duration::from_secs(30);
/// How long before a member reached through a relay is dialled directly again; shorter if it says
/// that all members can reach it.
const DIRECT_RETRY: Duration = Duration::from_secs(30);
const DIRECT_RETRY_HIDDEN: Duration = Duration::from_secs(600);
/// How many dials of wanted members may be under way before the next waits. Reason: joining a large
/// network must not start hundreds at once. Dials for waiting callers do not count.
const MAX_WANTED_DIALS: usize = 16;
/// How long before the addresses given at the start are dialled again if no member is connected.
const BOOTSTRAP_EVERY: Duration = Duration::from_secs(10);
/// How long the end with the greater id waits for the other to dial when both have just learned of
/// each other. Reason: two dials make two connections.
const LET_THE_OTHER_DIAL: Duration = Duration::from_secs(3);
/// How many failures a peer that proved no membership counts as, at least.
const FAILURES_IF_REFUSED: u32 = 5;
/// How long after a move lost members are dialled without delay.
const HASTE: Duration = Duration::from_secs(10);
/// How long one after the other two connections may have been made to count as made by both ends at
/// once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// An event.
pub enum Input<'a> {
    /// Time has passed.
    Tick(&'a View<'a>),
    /// A connection is established; its peer has not proved its membership yet.
    Established {
        peer: PeerId,
        id: ConnectionId,
        /// Where the peer is, or the circuit that leads to it.
        address: Multiaddr,
        /// This end dialled.
        dialled: bool,
    },
    /// The peer has proved its membership.
    Proved {
        peer: PeerId,
        id: ConnectionId,
    },
    /// The peer has proved no membership, and no other connection to it is proved.
    Refused(MemberId),
    Closed {
        peer: PeerId,
        id: ConnectionId,
    },
    /// A stream is opened on the connection.
    Opened {
        peer: PeerId,
        id: ConnectionId,
    },
    /// The connection answers again, or does not answer in time.
    Sounded {
        peer: PeerId,
        id: ConnectionId,
        lives: bool,
    },
    /// The member is being dialled; `None` if libp2p refused to.
    Dialled {
        member: MemberId,
        id: Option<ConnectionId>,
    },
    /// A wanted member cannot be dialled: no address of it is known.
    NoAddress(MemberId),
    DialFailed {
        member: MemberId,
        id: ConnectionId,
    },
    /// A newer contact of the member has come; whether an older one was known.
    NewContact {
        member: MemberId,
        was_known: bool,
    },
    /// A lookup has brought a newer contact of the member.
    Found(MemberId),
    /// Circuits lead over the direct connection to this peer.
    Relaying(PeerId),
    /// This host has moved.
    Moved,
    /// A member has agreed that the connections to it end.
    Parted {
        member: MemberId,
        view: &'a View<'a>,
    },
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dial a wanted member, and answer.
    Dial(MemberId),
    /// Dial the addresses at which the member needs no relay, beside the circuit to it.
    DialDirectly {
        member: MemberId,
        peer: PeerId,
    },
    /// Dial the addresses given at the start.
    DialBootstrap,
    /// Look up where a wanted member is.
    LookUp(MemberId),
    /// The last dial of a member has failed, and nothing else leads to it.
    Unreachable(MemberId),
    Close(ConnectionId),
    /// Ask the member whether the connections to it may end.
    AskToPart(MemberId),
    /// The other end has kept the connections: serve the callers that waited meanwhile.
    Reopen(MemberId),
    /// Never drop these members from the address book.
    Pin(BTreeSet<MemberId>),
    /// Look the place up, to refresh the address book.
    Refresh(RingAddr),
    /// Ask the member for a sign of life.
    Probe(MemberId),
}

/// The node's state at the moment of a decision.
pub struct View<'a> {
    /// Whether the network has more members than keep a full mesh.
    pub is_large: bool,
    /// The members to be connected with ([`wanted`]).
    pub wanted: Vec<MemberId>,
    /// Whether the address book has the member.
    pub is_known: &'a dyn Fn(MemberId) -> bool,
    /// Whether the member says that all members can reach it.
    pub is_public: &'a dyn Fn(MemberId) -> bool,
    /// Whether a circuit is reserved on the peer.
    pub is_reserved: &'a dyn Fn(&PeerId) -> bool,
    /// How many streams a connection carries.
    pub streams: &'a dyn Fn(ConnectionId) -> usize,
}

/// The members to be connected with, the most wanted first; some may be named twice.
pub fn wanted(
    book: &Book,
    ring_neighbours: &[MemberId],
    (me, full_mesh): (MemberId, usize),
    round: u64,
) -> Vec<MemberId> {
    if book.len() < full_mesh {
        // A member that has left cannot be found: a search would ask every member without result.
        let there = book
            .iter()
            .filter(|contact| !contact.is_farewell())
            .map(Contact::member);
        return there.filter(|m| *m != me).collect();
    }
    let far = if ring_neighbours.is_empty() { FAR } else { 0 };
    let mut wanted = book.worth_connecting(NEAR.min(full_mesh), far, round);
    wanted.extend(ring_neighbours);
    wanted
}

/// The connections and the attempts to make some.
pub struct Mesh {
    me: MemberId,
    rng: StdRng,
    /// How long a connection of a large network may be unused and unneeded before it is closed.
    unused_after: Duration,
    started: Instant,
    links: BTreeMap<PeerId, Vec<Link>>,
    attempts: BTreeMap<MemberId, Attempt>,
    /// The members that relay for this node, or it for them: circuits ride on their direct
    /// connections, which shows in no count of streams.
    relaying: BTreeSet<PeerId>,
    /// Until when lost members are dialled without delay.
    hasty_until: Instant,
    bootstrap_at: Instant,
    probe_at: Instant,
    refresh: upkeep::Refresh,
    pass: Pass,
    actions: VecDeque<Action>,
}

/// The wanted members of the last tick that are still to be checked.
#[derive(Default)]
struct Pass {
    /// With whether the member says that all members can reach it.
    left: VecDeque<(MemberId, bool)>,
    /// Dials under way.
    dials: usize,
    /// The addresses given at the start come after the members known. Reason: a member that both
    /// name is being dialled then, and is not dialled twice.
    bootstrap: bool,
}

impl Mesh {
    /// A mesh without connections. Random values are drawn from `seed`.
    pub fn new(me: MemberId, unused_after: Duration, seed: u64, now: Instant) -> Self {
        Self {
            me,
            rng: StdRng::seed_from_u64(seed),
            unused_after,
            started: now,
            links: BTreeMap::new(),
            attempts: BTreeMap::new(),
            relaying: BTreeSet::new(),
            hasty_until: now,
            bootstrap_at: now,
            probe_at: now + upkeep::PROBE_EVERY,
            refresh: upkeep::Refresh::new(now),
            pass: Pass::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Tick(view) => self.tick(now, view),
            Input::Established {
                peer,
                id,
                address,
                dialled,
            } => self.established(now, peer, id, address, dialled),
            Input::Proved { peer, id } => self.proved(now, peer, id),
            Input::Refused(member) => {
                let attempt = self.attempts.entry(member).or_default();
                attempt.failures = attempt.failures.max(FAILURES_IF_REFUSED);
                attempt.not_before = Some(now + LAST_BACKOFF);
            }
            Input::Closed { peer, id } => self.closed(now, peer, id),
            Input::Opened { peer, id } => {
                if let Some(link) = self.link_mut(&peer, id) {
                    link.used = now;
                }
            }
            Input::Sounded { peer, id, lives } => {
                if let Some(link) = self.link_mut(&peer, id) {
                    link.doubted = !lives;
                }
            }
            Input::Dialled { member, id } => {
                self.attempts.entry(member).or_default().dialling.extend(id);
            }
            Input::NoAddress(member) => {
                self.pass.dials = self.pass.dials.saturating_sub(1);
                let attempt = self.attempts.entry(member).or_default();
                attempt.failed(now, &mut self.rng);
                self.actions.push_back(Action::LookUp(member));
            }
            Input::DialFailed { member, id } => self.dial_failed(now, member, id),
            Input::NewContact { member, was_known } => self.new_contact(now, member, was_known),
            Input::Found(member) => {
                self.attempts.entry(member).or_default().not_before = None;
            }
            Input::Relaying(peer) => drop(self.relaying.insert(peer)),
            Input::Moved => self.moved(now),
            Input::Parted { member, view } => self.parted(member, view),
        }
    }

    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        while let Some((member, is_public)) = self.pass.left.pop_front() {
            if let Some(action) = self.connect(now, member, is_public) {
                return Some(action);
            }
        }
        if std::mem::take(&mut self.pass.bootstrap)
            && self.links.is_empty()
            && self.bootstrap_at <= now
        {
            self.bootstrap_at = now + BOOTSTRAP_EVERY;
            return Some(Action::DialBootstrap);
        }
        self.actions.pop_front()
    }

    // --- Queries

    /// The best proved connection to the peer on which streams may be opened.
    pub fn best_link(&self, peer: &PeerId) -> Option<&Link> {
        self.links
            .get(peer)?
            .iter()
            .filter(|l| l.proved.is_some() && l.parting.is_none())
            .min_by_key(|l| l.rank())
    }

    pub fn link(&self, peer: &PeerId, id: ConnectionId) -> Option<&Link> {
        self.links.get(peer)?.iter().find(|l| l.id == id)
    }

    fn link_mut(&mut self, peer: &PeerId, id: ConnectionId) -> Option<&mut Link> {
        self.links.get_mut(peer)?.iter_mut().find(|l| l.id == id)
    }

    /// The peers with a connection, proved or not.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.links.keys()
    }

    /// Whether there is a connection to the peer, proved or not.
    pub fn has_link(&self, peer: &PeerId) -> bool {
        self.links.contains_key(peer)
    }

    pub fn is_dialling(&self, member: MemberId) -> bool {
        self.attempts
            .get(&member)
            .is_some_and(|attempt| !attempt.dialling.is_empty())
    }

    /// Which selection of the unreachable members is tried now.
    pub fn round(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_secs() / ROUND.as_secs()
    }

    /// Dials lost members without delay for a while. Returns whether that is new.
    pub fn hurry(&mut self, now: Instant) -> bool {
        std::mem::replace(&mut self.hasty_until, now + HASTE) <= now
    }

    // --- Dialling

    fn tick(&mut self, now: Instant, view: &View<'_>) {
        let dials = self
            .attempts
            .values()
            .filter(|a| !a.dialling.is_empty())
            .count();
        let left = view.wanted.iter().map(|m| (*m, (view.is_public)(*m)));
        self.pass = Pass {
            left: left.collect(),
            dials,
            bootstrap: true,
        };
        self.end_partings(now);
        self.close_superfluous(now, view);
        if view.is_large {
            self.tend_large(now, view);
        }
        self.probe(now);
    }

    /// What a wanted member needs now.
    fn connect(&mut self, now: Instant, member: MemberId, is_public: bool) -> Option<Action> {
        let peer = peer_of(member);
        let best = peer.and_then(|peer| self.best_link(&peer));
        if let Some(peer) = peer.filter(|_| best.is_some_and(|l| is_relayed(&l.address))) {
            return self.dial_past_relay(now, member, peer, is_public);
        }
        let connected = peer.is_none_or(|peer| self.links.contains_key(&peer));
        let attempt = self.attempts.entry(member).or_default();
        let due = attempt.dialling.is_empty() && attempt.not_before.is_none_or(|at| at <= now);
        if !due || connected || self.pass.dials >= MAX_WANTED_DIALS {
            return None;
        }
        self.pass.dials += 1;
        Some(Action::Dial(member))
    }

    /// Dials a member directly that was first met through a relay. Reason: hole punching handles
    /// NATs, but libp2p's DCUtR does not offer an address that is already confirmed.
    fn dial_past_relay(
        &mut self,
        now: Instant,
        member: MemberId,
        peer: PeerId,
        is_public: bool,
    ) -> Option<Action> {
        let attempt = self.attempts.entry(member).or_default();
        if attempt.not_before.is_some_and(|at| at > now) {
            return None;
        }
        let pause = if is_public {
            DIRECT_RETRY
        } else {
            DIRECT_RETRY_HIDDEN
        };
        attempt.not_before = Some(now + pause);
        Some(Action::DialDirectly { member, peer })
    }

    fn dial_failed(&mut self, now: Instant, member: MemberId, id: ConnectionId) {
        let Some(attempt) = self.attempts.get_mut(&member) else {
            return;
        };
        if attempt.dialling.remove(&id) && attempt.dialling.is_empty() {
            attempt.failed(now, &mut self.rng);
            if !peer_of(member).is_some_and(|peer| self.links.contains_key(&peer)) {
                self.actions.push_back(Action::Unreachable(member));
            }
        }
    }

    fn new_contact(&mut self, now: Instant, member: MemberId, was_known: bool) {
        // Both ends learn of each other at the same time.
        let wait = match (self.me < member, was_known) {
            (true, _) => Duration::ZERO,
            (false, true) => FIRST_BACKOFF,
            (false, false) => LET_THE_OTHER_DIAL,
        };
        // New addresses are worth another attempt at once, even beside a dial of the old ones that
        // has yet to time out.
        let attempt = self.attempts.entry(member).or_default();
        attempt.dialling.clear();
        attempt.failures = 0;
        attempt.not_before = Some(now + wait);
    }

    fn moved(&mut self, now: Instant) {
        self.hasty_until = now + HASTE;
        self.bootstrap_at = now;
        for attempt in self.attempts.values_mut() {
            // Dials under way use addresses that may be gone.
            attempt.dialling.clear();
            (attempt.failures, attempt.not_before) = (0, None);
        }
    }

    // --- Connections that come and go

    fn established(
        &mut self,
        now: Instant,
        peer: PeerId,
        id: ConnectionId,
        address: Multiaddr,
        dialled: bool,
    ) {
        let member = member_of(&peer);
        self.links.entry(peer).or_default().push(Link {
            id,
            address,
            by_smaller: dialled == member.is_some_and(|member| self.me < member),
            proved: None,
            since: now,
            doubted: false,
            used: now,
            probed: None,
            dialled,
            parting: None,
        });
        if let Some(attempt) = member.and_then(|m| self.attempts.get_mut(&m)) {
            attempt.dialling.remove(&id);
        }
    }

    fn proved(&mut self, now: Instant, peer: PeerId, id: ConnectionId) {
        let (Some(member), Some(link)) = (member_of(&peer), self.link_mut(&peer, id)) else {
            return;
        };
        link.proved = Some(now);
        self.doubt_older(&peer, id);
        let attempt = self.attempts.entry(member).or_default();
        attempt.failures = 0;
        attempt.not_before = None;
    }

    /// A member has a new connection: an older one from another address is probably dead, and so is
    /// one from before the member restarted. Neither is preferred any more. Two connections that
    /// both ends made at once are not distinguished by this.
    fn doubt_older(&mut self, peer: &PeerId, new: ConnectionId) {
        let Some(link) = self.link(peer, new).filter(|l| !is_relayed(&l.address)) else {
            return;
        };
        let (ip, since) = (ip_of(&link.address), link.since);
        let links = self.links.get_mut(peer).into_iter().flatten();
        for link in links.filter(|l| l.id != new && !is_relayed(&l.address)) {
            link.doubted |=
                ip_of(&link.address) != ip || since.saturating_duration_since(link.since) > AT_ONCE;
        }
    }

    fn closed(&mut self, now: Instant, peer: PeerId, id: ConnectionId) {
        let Some(links) = self.links.get_mut(&peer) else {
            return;
        };
        let was_proved = links.iter().any(|l| l.id == id && l.proved.is_some());
        links.retain(|l| l.id != id);
        if links.is_empty() {
            self.links.remove(&peer);
            self.relaying.remove(&peer);
        }
        let Some(member) = member_of(&peer).filter(|_| was_proved) else {
            return;
        };
        if self.best_link(&peer).is_none() {
            // A node that restarts is back at once; one whose path broke may be reachable by
            // another.
            let wait = match (now < self.hasty_until, self.me < member) {
                (true, _) => Duration::ZERO,
                (false, true) => FIRST_BACKOFF / 2,
                (false, false) => FIRST_BACKOFF,
            };
            self.attempts.entry(member).or_default().not_before = Some(now + wait);
        }
    }
}

#[cfg(test)]
mod tests;
