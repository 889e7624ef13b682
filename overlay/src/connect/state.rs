//! The connector's knowledge and decisions: a state machine without socket, clock or task, as the
//! ring's and the paths' are.
//!
//! [`State::handle`] takes events, [`State::poll`] returns actions. Longer conversations are
//! machines of their own that read and write this state: [`survey`] finds out the kind of NAT,
//! [`settle`] brings a link to the best path, [`watch`] notices that a NAT has changed. The driver,
//! the other files of `connect`, carries requests and datagrams and waits.

pub(crate) mod examine;
pub(crate) mod links;
pub(crate) mod nat;
pub(crate) mod punches;
pub(crate) mod reach;
pub(crate) mod relays;
pub(crate) mod retries;
pub(crate) mod settle;
pub(crate) mod survey;
pub(crate) mod watch;

use super::{
    ConnectOptions,
    message::{Candidate, CandidateKind, MAX_CANDIDATES, NatKind, Reachability},
};
use crate::id::MemberId;
use nat::Nat;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// How long the outside address of the second port is believed.
pub(crate) const LOOK_LIFE: Duration = Duration::from_secs(180);
/// How long before a counting NAT has given its next ports to others.
const COUNTER_LIFE: Duration = Duration::from_secs(5);

/// The present state of this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub local: Vec<IpAddr>,
    /// The port of its packet plane.
    pub port: u16,
    /// Whether anything is sent from the second port.
    pub uses_second_port: bool,
}

impl Host {
    /// Whether all of its addresses are of the kind that NATs hide.
    pub fn is_private(&self) -> bool {
        self.local.iter().all(nat::is_private)
    }
}

/// What a member says of itself, reduced to what this host can use.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// Without the addresses inside another network of this machine.
    pub reachability: Reachability,
    /// One of the addresses left out.
    pub hidden: Option<IpAddr>,
}

/// An event.
pub(crate) enum Input<'a> {
    /// A second has passed.
    Tick {
        host: &'a Host,
        links: &'a [links::Link],
        connected: &'a [MemberId],
    },
    /// A member has sent its reachability.
    Heard(MemberId, Statement),
    /// Addresses have been exchanged with a member and can be tried.
    Met {
        member: MemberId,
        host: &'a Host,
        statement: Statement,
        /// All its addresses, as it gave them.
        told: &'a [Candidate],
        link: reach::PresentLink<'a>,
    },
    /// A punch that waited for the NAT's mapping is due.
    PunchDue {
        member: MemberId,
        host: &'a Host,
        theirs: Reachability,
        is_direct: bool,
    },
    /// The path in use to a member has fallen silent; whether there is a control connection to it.
    Silent {
        member: MemberId,
        is_connected: bool,
    },
    /// A member has refused to relay.
    RelayRefused(MemberId),
    /// This host has moved.
    Moved,
    /// The first port works, or another router is in front of this host.
    FirstPortAlive,
    /// No member answers the first port, and one answers the second.
    FirstPortDead,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Keep the NAT mappings of a link alive, or leave that to the other end.
    KeepAlive(MemberId, bool),
    /// Try to get a link off its path. `number` counts the tries, from 1.
    Improve {
        member: MemberId,
        path: crate::plane::Path,
        number: u32,
        is_hopeless: bool,
    },
    /// Look for a spare relay, or a better one than the link has.
    ReviewRelays {
        member: MemberId,
        relays: Vec<MemberId>,
        rtt: Option<Duration>,
    },
    /// Send to these addresses of members from the second port, or from the first again.
    WriteFrom {
        second: bool,
        addresses: Vec<SocketAddr>,
    },
    /// Probe these addresses of a member: the guessed ones first and one by one, in this order.
    Try {
        member: MemberId,
        guessed: Vec<SocketAddr>,
        told: Vec<SocketAddr>,
    },
    /// Wait until the NAT's mapping is known, then pass in [`Input::PunchDue`], or meet the member
    /// again if ports have to be guessed.
    PunchLater(MemberId, Reachability),
    /// Carry the link over a stream while the path in use is silent.
    Bridge(MemberId),
    /// From now on everything is sent from the second port.
    AllFromSecondPort,
    /// The first port is used again.
    SilenceFirstPort(bool),
    /// Links and connections made before are dead: the outside address has changed.
    MappingChanged,
}

/// The connector's knowledge.
pub(crate) struct State {
    pub me: MemberId,
    pub options: ConnectOptions,
    pub nat: Nat,
    pub punches: punches::Log,
    /// What members said of themselves, and when.
    pub known: HashMap<MemberId, (Instant, Reachability)>,
    /// Addresses of members that lie in another network of this machine.
    pub hidden: HashMap<MemberId, IpAddr>,
    pub retries: retries::Retries,
    /// Members whose public addresses are written to from the second port.
    pub aside: HashSet<MemberId>,
    /// The outside address of the second port, and when it was found.
    pub reflexive_aside: Option<(SocketAddr, Instant)>,
    /// Whether packets from the first port get no answer and those from the second do.
    pub first_port_dead: bool,
    pub relays: relays::Relays,
    upkeep: links::Upkeep,
    actions: VecDeque<Action>,
}

