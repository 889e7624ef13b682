//! Whole networks of meshes in virtual time, from one seed, and any inputs in any order.

use super::*;
use crate::identity::KeyPair;
use proptest::prelude::*;
use rand::Rng;

const SECOND: Duration = Duration::from_secs(1);
const UNUSED_AFTER: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(500);

fn nth(n: u16) -> MemberId {
    let mut seed = [5; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    MemberId(KeyPair::from_seed(&seed).public())
}

fn peer_id(member: MemberId) -> PeerId {
    peer_of(member).unwrap()
}

fn quic(n: u16) -> Multiaddr {
    format!("/ip4/198.18.{}.{}/udp/4001/quic-v1", n >> 8, n & 255)
        .parse()
        .unwrap()
}

fn connection(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

/// What the rest of a node knows.
#[derive(Clone, Default)]
struct Known {
    is_large: bool,
    wanted: Vec<MemberId>,
    streams: BTreeMap<ConnectionId, usize>,
}

impl Known {
    fn with<T>(&self, decide: impl FnOnce(&View<'_>) -> T) -> T {
        decide(&View {
            is_large: self.is_large,
            wanted: self.wanted.clone(),
            is_known: &|_| true,
            is_public: &|_| false,
            is_reserved: &|_| false,
            streams: &|id| self.streams.get(&id).copied().unwrap_or(0),
        })
    }
}

enum Event {
    Dialled { from: usize, to: usize, id: usize },
    AskedToPart { from: usize, to: usize },
    Agreed { from: usize, to: usize },
}

/// A network whose members dial each other.
struct Net {
    now: Instant,
    rng: StdRng,
    members: Vec<MemberId>,
    hosts: Vec<(Mesh, Known)>,
    alive: Vec<bool>,
    /// Share of the dials that fail.
    failing: f64,
    events: Vec<(Instant, Event)>,
    /// The ends of each connection, the one that dialled first.
    connections: BTreeMap<usize, (usize, usize)>,
    next_id: usize,
    dials: Vec<(Instant, usize, usize)>,
    partings: Vec<(Instant, usize, usize)>,
}

impl Net {
    fn new(seed: u64, n: u16) -> Self {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(seed));
        let members: Vec<MemberId> = (0..n).map(nth).collect();
        let mesh = |m: &MemberId| Mesh::new(*m, UNUSED_AFTER, rng.random(), now);
        let hosts = members.iter().map(mesh).map(|m| (m, Known::default()));
        Self {
            now,
            hosts: hosts.collect(),
            alive: vec![true; usize::from(n)],
            rng,
            members,
            failing: 0.0,
            events: Vec::new(),
            connections: BTreeMap::new(),
            next_id: 0,
            dials: Vec::new(),
            partings: Vec::new(),
        }
    }

    /// Everyone hears of everyone and wants a connection.
    fn introduce(&mut self) {
        let all = self.members.clone();
        for (i, (mesh, known)) in self.hosts.iter_mut().enumerate() {
            known.wanted = all.iter().copied().filter(|m| *m != all[i]).collect();
            for member in known.wanted.clone() {
                let was_known = false;
                mesh.handle(self.now, Input::NewContact { member, was_known });
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            let due: Vec<_> = {
                let now = self.now;
                self.events.extract_if(.., |(at, _)| *at <= now).collect()
            };
            for (_, event) in due {
                self.happen(event);
            }
            for i in (0..self.hosts.len())
                .filter(|i| self.alive[*i])
                .collect::<Vec<_>>()
            {
                let (mesh, known) = &mut self.hosts[i];
                known.with(|view| mesh.handle(self.now, Input::Tick(view)));
                self.act(i);
            }
        }
    }

    fn index(&self, member: MemberId) -> usize {
        self.members.iter().position(|m| *m == member).unwrap()
    }

    fn later(&mut self, event: Event) {
        let delay = Duration::from_millis(self.rng.random_range(5..400));
        self.events.push((self.now + delay, event));
    }

    fn act(&mut self, i: usize) {
        let mut actions = 0;
        while let Some(action) = self.hosts[i].0.poll(self.now) {
            actions += 1;
            assert!(actions < 10_000, "it never ends: {action:?}");
            match action {
                Action::Dial(member) => {
                    let (to, id) = (self.index(member), self.next_id);
                    self.next_id += 1;
                    self.dials.push((self.now, i, to));
                    self.later(Event::Dialled { from: i, to, id });
                    let id = Some(connection(id));
                    self.hosts[i]
                        .0
                        .handle(self.now, Input::Dialled { member, id });
                }
                Action::Close(closed) => {
                    let of = self.connections.iter();
                    let of = of.map(|(n, _)| *n).find(|n| connection(*n) == closed);
                    self.close(of.expect("it is there"));
                }
                Action::AskToPart(member) => {
                    let to = self.index(member);
                    self.partings.push((self.now, i, to));
                    self.later(Event::AskedToPart { from: i, to });
                }
                _ => {}
            }
        }
    }

    fn close(&mut self, n: usize) {
        let (a, b) = self.connections.remove(&n).unwrap();
        for (end, other) in [(a, b), (b, a)] {
            let peer = peer_id(self.members[other]);
            let closed = Input::Closed {
                peer,
                id: connection(n),
            };
            self.hosts[end].0.handle(self.now, closed);
        }
    }

    fn connect(&mut self, from: usize, to: usize, n: usize) {
        self.connections.insert(n, (from, to));
        for (end, other, dialled) in [(from, to, true), (to, from, false)] {
            let (peer, id) = (peer_id(self.members[other]), connection(n));
            let address = quic(other as u16);
            let mesh = &mut self.hosts[end].0;
            let established = Input::Established {
                peer,
                id,
                address,
                dialled,
            };
            mesh.handle(self.now, established);
            mesh.handle(self.now, Input::Proved { peer, id });
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dialled { from, to, id: n } => {
                if self.alive[to] && !self.rng.random_bool(self.failing) {
                    return self.connect(from, to, n);
                }
                let (member, id) = (self.members[to], connection(n));
                let failed = Input::DialFailed { member, id };
                self.hosts[from].0.handle(self.now, failed);
                self.act(from);
            }
            Event::AskedToPart { from, to } => {
                let (now, asking) = (self.now, self.members[from]);
                let (mesh, known) = &mut self.hosts[to];
                if known.with(|view| mesh.agrees_to_part(now, asking, false, view)) {
                    self.later(Event::Agreed { from, to });
                }
            }
            Event::Agreed { from, to } => {
                let (now, member) = (self.now, self.members[to]);
                let (mesh, known) = &mut self.hosts[from];
                known.with(|view| mesh.handle(now, Input::Parted { member, view }));
                self.act(from);
            }
        }
    }

    fn die(&mut self, i: usize) {
        self.alive[i] = false;
        let of = self
            .connections
            .iter()
            .filter(|(_, (a, b))| [*a, *b].contains(&i));
        for n in of.map(|(n, _)| *n).collect::<Vec<_>>() {
            self.close(n);
        }
    }

    fn between(&self, a: usize, b: usize) -> usize {
        let ends = [(a, b), (b, a)];
        self.connections
            .values()
            .filter(|c| ends.contains(c))
            .count()
    }
}

#[test]
fn a_small_network_ends_as_one_connection_for_each_pair() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 8);
        net.failing = 0.3;
        net.introduce();
        net.run(120 * SECOND);
        for a in 0..8 {
            for b in 0..a {
                assert_eq!(net.between(a, b), 1, "seed {seed}: {a} and {b}");
            }
        }
    }
}

