//! An internet of members behind NATs in virtual time, from one seed. The connector's state, its
//! survey and its settling are the real ones, and so are the plane's paths; datagrams, the control
//! plane and the NATs (RFC 4787) are simulated.

mod links;

use super::{
    super::{
        Host, State, Statement,
        examine::KnockResult,
        survey::{self, Survey},
    },
    gate::{Gate, Home},
};
use crate::{
    connect::{ConnectOptions, message::Reachability},
    id::MemberId,
    plane::{
        Path,
        paths::{Activity, Paths, Step},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The port of every member's packet plane.
pub const PORT: u16 = 7;
const STUN_LIMIT: Duration = Duration::from_millis(1200);
const STUN_RESENDS_MS: [u64; 3] = [0, 400, 800];
const KNOCK_LATE: Duration = Duration::from_millis(400);
const GLANCE: Duration = Duration::from_millis(20);

type Event = Box<dyn FnOnce(&mut World)>;
/// Takes the address at which a STUN server saw the asker.
type Answer = Box<dyn FnOnce(&mut World, Option<SocketAddr>)>;

#[derive(Clone, Copy, Debug)]
enum Body {
    StunRequest(u64),
    StunResponse(u64, SocketAddr),
    Knock(u64),
    Ping(usize, u64),
    Pong(usize, u64),
}

pub struct Node {
    pub member: MemberId,
    pub gate: Gate,
    pub state: State,
    survey: Survey,
    host: Host,
    /// The ways to other members.
    paths: BTreeMap<usize, Paths>,
    /// When another member was last heard.
    received: BTreeMap<usize, Instant>,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    rng: StdRng,
    pub nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    bodies: HashMap<u64, Event>,
    number: u64,
    loss: f64,
    stun: HashMap<u64, Answer>,
    heard: BTreeSet<u64>,
    /// Members that talk to each other, and so keep their links in use.
    talks: Vec<(usize, usize)>,
}

impl World {
    /// The first members are open to all; the others live in these homes.
    pub fn new(seed: u64, open: usize, homes: &[Home], loss: f64) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let all = std::iter::repeat_n(Home::Open, open).chain(homes.iter().copied());
        let nodes = all.enumerate().map(|(n, home)| {
            let gate = Gate::new(home, n as u8, rng.random_range(20_000..50_000));
            let member = MemberId([n as u8 + 1; 32]);
            Node {
                member,
                state: State::new(member, ConnectOptions::default()),
                survey: Survey::new(now),
                host: Host {
                    local: vec![gate.local()],
                    port: PORT,
                    uses_second_port: false,
                },
                gate,
                paths: BTreeMap::new(),
                received: BTreeMap::new(),
            }
        });
        let mut world = Self {
            now,
            start: now,
            nodes: nodes.collect(),
            rng,
            events: BinaryHeap::new(),
            bodies: HashMap::new(),
            number: 0,
            loss,
            stun: HashMap::new(),
            heard: BTreeSet::new(),
            talks: Vec::new(),
        };
        for n in 0..world.nodes.len() {
            world.after(Duration::ZERO, move |w| w.survey(n, survey::Input::Tick));
            world.after(Duration::from_secs(1), move |w| w.tick(n));
        }
        world
    }

    fn after(&mut self, delay: Duration, event: impl FnOnce(&mut World) + 'static) {
        self.number += 1;
        self.events.push(Reverse((self.now + delay, self.number)));
        self.bodies.insert(self.number, Box::new(event));
    }

    /// Runs for `time`, or until `is_over`.
    pub fn run(&mut self, time: Duration, is_over: impl Fn(&World) -> bool) {
        let end = self.now + time;
        while !is_over(self) {
            let Some(Reverse((at, number))) = self.events.pop() else {
                break;
            };
            if at > end {
                self.events.push(Reverse((at, number)));
                break;
            }
            self.now = at;
            let event = self
                .bodies
                .remove(&number)
                .expect("each event is there once");
            event(self);
        }
    }

    fn delay(&mut self, a: usize, b: usize) -> Duration {
        let base = 10 + 13 * ((a * 7 + b * 7) % 9) as u64;
        Duration::from_millis(base + self.rng.random_range(0..6))
    }

    fn connected(&self, n: usize) -> Vec<MemberId> {
        let others = self.nodes.iter().map(|node| node.member);
        others.filter(|m| *m != self.nodes[n].member).collect()
    }

    fn index(&self, member: MemberId) -> usize {
        usize::from(member.0[0]) - 1
    }

    fn reachability(&self, n: usize) -> Reachability {
        let node = &self.nodes[n];
        Reachability {
            candidates: node.state.candidates(self.now, &node.host),
            nat: node.state.nat.kind,
            neighbours: self.connected(n).into_iter().map(|m| (m, None)).collect(),
            relay: true,
            coordinate: None,
        }
    }

    /// The path that data takes from one member to another.
    pub fn path(&self, n: usize, m: usize) -> Option<Path> {
        self.nodes[n].paths.get(&m)?.selected()
    }

    // --- Datagrams

    fn send(&mut self, n: usize, port: u16, to: SocketAddr, body: Body) {
        let Some(from) = self.nodes[n].gate.sent(port, to) else {
            return;
        };
        if self.loss > 0.0 && self.rng.random_bool(self.loss) {
            return;
        }
        let Some(m) = self
            .nodes
            .iter()
            .position(|node| node.gate.outside() == to.ip())
        else {
            return;
        };
        let delay = self.delay(n, m);
        self.after(delay, move |w| {
            if let Some(port) = w.nodes[m].gate.received(to.port(), from) {
                w.received(m, port, from, body);
            }
        });
    }

    fn received(&mut self, n: usize, port: u16, from: SocketAddr, body: Body) {
        match body {
            Body::StunRequest(id) => self.send(n, port, from, Body::StunResponse(id, from)),
            Body::StunResponse(id, mapped) => {
                if let Some(done) = self.stun.remove(&id) {
                    done(self, Some(mapped));
                }
            }
            Body::Knock(id) => drop(self.heard.insert(id)),
            Body::Ping(m, token) => {
                self.send(n, port, from, Body::Pong(n, token));
                self.pinged(n, m, Path::Direct(from));
            }
            Body::Pong(m, token) => self.ponged(n, m, Path::Direct(from), token),
        }
    }

    fn stun_query(
        &mut self,
        n: usize,
        to: SocketAddr,
        done: impl FnOnce(&mut World, Option<SocketAddr>) + 'static,
    ) {
        self.number += 1;
        let id = self.number;
        self.stun.insert(id, Box::new(done));
        for ms in STUN_RESENDS_MS {
            self.after(Duration::from_millis(ms), move |w| {
                if w.stun.contains_key(&id) {
                    w.send(n, PORT, to, Body::StunRequest(id));
                }
            });
        }
        self.after(STUN_LIMIT, move |w| {
            if let Some(done) = w.stun.remove(&id) {
                done(w, None);
            }
        });
    }

    // --- The survey

    fn survey(&mut self, n: usize, input: survey::Input) {
        let (now, connected) = (self.now, self.connected(n));
        let path = |paths: &Paths| paths.selected();
        let node = &mut self.nodes[n];
        let in_use = node.paths.values().map(|p| (Duration::ZERO, path(p)));
        let view = survey::View {
            host: &node.host,
            connected: &connected,
            gets_through: node
                .paths
                .values()
                .any(|p| matches!(path(p), Some(Path::Direct(_)))),
            wants_better: super::super::links::wants_better(in_use),
            is_linked: &|member| node.paths.contains_key(&(usize::from(member.0[0]) - 1)),
        };
        node.survey.handle(now, &mut node.state, &view, input);
        while let Some(action) = self.nodes[n].survey.poll() {
            self.ask(n, action);
        }
        self.act(n);
        if let Some(wake) = self.nodes[n].survey.wake_at() {
            let delay = wake.saturating_duration_since(self.now);
            self.after(delay, move |w| {
                // An older wake-up may be due before another round: it says nothing.
                if w.nodes[n].survey.wake_at() == Some(wake) {
                    w.survey(n, survey::Input::Tick);
                }
            });
        }
    }

    fn ask(&mut self, n: usize, action: survey::Action) {
        use survey::Input as In;
        match action {
            survey::Action::AskWhere(member) => {
                let m = self.index(member);
                let (there, back) = (self.delay(n, m), self.delay(n, m));
                self.after(there, move |w| {
                    let reachability = w.reachability(m);
                    let statement = Statement {
                        reachability,
                        hidden: None,
                    };
                    w.after(back, move |w| {
                        w.survey(n, In::Where(member, Some(statement)))
                    });
                });
            }
            survey::Action::Stun(query, to) => self.stun_query(n, to, move |w, mapped| {
                w.survey(n, In::Stun(query, mapped));
            }),
            survey::Action::AskAlive(member) => {
                let m = self.index(member);
                let delay = self.delay(n, m) * 2;
                self.after(delay, move |w| w.survey(n, In::Alive(member, true)));
            }
            survey::Action::LookFromSecondPort => {
                self.after(STUN_LIMIT, move |w| w.survey(n, In::SecondPort(false)));
            }
            survey::Action::Knock {
                member,
                mapped,
                elsewhere,
            } => self.knock(n, self.index(member), mapped, elsewhere),
            survey::Action::MapAnew { helper, .. } => {
                let m = self.index(helper);
                self.map_anew(n, m, move |w, mapped| w.survey(n, In::Mapped(mapped)));
            }
            survey::Action::Learned => {}
        }
    }

    fn knock(&mut self, n: usize, m: usize, mapped: SocketAddr, elsewhere: bool) {
        self.number += 1;
        let id = self.number;
        let (there, back) = (self.delay(n, m), self.delay(n, m));
        self.after(there, move |w| {
            let port = if elsewhere {
                w.nodes[m].gate.open_port()
            } else {
                PORT
            };
            for _ in 0..2 {
                w.send(m, port, mapped, Body::Knock(id));
            }
            w.after(back, move |w| {
                let late = if w.heard.contains(&id) {
                    Duration::ZERO
                } else {
                    KNOCK_LATE
                };
                w.after(late, move |w| {
                    let knocked = KnockResult {
                        heard: w.heard.contains(&id),
                        done: true,
                        port: elsewhere.then_some(port),
                    };
                    w.survey(n, survey::Input::Knocked(knocked));
                });
            });
        });
    }

    fn map_anew(
        &mut self,
        n: usize,
        m: usize,
        done: impl FnOnce(&mut World, Option<SocketAddr>) + 'static,
    ) {
        let (there, back) = (self.delay(n, m), self.delay(n, m));
        self.after(there + back, move |w| {
            let port = w.nodes[m].gate.open_port();
            let to = SocketAddr::new(w.nodes[m].gate.outside(), port);
            w.stun_query(n, to, done);
        });
    }

    // --- Paths

    fn watch_paths(&mut self, n: usize, m: usize) {
        if self.nodes[n].paths.contains_key(&m) {
            return;
        }
        self.nodes[n].paths.insert(m, Paths::default());
        self.after(GLANCE, move |w| w.tick_paths(n, m));
    }

    fn tick_paths(&mut self, n: usize, m: usize) {
        let now = self.now;
        let talks = self.talks.iter().any(|t| [(n, m), (m, n)].contains(t));
        let node = &mut self.nodes[n];
        let activity = Activity {
            received: node.received.get(&m).copied(),
            sent: talks.then_some(now),
            ..Activity::default()
        };
        if let Some(paths) = node.paths.get_mut(&m) {
            paths.tick(now, activity);
        }
        self.run_paths(n, m);
        self.after(GLANCE, move |w| w.tick_paths(n, m));
    }

    fn try_path(&mut self, n: usize, m: usize, path: Path) {
        self.watch_paths(n, m);
        let now = self.now;
        if let Some(paths) = self.nodes[n].paths.get_mut(&m) {
            paths.add(path, now);
            paths.tick(now, Activity::default());
        }
        self.run_paths(n, m);
    }

    fn run_paths(&mut self, n: usize, m: usize) {
        while let Some(step) = self.nodes[n].paths.get_mut(&m).and_then(Paths::poll) {
            let Step::Probe(path, token) = step else {
                continue;
            };
            match path {
                Path::Direct(to) => self.send(n, PORT, to, Body::Ping(n, token)),
                _ => self.pass(n, m, path, token),
            }
        }
    }

    /// A ping and its pong over a relay, where both have UDP, or over a stream.
    fn pass(&mut self, n: usize, m: usize, path: Path, token: u64) {
        let udp = |n: usize| self.nodes[n].gate.home() != Home::NoUdp;
        if path != Path::Stream && !(udp(n) && udp(m)) {
            return;
        }
        let (there, back) = (self.delay(n, m) * 2, self.delay(n, m) * 2);
        self.after(there, move |w| {
            w.pinged(m, n, path);
            w.after(back, move |w| w.ponged(n, m, path, token));
        });
    }

    fn pinged(&mut self, n: usize, m: usize, path: Path) {
        self.watch_paths(n, m);
        let (now, before) = (self.now, self.nodes[n].received.get(&m).copied());
        self.nodes[n].received.insert(m, now);
        if let Some(paths) = self.nodes[n].paths.get_mut(&m)
            && paths.selected() != Some(path)
        {
            paths.heard(path, now, before);
        }
        self.run_paths(n, m);
    }

    fn ponged(&mut self, n: usize, m: usize, path: Path, token: u64) {
        let now = self.now;
        self.nodes[n].received.insert(m, now);
        if let Some(paths) = self.nodes[n].paths.get_mut(&m) {
            paths.pong(path, token, now);
        }
        self.run_paths(n, m);
    }
}