impl State {
    pub fn new(me: MemberId, options: ConnectOptions) -> Self {
        Self {
            me,
            options,
            nat: Nat::default(),
            punches: punches::Log::default(),
            known: HashMap::new(),
            hidden: HashMap::new(),
            retries: retries::Retries::default(),
            aside: HashSet::new(),
            reflexive_aside: None,
            first_port_dead: false,
            relays: relays::Relays::default(),
            upkeep: links::Upkeep::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Tick {
                host,
                links,
                connected,
            } => self.tick(now, host, links, connected),
            Input::Heard(member, statement) => self.remember(now, member, statement),
            Input::Met {
                member,
                host,
                statement,
                told,
                link,
            } => self.met(now, member, host, (statement, told), &link),
            Input::PunchDue {
                member,
                host,
                theirs,
                is_direct,
            } => self.punch(now, member, host, &theirs, is_direct),
            Input::Silent {
                member,
                is_connected,
            } => self.fell_silent(now, member, is_connected),
            Input::RelayRefused(member) => self.relays.refused(now, member),
            Input::Moved => self.moved(),
            Input::FirstPortAlive => self.first_port_alive(),
            Input::FirstPortDead => self.first_port_is_dead(now),
        }
    }

    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn remember(&mut self, now: Instant, member: MemberId, statement: Statement) {
        match statement.hidden {
            Some(ip) => drop(self.hidden.insert(member, ip)),
            None => drop(self.hidden.remove(&member)),
        }
        let said = statement.reachability;
        let before = self.known.insert(member, (now, said.clone()));
        if before.is_some_and(|(_, before)| before.differs(&said)) {
            self.retries.begin_anew(member, now + retries::FIRST);
        }
    }

    /// This host has moved: its outside address is another.
    fn moved(&mut self) {
        self.nat.forget();
        self.retries.clear();
        self.relays.forget_refusals();
        self.first_port_alive();
    }

    fn first_port_alive(&mut self) {
        self.first_port_dead = false;
        self.reflexive_aside = None;
        self.aside.clear();
        self.actions.push_back(Action::SilenceFirstPort(false));
    }

    fn first_port_is_dead(&mut self, now: Instant) {
        (self.nat.kind, self.nat.reflexive) = (NatKind::Unknown, None);
        self.retries.all_anew(now);
        if !std::mem::replace(&mut self.first_port_dead, true) {
            self.actions.push_back(Action::AllFromSecondPort);
        }
    }

    /// Whether the router lets all packets to `addr` through to us, on our request or by a person's
    /// setting. Such an address says nothing about how the NAT maps and filters otherwise: a member
    /// that sees us there wrote to us there, or the router shows it to all.
    pub fn is_let_through(&self, addr: SocketAddr) -> bool {
        [self.nat.mapped_last, self.options.outside].contains(&Some(addr))
    }

    /// The addresses at which this node's plane may be reached.
    pub fn candidates(&self, now: Instant, host: &Host) -> Vec<Candidate> {
        let of = |kind| move |addr| Candidate { kind, addr };
        let local = host.local.iter().map(|ip| SocketAddr::new(*ip, host.port));
        let recent = |at: Instant, life| now.saturating_duration_since(at) < life;
        let aside = self
            .reflexive_aside
            .filter(|(_, at)| host.uses_second_port && recent(*at, LOOK_LIFE));
        let reflexive = self.nat.reflexive.into_iter().chain(aside.map(|(a, _)| a));
        let mapped = self.nat.mapped.or(self.options.outside).into_iter();
        let newest = self
            .nat
            .four
            .finding
            .newest
            .filter(|(_, at)| self.nat.kind == NatKind::Counting && recent(*at, COUNTER_LIFE));
        let guesses = newest.into_iter().flat_map(|(at, _)| examine::guesses(at));
        mapped
            .map(of(CandidateKind::Mapped))
            .chain(reflexive.map(of(CandidateKind::Reflexive)))
            .chain(guesses.map(of(CandidateKind::Predicted)))
            .chain(local.map(of(CandidateKind::Local)))
            .take(MAX_CANDIDATES)
            .collect()
    }

    /// A public IPv4 address at which a connected open member listens.
    pub fn open_member(&self, connected: &[MemberId]) -> Option<SocketAddr> {
        let open = connected
            .iter()
            .filter_map(|m| self.known.get(m))
            .map(|(_, w)| w)
            .filter(|w| nat::seems_open(w));
        // An address in the member's own LAN, which it also gives, would not answer.
        open.flat_map(|w| &w.candidates)
            .find(|c| nat::is_public_own(c) && c.addr.is_ipv4())
            .map(|c| c.addr)
    }
}

#[cfg(test)]
mod tests;