#[test]
fn dead_members_are_dialled_ever_less_and_met_on_return() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 4);
        net.introduce();
        net.run(30 * SECOND);
        net.die(3);
        let died = net.now;
        net.run(600 * SECOND);
        let dials: Vec<Instant> = net
            .dials
            .iter()
            .filter(|(at, from, to)| (*from, *to) == (0, 3) && *at > died)
            .map(|(at, ..)| *at)
            .collect();
        assert!((10..=20).contains(&dials.len()), "seed {seed}: {dials:?}");
        let longest = dials.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        assert!(
            longest <= LAST_BACKOFF.mul_f64(1.25) + 2 * TICK,
            "{longest:?}"
        );
        net.alive[3] = true;
        let was_known = true;
        for i in 0..3 {
            let member = net.members[3];
            let news = Input::NewContact { member, was_known };
            net.hosts[i].0.handle(net.now, news);
        }
        net.run(5 * SECOND);
        assert!((0..3).all(|i| net.between(i, 3) >= 1), "seed {seed}");
    }
}

#[test]
fn unneeded_connections_of_a_large_network_end_when_unused_and_no_others() {
    let mut net = Net::new(1, 6);
    net.introduce();
    net.run(30 * SECOND);
    // While all are wanted all count as used.
    for (_, known) in &mut net.hosts {
        known.is_large = true;
    }
    net.run(TICK);
    let settled = net.now;
    // Each wants its two neighbours of a circle; 0 and 3 talk.
    for i in 0..6 {
        let known = &mut net.hosts[i].1;
        known.wanted = [(i + 1) % 6, (i + 5) % 6].map(|n| net.members[n]).into();
    }
    let talk = *net
        .connections
        .iter()
        .find(|(_, ends)| [(0, 3), (3, 0)].contains(ends))
        .unwrap()
        .0;
    for i in [0, 3] {
        net.hosts[i].1.streams.insert(connection(talk), 1);
    }
    net.run(UNUSED_AFTER - 5 * SECOND);
    assert!(net.partings.is_empty(), "not before {UNUSED_AFTER:?}");
    net.run(UNUSED_AFTER);
    for a in 0..6 {
        for b in 0..a {
            let wanted = a - b == 1 || a - b == 5 || (b, a) == (0, 3);
            assert_eq!(net.between(a, b), usize::from(wanted), "{a} and {b}");
        }
    }
    let early = |at: &Instant| at.duration_since(settled) < UNUSED_AFTER;
    let asked = net.partings.iter().filter(|(at, ..)| early(at));
    assert_eq!(asked.count(), 0);
}

