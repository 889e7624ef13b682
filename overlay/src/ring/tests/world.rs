//! A small world in virtual time: rings, delays, loss, reordering, duplication, cuts and deaths,
//! all from one seed.

use super::super::*;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::time::Duration;
use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

/// What happens to a member.
enum What {
    Packet { from: MemberId, bytes: Vec<u8> },
    Linked { member: MemberId },
    LinkFailed { member: MemberId },
    Wake,
}

struct Event {
    at: Instant,
    number: u64,
    to: MemberId,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub struct Host {
    pub ring: Ring,
    pub delivered: Vec<(MemberId, Packet)>,
    pub sent: u64,
    pub sent_bytes: u64,
    pub links_made: u64,
    woken_for: Option<Instant>,
}

pub struct World {
    pub seed: u64,
    pub now: Instant,
    pub hosts: BTreeMap<MemberId, Host>,
    /// Probability of losing a packet, and of a second copy of it.
    pub loss: f64,
    pub duplication: f64,
    /// Extra delay up to this, drawn for each packet, so that they overtake each other.
    pub jitter: Duration,
    /// Which part of a divided network a member is in.
    pub parts: BTreeMap<MemberId, u8>,
    /// Two members that do not reach each other.
    pub cut: Option<[MemberId; 2]>,
    /// An edge is made only if a call over the ring finds the member, by the agent that the ring
    /// named.
    pub routed_calls: bool,
    pub rng: StdRng,
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
}

/// An attempt to link with a member that is dead or cut off fails after this.
const LINK_FAILS_AFTER: Duration = Duration::from_secs(3);

impl World {
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            seed,
            now: start,
            hosts: BTreeMap::new(),
            loss: 0.0,
            duplication: 0.0,
            jitter: Duration::ZERO,
            parts: BTreeMap::new(),
            cut: None,
            routed_calls: false,
            rng: StdRng::seed_from_u64(seed),
            events: BinaryHeap::new(),
            number: 0,
        }
    }

    pub fn add(&mut self) -> MemberId {
        let member = MemberId(self.rng.random());
        let ring = Ring::new(member, RingOptions::default(), self.rng.random());
        self.hosts.insert(
            member,
            Host {
                ring,
                delivered: Vec::new(),
                sent: 0,
                sent_bytes: 0,
                links_made: 0,
                woken_for: None,
            },
        );
        member
    }

    pub fn ids(&self) -> Vec<MemberId> {
        self.hosts.keys().copied().collect()
    }

    /// `count` members that join through the first of them, at random times within `within`.
    pub fn grow(&mut self, count: usize, within: Duration) {
        let first = self.ids().first().copied().unwrap_or_else(|| self.add());
        let mut times: Vec<f64> = (self.hosts.len()..count)
            .map(|_| self.rng.random())
            .collect();
        times.sort_by(f64::total_cmp);
        let start = self.now;
        for share in times {
            self.run_until(start + within.mul_f64(share));
            let member = self.add();
            self.input(member, Input::Seed(first));
        }
        self.run_until(start + within);
    }

    /// A ring of `count` that has settled.
    pub fn settled(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        world.grow(count, Duration::from_secs(20));
        world.settle(Duration::from_secs(120));
        world.run(Duration::from_secs(60));
        world
    }

    /// Kills a random `share` of the members, without a word to the others.
    pub fn kill(&mut self, share: f64) {
        let mut ids = self.ids();
        ids.shuffle(&mut self.rng);
        let count = ((ids.len() as f64 * share).round() as usize).max(1);
        for member in &ids[..count] {
            self.hosts.remove(member);
        }
    }

    fn push(&mut self, at: Instant, to: MemberId, what: What) {
        self.number += 1;
        self.events.push(Reverse(Event {
            at,
            number: self.number,
            to,
            what,
        }));
    }

    fn reaches(&self, a: MemberId, b: MemberId) -> bool {
        let part = |m| self.parts.get(&m).copied().unwrap_or(0);
        let cut = self.cut.is_some_and(|cut| cut == [a, b] || cut == [b, a]);
        self.hosts.contains_key(&a) && self.hosts.contains_key(&b) && part(a) == part(b) && !cut
    }

    /// Whether a call over the ring comes to `to`.
    fn call_arrives(&self, me: MemberId, to: MemberId, agent: Option<Position>) -> bool {
        let table = self.hosts[&me].ring.table();
        let mut header = Header {
            agent,
            ..Header::new(Kind::Call, Position::of(&me), Position::of(&to))
        };
        let (mut at, mut next) = match agent {
            Some(agent) => (
                me,
                table
                    .members()
                    .iter()
                    .find(|n| n.position == agent)
                    .map(|n| n.member),
            ),
            None => (me, self.via(table.next(header.to, Mode::Exact))),
        };
        while let Some(member) = next.filter(|next| self.reaches(at, *next)) {
            if member == to {
                return true;
            }
            header.hops_left -= 1;
            next = self
                .via(self.hosts[&member].ring.table().route(&header))
                .filter(|next| *next != at);
            at = member;
        }
        false
    }

    fn via(&self, next: RingHop) -> Option<MemberId> {
        if let RingHop::Via(member) = next {
            Some(member)
        } else {
            None
        }
    }

    /// 10 to 80 ms each way, the same for a pair at all times.
    fn one_way(a: MemberId, b: MemberId) -> Duration {
        Duration::from_millis(10 + u64::from(a.0[5] ^ b.0[5]) * 70 / 255)
    }

    pub fn input(&mut self, member: MemberId, input: Input<'_>) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member) else {
            return;
        };
        host.ring.handle(now, input);
        let mut todo = Vec::new();
        while let Some(output) = host.ring.poll() {
            todo.push(output);
        }
        let wake = host.ring.wake_at();
        if host.woken_for != wake {
            host.woken_for = wake;
            if let Some(at) = wake {
                self.push(at.max(now), member, What::Wake);
            }
        }
        for output in todo {
            self.obey(member, output);
        }
    }

    fn obey(&mut self, me: MemberId, output: Output) {
        match output {
            Output::Send { to, packet } => {
                let bytes = packet.to_bytes();
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.sent += 1;
                    host.sent_bytes += bytes.len() as u64 + 72;
                }
                let copies = 1 + u8::from(self.rng.random_bool(self.duplication));
                for _ in 0..copies {
                    if self.reaches(me, to) && !self.rng.random_bool(self.loss) {
                        let at = self.now
                            + Self::one_way(me, to)
                            + self.jitter.mul_f64(self.rng.random());
                        self.push(
                            at,
                            to,
                            What::Packet {
                                from: me,
                                bytes: bytes.clone(),
                            },
                        );
                    }
                }
            }
            Output::Link { member, agent } => {
                let way = Self::one_way(me, member);
                if self.reaches(me, member)
                    && (!self.routed_calls || self.call_arrives(me, member, agent))
                {
                    self.push(self.now + way * 3, member, What::Linked { member: me });
                    self.push(self.now + way * 4, me, What::Linked { member });
                } else {
                    self.push(self.now + LINK_FAILS_AFTER, me, What::LinkFailed { member });
                }
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.links_made += 1;
                }
            }
            Output::Deliver { from, packet } => {
                if let Some(host) = self.hosts.get_mut(&me) {
                    host.delivered.push((from, packet));
                }
            }
            Output::Unlink { .. } | Output::TableChanged(_) | Output::Event(_) => {}
        }
    }

    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub fn run_until(&mut self, end: Instant) {
        let mut at_once = 0;
        while let Some(Reverse(event)) = self.events.peek() {
            if event.at > end {
                break;
            }
            let Some(Reverse(event)) = self.events.pop() else {
                break;
            };
            at_once = if event.at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 1_000_000, "seed {}: time stands still", self.seed);
            self.now = event.at;
            let (to, what) = (event.to, event.what);
            match what {
                What::Packet { from, bytes } => {
                    let packet = wire::parse(&bytes).expect("what we send we read");
                    self.input(to, Input::Received { from, packet });
                }
                What::Linked { member } if self.reaches(to, member) => {
                    self.input(to, Input::Linked { member, rtt: None })
                }
                What::Linked { member } | What::LinkFailed { member } => {
                    self.input(to, Input::LinkFailed { member })
                }
                What::Wake => self.input(to, Input::Tick),
            }
        }
        self.now = end;
    }

    /// Runs until the invariant holds; how long that took. Panics with the seed and the reason
    /// after `limit`.
    pub fn settle(&mut self, limit: Duration) -> Duration {
        let start = self.now;
        loop {
            match self.check() {
                Ok(()) => return self.now - start,
                Err(why) if self.now - start >= limit => {
                    panic!("seed {}: not settled after {limit:?}: {why}", self.seed)
                }
                Err(_) => self.run(Duration::from_millis(250)),
            }
        }
    }

    /// The invariant of [`super::super`], for each part of a divided network: everyone has joined,
    /// everyone's near edges are the true nearest, and everyone routes to the true closest member
    /// of any place.
    pub fn check(&mut self) -> Result<(), String> {
        let parts: BTreeSet<u8> = self
            .hosts
            .keys()
            .map(|m| self.parts.get(m).copied().unwrap_or(0))
            .collect();
        for part in parts {
            let inside = |m: &MemberId| self.parts.get(m).copied().unwrap_or(0) == part;
            let mut nodes: Vec<Node> = self
                .hosts
                .keys()
                .copied()
                .filter(inside)
                .map(Node::from)
                .collect();
            nodes.sort_unstable();
            self.check_part(&nodes)?;
        }
        Ok(())
    }

    fn check_part(&mut self, nodes: &[Node]) -> Result<(), String> {
        let n = nodes.len();
        if n < 2 {
            return Ok(());
        }
        for (i, node) in nodes.iter().enumerate() {
            let status = self.hosts[&node.member].ring.status();
            if !status.joined {
                return Err(format!("{node:?} has not joined"));
            }
            let sides = (1..=NEAR_EACH_SIDE.min(n - 1))
                .flat_map(|d| [nodes[(i + d) % n], nodes[(i + n - d) % n]]);
            let truth: BTreeSet<Node> = sides.collect();
            let near: BTreeSet<Node> = status
                .neighbours
                .iter()
                .filter(|x| x.near)
                .map(|x| x.node)
                .collect();
            if near != truth {
                return Err(format!("{node:?} has {near:?} near, not {truth:?}"));
            }
        }
        for _ in 0..20 {
            let target = Position(self.rng.random());
            let closest = nodes
                .iter()
                .min_by_key(|x| target.closeness(x.position))
                .expect("two or more");
            for node in nodes {
                let (end, _) = self.route(*node, target, Mode::Closest);
                if end != Some(closest.member) {
                    return Err(format!(
                        "{node:?} routes {target:?} to {end:?}, not {closest:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Where a packet ends, and after how many hops.
    pub fn route(&self, from: Node, to: Position, mode: Mode) -> (Option<MemberId>, usize) {
        let kind = if mode == Mode::Closest {
            Kind::ControlClosest
        } else {
            Kind::Datagram
        };
        // A closest packet is never handed to its sender, so the sender here is a place where
        // nobody stands.
        let mut header = Header::new(kind, Position(from.position.0 ^ 1), to);
        let mut at = from.member;
        let mut next = self.hosts[&at].ring.table().next(to, mode);
        loop {
            match next {
                RingHop::Here => return (Some(at), usize::from(HOP_LIMIT - header.hops_left)),
                RingHop::Nowhere => return (None, 0),
                RingHop::Via(member) => {
                    let Some(host) = self.hosts.get(&member) else {
                        return (None, 0);
                    };
                    header.hops_left -= 1;
                    at = member;
                    next = host.ring.table().route(&header);
                }
            }
        }
    }
}
