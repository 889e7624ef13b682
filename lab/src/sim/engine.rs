//! The engine: members, the events between them, and the loop that runs these in virtual time.
//!
//! Members are the ring's own state machines. The engine does the daemon's part as simply as its
//! timing and failures allow: it forwards packets by the table snapshots as the packet threads do;
//! [`super::dial`] makes links. There is no oracle: a member learns of another's death by its
//! silence.

use super::{
    conditions::Conditions,
    dial::Dial,
    flight::{Class, Flight},
    member::{Clock, Member, SentCounts, Tally},
    queue::{Micros, Queue, SECOND},
    world::{Access, Home, World},
};
use p2pvm_overlay::{
    MemberId,
    ring::{Input, Kind, Output, Packet, Position, Ring, RingOptions, message::Message},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How many bytes are counted below each ring packet, in docs/scale.md too. Over IPv6 they are 80:
/// 40 of IPv6, 8 of UDP, and 32 of a sealed datagram's header and tag.
pub const LOWER_HEADERS: usize = 72;
/// How often a member outside any ring dials a member of its address book that it has no link to.
const REMEMBER_ALONE: Micros = 15 * SECOND;
/// How often a member of a ring asks over the ring for a member of its address book, as the daemon
/// does. One that does not answer is in another ring.
/// Reason: all members ask, so two rings of a hundred find each other within seconds.
const REMEMBER_JOINED: Micros = 60 * SECOND;
/// How many outputs one input may cause before the state machine counts as looping.
const BUSY: usize = 10_000;
/// How many timers may follow without time between them before the state machine counts as looping.
const RESTLESS: u32 = 1_000;
/// How many broken promises are kept as text before the others are only counted.
const REMARKS: usize = 20;

/// An event.
pub(super) enum Event {
    /// A member starts.
    Start { member: u32 },
    /// A timer of a state machine.
    Wake { member: u32, life: u32 },
    /// A datagram arrives: the number of a flight.
    Arrive(u32),
    /// An attempt to make a link times out.
    DialTimeout { member: u32, life: u32, dial: u64 },
    /// A member asks for one of its address book.
    Remember { member: u32, life: u32 },
}

/// A network of simulated members.
pub struct Sim {
    /// Where the members live.
    pub world: World,
    /// The state of the network between them.
    pub conditions: Conditions,
    /// The members, dead ones too.
    pub members: Vec<Member>,
    /// The first broken promises, as text.
    pub broken: Vec<String>,
    /// How many promises were broken.
    pub broken_count: u64,
    /// Packets that no member could forward, or that ended at a member without a closer neighbour.
    pub undeliverable: u64,
    /// The members that joined the ring after their first start, and how long that took; without
    /// the bootstraps.
    pub joins: Vec<(u32, Micros)>,
    /// Links made, and of those the ones over a relay.
    pub linked: (u64, u64),
    pub(super) queue: Queue<Event>,
    pub(super) rng: ChaCha8Rng,
    pub(super) dials: Vec<Vec<Dial>>,
    /// Sessions that the responder of a handshake waits to see confirmed.
    pub(super) half_open: Vec<Vec<(u32, u64, Option<u32>)>>,
    pub(super) next_number: u64,
    options: RingOptions,
    index: HashMap<MemberId, u32>,
    places: HashMap<Position, u32>,
    pub(super) flights: Vec<Option<Flight>>,
    pub(super) free: Vec<u32>,
    base: Instant,
    events: u64,
}

impl Sim {
    /// A world without members.
    pub fn new(seed: u64, options: RingOptions) -> Self {
        Self {
            world: World::new(seed),
            conditions: Conditions::default(),
            members: Vec::new(),
            broken: Vec::new(),
            broken_count: 0,
            undeliverable: 0,
            joins: Vec::new(),
            linked: (0, 0),
            queue: Queue::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            dials: Vec::new(),
            half_open: Vec::new(),
            next_number: 1,
            options,
            index: HashMap::new(),
            places: HashMap::new(),
            flights: Vec::new(),
            free: Vec::new(),
            base: Instant::now(),
            events: 0,
        }
    }

    /// Virtual time.
    pub fn now(&self) -> Micros {
        self.queue.now()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The generator of random numbers, for scenarios.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// A home for a new member; with a public address if `public`, as bootstraps need it.
    pub fn home(&mut self, public: bool) -> Home {
        if public {
            self.world.settle_publicly(&mut self.rng)
        } else {
            self.world.settle(&mut self.rng)
        }
    }

    /// A member that will start at `at` with the addresses of `bootstraps`. Its clock runs at
    /// `rate`.
    pub fn add(&mut self, home: Home, rate: f64, bootstraps: &[u32], at: Micros) -> u32 {
        let id = MemberId(self.rng.random());
        let number = self.members.len() as u32;
        let mut member = Member::new(id, home, Clock::new(self.base, rate));
        member.known = bootstraps.to_vec();
        member.bootstraps = bootstraps.len();
        self.index.insert(id, number);
        self.places.insert(member.node.position, number);
        self.members.push(member);
        self.dials.push(Vec::new());
        self.half_open.push(Vec::new());
        self.queue.put(at, Event::Start { member: number });
        number
    }

    /// Ends a member without goodbyes.
    pub fn crash(&mut self, member: u32) {
        self.members[member as usize].crash();
        self.dials[member as usize].clear();
        self.half_open[member as usize].clear();
    }

    /// Starts a dead member at `at`, with what it has on disk.
    pub fn restart(&mut self, member: u32, at: Micros) {
        self.queue.put(at, Event::Start { member });
    }

    /// Runs all events of the next `span`.
    pub fn run(&mut self, span: Micros) {
        let until = self.now() + span;
        while let Some(event) = self.queue.take(until) {
            self.events += 1;
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start { member } => self.start(member),
            Event::Wake { member, life } => {
                let m = &mut self.members[member as usize];
                // A timer that an earlier one has replaced is void.
                if m.life != life || !m.alive() || m.wake != self.queue.now() {
                    return;
                }
                m.wake = Micros::MAX;
                if m.asleep_until > self.queue.now() {
                    m.wake = m.asleep_until;
                    self.queue.put(m.asleep_until, Event::Wake { member, life });
                    return;
                }
                self.tell(member, Input::Tick);
            }
            Event::Arrive(number) => {
                if let Some(flight) = self.land(number) {
                    self.arrive(flight);
                }
            }
            Event::DialTimeout { member, life, dial } => {
                if self.members[member as usize].life == life {
                    self.dial_timeout(member, dial);
                }
            }
            Event::Remember { member, life } => {
                if self.members[member as usize].life == life
                    && self.members[member as usize].alive()
                {
                    self.remember(member);
                }
            }
        }
    }

    fn start(&mut self, number: u32) {
        let seed = self.rng.random();
        let now = self.now();
        let m = &mut self.members[number as usize];
        if m.alive() {
            return;
        }
        m.life += 1;
        m.started = now;
        m.joined = None;
        m.ring = Some(Box::new(Ring::new(
            m.node.member,
            self.options.clone(),
            seed,
        )));
        let seeds: Vec<MemberId> = m
            .known
            .clone()
            .into_iter()
            .filter(|k| *k != number)
            .map(|k| self.members[k as usize].node.member)
            .collect();
        self.tell(number, Input::Tick);
        for seed in seeds {
            self.tell(number, Input::Seed(seed));
        }
        self.remember_later(number);
    }

    fn remember(&mut self, number: u32) {
        let (dice, now) = (self.rng.random::<u32>() as usize, self.now());
        let m = &self.members[number as usize];
        // A member outside any ring also dials all bootstraps.
        let bootstraps = &m.known[..m.bootstraps];
        // A member of a ring asks for members that its control plane is connected with, as the
        // daemon does: none that is dead, and none behind a NAT that only the ring can call.
        // Otherwise a ring of two without UDP draws those most of the time and stays alone for many
        // minutes.
        let meets = |k: &u32| {
            self.members[*k as usize].home.access == Access::Public
                && self.awake(*k)
                && self.conditions.open(number, *k)
        };
        let met: Vec<u32> = m
            .known
            .iter()
            .copied()
            .filter(|k| *k != number && (!m.table.joined() || meets(k)))
            .collect();
        let one = met.get(dice.checked_rem(met.len()).unwrap_or(0));
        let unlinked = |k: &u32| *k != number && !m.link(*k).is_some_and(|l| l.stands(now));
        if m.table.joined() {
            if let Some(one) = one.copied().filter(unlinked) {
                self.prove(number, one);
            }
            return self.remember_later(number);
        }
        let seeds: Vec<u32> = bootstraps
            .iter()
            .chain(one)
            .copied()
            .filter(unlinked)
            .collect();
        for seed in seeds {
            let seed = self.members[seed as usize].node.member;
            self.tell(number, Input::Seed(seed));
        }
        self.remember_later(number);
    }

    fn remember_later(&mut self, number: u32) {
        let m = &self.members[number as usize];
        let (pause, life) = (
            if m.table.joined() {
                REMEMBER_JOINED
            } else {
                REMEMBER_ALONE
            },
            m.life,
        );
        let wait = self.rng.random_range(pause / 2..pause * 3 / 2);
        self.queue.put(
            self.now() + wait,
            Event::Remember {
                member: number,
                life,
            },
        );
    }

    /// Gives an input to a member's state machine and runs its outputs.
    pub(super) fn tell(&mut self, number: u32, input: Input<'_>) {
        let now = self.now();
        // An input rarely causes other inputs.
        let (mut next, mut inputs) = (Some(input), Vec::new());
        let mut outputs = 0;
        while let Some(input) = next.take().or_else(|| inputs.pop()) {
            let m = &mut self.members[number as usize];
            let Some(ring) = m.ring.as_mut() else { return };
            ring.handle(m.clock.read(now), input);
            while let Some(output) = self.members[number as usize]
                .ring
                .as_mut()
                .and_then(|r| r.poll())
            {
                outputs += 1;
                if outputs > BUSY {
                    self.breach(format!(
                        "member {number} has more than {BUSY} outputs for one input"
                    ));
                    return;
                }
                self.output(number, output, &mut inputs);
            }
        }
        let m = &mut self.members[number as usize];
        let wake = m
            .ring
            .as_ref()
            .and_then(|r| r.wake_at())
            .map_or(Micros::MAX, |at| m.clock.when(at).max(now + 1));
        m.restless = if wake <= now + 2 { m.restless + 1 } else { 0 };
        let restless = m.restless == RESTLESS;
        if wake < m.wake {
            m.wake = wake;
            let life = m.life;
            self.queue.put(
                wake,
                Event::Wake {
                    member: number,
                    life,
                },
            );
        }
        if restless {
            self.breach(format!(
                "member {number} sets a timer that is due at once {RESTLESS} times in a row"
            ));
        }
    }

    fn output(&mut self, number: u32, output: Output, inputs: &mut Vec<Input<'_>>) {
        match output {
            Output::Send { to, packet } => {
                if let Some(to) = self.number(&to) {
                    self.want_again(number, to, &packet);
                    let class = if packet.header.to == self.members[to as usize].node.position {
                        Class::Upkeep
                    } else {
                        Class::Routed
                    };
                    self.send_packet(number, to, packet, class, Vec::new());
                }
            }
            Output::Link { member, agent } => {
                if let Some(to) = self.number(&member) {
                    inputs.extend(self.dial(number, to, agent));
                }
            }
            Output::Unlink { member } => {
                if let Some(to) = self.number(&member) {
                    if let Some(link) = self.members[number as usize].link_mut(to) {
                        link.wanted = false;
                    }
                    self.dials[number as usize].retain(|d| d.to != to || d.proof);
                }
            }
            Output::TableChanged(table) => {
                let now = self.now();
                let m = &mut self.members[number as usize];
                if table.joined() && m.joined.is_none() {
                    m.joined = Some(now);
                    if m.life == 1 && number as usize >= m.bootstraps {
                        let took = now - m.started;
                        self.joins.push((number, took));
                    }
                }
                self.members[number as usize].table = table;
            }
            Output::Deliver { packet, .. } => {
                if matches!(packet.header.kind, Kind::Call | Kind::Answer) {
                    self.dial_message(number, &packet);
                }
            }
            Output::Event(_) => {}
        }
    }

    /// The member with that id.
    pub fn number(&self, id: &MemberId) -> Option<u32> {
        self.index.get(id).copied()
    }

    /// The member at that position.
    pub(super) fn at(&self, place: Position) -> Option<u32> {
        self.places.get(&place).copied()
    }

    /// A ring that sends more than a goodbye over a link that it had given up uses it again, as the
    /// other end asked.
    fn want_again(&mut self, me: u32, to: u32, packet: &Packet) {
        if let Some(link) = self.members[me as usize].link_mut(to).filter(|l| !l.wanted) {
            link.wanted = Message::decode(&packet.body).is_some_and(|m| m != Message::Bye);
        }
    }

    /// Whether a member runs and is not asleep.
    pub fn awake(&self, member: u32) -> bool {
        let m = &self.members[member as usize];
        m.alive() && m.asleep_until <= self.now()
    }

    pub(super) fn breach(&mut self, what: String) {
        self.broken_count += 1;
        if self.broken.len() < REMARKS {
            let second = self.now() as f64 / SECOND as f64;
            self.broken.push(format!("at {second:.3} s: {what}"));
        }
    }

    /// The position of a member on the ring.
    pub fn position(&self, member: u32) -> Position {
        self.members[member as usize].node.position
    }

    /// What each member sent so far, by purpose.
    pub fn sent(&self) -> Vec<SentCounts> {
        self.members.iter().map(|m| m.sent).collect()
    }

    /// The sum of what all members sent.
    pub fn total_sent(&self) -> Tally {
        self.members
            .iter()
            .map(|m| m.sent.total())
            .fold(Tally::default(), |s, t| Tally {
                messages: s.messages + t.messages,
                bytes: s.bytes + t.bytes,
            })
    }

    /// Tells a member's ring the round trip of a link as the daemon measures it.
    pub(super) fn linked(&mut self, me: u32, other: u32, rtt: Option<Duration>) {
        let member = self.members[other as usize].node.member;
        let dice = self.rng.random::<u32>() as usize;
        self.members[me as usize].learn(other, dice);
        self.tell(me, Input::Linked { member, rtt });
    }
}