#[test]
fn a_connection_that_the_other_end_keeps_is_used_again() {
    let (now, me, other) = (Instant::now(), nth(0), nth(1));
    let mut mesh = Mesh::new(me, UNUSED_AFTER, 1, now);
    let (peer, id) = (peer_id(other), connection(1));
    let address = quic(1);
    let dialled = false;
    mesh.handle(
        now,
        Input::Established {
            peer,
            id,
            address,
            dialled,
        },
    );
    mesh.handle(now, Input::Proved { peer, id });
    let mut known = Known {
        is_large: true,
        ..Known::default()
    };
    let later = now + UNUSED_AFTER;
    assert!(known.with(|view| mesh.agrees_to_part(later, other, false, view)));
    assert!(mesh.best_link(&peer).is_none());
    // The network has shrunk meanwhile: the connection is wanted after all.
    known.is_large = false;
    let later = later + 2 * PART_TIMEOUT;
    known.with(|view| mesh.handle(later, Input::Tick(view)));
    assert!(mesh.best_link(&peer).is_some());
    let actions: Vec<Action> = std::iter::from_fn(|| mesh.poll(later)).collect();
    assert!(actions.contains(&Action::Reopen(other)), "{actions:?}");
}

#[test]
fn joining_a_large_network_dials_a_few_at_a_time() {
    let now = Instant::now();
    let mut mesh = Mesh::new(nth(0), UNUSED_AFTER, 1, now);
    let known = Known {
        is_large: true,
        wanted: (1..500).map(nth).collect(),
        ..Known::default()
    };
    let mut answered = 0;
    known.with(|view| mesh.handle(now, Input::Tick(view)));
    while let Some(action) = mesh.poll(now) {
        if let Action::Dial(member) = action {
            answered += 1;
            // Every third has no address, which must not keep the others back.
            mesh.handle(
                now,
                match answered % 3 {
                    0 => Input::NoAddress(member),
                    _ => Input::Dialled {
                        member,
                        id: Some(connection(answered)),
                    },
                },
            );
        }
    }
    let dialling = known.wanted.iter().filter(|m| mesh.is_dialling(**m));
    assert_eq!(dialling.count(), MAX_WANTED_DIALS);
}

#[test]
fn after_a_move_lost_members_are_dialled_at_once() {
    let mut net = Net::new(7, 2);
    net.introduce();
    net.run(5 * SECOND);
    net.hosts[1].1.wanted.clear();
    let lost = *net.connections.keys().next().unwrap();
    net.hosts[0].0.handle(net.now, Input::Moved);
    let before = net.dials.len();
    net.close(lost);
    net.run(TICK);
    assert_eq!(net.dials.len(), before + 1);
}

/// One input of any kind about one of a few members and connections.
fn any_input(mesh: &mut Mesh, known: &mut Known, now: Instant, (kind, m, n): (u8, u16, usize)) {
    let (other, connection) = (nth(1 + m % 4), connection(n % 6));
    let (peer, id) = (peer_id(other), connection);
    let member = other;
    match kind % 14 {
        0 if mesh.link(&peer, id).is_none() => {
            let (address, dialled) = (quic(m), n.is_multiple_of(2));
            mesh.handle(
                now,
                Input::Established {
                    peer,
                    id,
                    address,
                    dialled,
                },
            );
        }
        1 => mesh.handle(now, Input::Proved { peer, id }),
        2 => mesh.handle(now, Input::Refused(member)),
        3 => mesh.handle(now, Input::Closed { peer, id }),
        4 => mesh.handle(now, Input::Opened { peer, id }),
        5 => mesh.handle(
            now,
            Input::Sounded {
                peer,
                id,
                lives: m % 2 == 0,
            },
        ),
        6 => mesh.handle(now, Input::DialFailed { member, id }),
        7 => mesh.handle(
            now,
            Input::NewContact {
                member,
                was_known: n % 2 == 0,
            },
        ),
        8 => mesh.handle(now, Input::Found(member)),
        9 => mesh.handle(now, Input::Relaying(peer)),
        10 => mesh.handle(now, Input::Moved),
        11 => known.with(|view| mesh.handle(now, Input::Parted { member, view })),
        12 => drop(known.with(|view| mesh.agrees_to_part(now, member, m % 2 == 0, view))),
        13 => {
            known.is_large = m % 2 == 0;
            known.wanted = (1..=4).filter(|i| n >> i & 1 == 0).map(nth).collect();
            known.streams.insert(id, n % 3);
        }
        _ => {}
    }
}

/// What holds for an action whatever came before.
fn check(mesh: &Mesh, known: &Known, now: Instant, action: &Action) {
    match action {
        Action::Dial(member) => {
            assert!(known.wanted.contains(member));
            assert!(!mesh.has_link(&peer_id(*member)) && !mesh.is_dialling(*member));
            let attempt = &mesh.attempts[member];
            assert!(attempt.not_before.is_none_or(|at| at <= now));
        }
        Action::Close(id) => assert_eq!(known.streams.get(id).copied().unwrap_or(0), 0),
        Action::AskToPart(member) => {
            assert!(known.is_large && !known.wanted.contains(member));
            assert!(!mesh.relaying.contains(&peer_id(*member)));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn no_connection_in_use_is_closed_nor_a_member_dialled_twice(
        seed in any::<u64>(),
        inputs in proptest::collection::vec((any::<(u8, u16, usize)>(), 0u64..20_000), 1..200),
    ) {
        let (mut now, me) = (Instant::now(), nth(0));
        let mut mesh = Mesh::new(me, UNUSED_AFTER, seed, now);
        let (mut known, mut next) = (Known::default(), 1000);
        for (input, pause) in inputs {
            any_input(&mut mesh, &mut known, now, input);
            now += Duration::from_millis(pause);
            known.with(|view| mesh.handle(now, Input::Tick(view)));
            let mut actions = 0;
            while let Some(action) = mesh.poll(now) {
                actions += 1;
                prop_assert!(actions < 1000);
                check(&mesh, &known, now, &action);
                if let Action::Dial(member) = action {
                    next += 1;
                    mesh.handle(now, match next % 4 {
                        0 => Input::NoAddress(member),
                        1 => Input::Dialled { member, id: None },
                        _ => Input::Dialled { member, id: Some(connection(next)) },
                    });
                }
            }
        }
        // All quiet: every wanted member is dialled in the end.
        known.wanted = (1..=4).map(nth).collect();
        let mut dialled = BTreeSet::new();
        for _ in 0..200 {
            now += Duration::from_secs(1);
            known.with(|view| mesh.handle(now, Input::Tick(view)));
            while let Some(action) = mesh.poll(now) {
                if let Action::Dial(member) = action {
                    dialled.insert(member);
                    mesh.handle(now, Input::NoAddress(member));
                }
            }
        }
        for member in known.wanted {
            let reached = mesh.has_link(&peer_id(member)) || mesh.is_dialling(member);
            prop_assert!(reached || dialled.contains(&member));
        }
    }
}
