//! Runs the ring: owns its state machine, tells it which links stand, what neighbours handed over and what time it is, and does
//! what it asks. Its edges are links of the packet plane; its packets travel in their sealed frames (`plane/ring.rs`).
//!
//! [`RingNet`] is what others hold of it: calls over the ring, traces, and how it stands. Who may be met from outside of the
//! ring (a seed) is what the control plane is connected with: one of them when this member is alone, and one that does not
//! answer over the ring when it should, which is how two rings find each other after a partition has healed.

use crate::{
    connect::Connector,
    fabric::Fabric,
    id::MemberId,
    plane::{Inner, Path, Plane},
    ring::{
        Next, Position, Ring, RingOptions, RingStatus,
        api::{Event, Input, Output},
        position::Node,
        wire::{Header, Kind, Mode, Packet},
    },
};
use arc_swap::ArcSwapOption;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// A call is sent again after these pauses: a ring under repair loses packets for a moment.
const REPEAT_MS: [u64; 3] = [350, 600, 900];
/// Calls under way at once.
const MAX_CALLS: usize = 1024;
/// Answers kept in case that their call comes again, so that a repetition has no second effect.
const KEPT_ANSWERS: usize = 128;
/// Links that appeared or went are noticed at the latest after this; a change of path is noticed at once.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// What others see of the ring, and how much traffic there is, is brought up to date this often.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Traffic is averaged over this.
const TRAFFIC_EVERY: Duration = Duration::from_secs(4);
/// A member that is alone tries another seed after this.
const SEED_EVERY: Duration = Duration::from_secs(2);
/// A random member of the control plane is asked over the ring this often, in case that there are two rings.
const PROVE_EVERY: Duration = Duration::from_secs(60);
/// A member that has just connected has this long to take its place before it is asked over the ring.
const SETTLE: Duration = Duration::from_secs(3);
/// Newly connected members that wait to be asked.
const MAX_UNPROVED: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers calls that come over the ring.
pub(crate) trait Answers: Send + Sync {
    /// What to answer to a call, if anything. Nothing proves who asks.
    fn answer(&self, asked: &Header, body: &[u8]) -> Option<Vec<u8>>;
}

/// The ring as others in the daemon see it.
pub struct RingNet {
    plane: Plane,
    me: Node,
    calls: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
    answered: Mutex<VecDeque<((Position, u64), Vec<u8>)>>,
    answers: OnceLock<Arc<dyn Answers>>,
    status: ArcSwapOption<RingStatus>,
    lost_calls: AtomicU64,
}

impl RingNet {
    /// The ring over the links of `plane`. It stands once a [`RingDriver`] runs.
    pub fn new(plane: Plane) -> Arc<Self> {
        let me = Node::from(plane.inner().me);
        Arc::new(Self {
            plane,
            me,
            calls: Mutex::default(),
            answered: Mutex::default(),
            answers: OnceLock::new(),
            status: ArcSwapOption::empty(),
            lost_calls: AtomicU64::new(0),
        })
    }

    fn inner(&self) -> &Arc<Inner> {
        self.plane.inner()
    }

    /// Where this member stands.
    pub fn me(&self) -> Node {
        self.me
    }

    /// How the ring stood a moment ago; `None` until it runs.
    pub fn status(&self) -> Option<Arc<RingStatus>> {
        self.status.load_full()
    }

    /// Packets of other pairs that this member has handed on.
    pub fn carried(&self) -> u64 {
        self.inner().ring.carried.load(Ordering::Relaxed)
    }

    /// Calls that nobody answered.
    pub fn lost_calls(&self) -> u64 {
        self.lost_calls.load(Ordering::Relaxed)
    }

    /// Whether there are neighbours to route over.
    pub fn stands(&self) -> bool {
        self.inner().ring_stands()
    }

    pub(crate) fn serve(&self, answers: Arc<dyn Answers>) {
        let _ = self.answers.set(answers);
    }

    /// Gives a packet of our own to the neighbour that takes it on. `via`: to this one in any case, which also takes the answer.
    pub(crate) fn originate(&self, mut header: Header, body: Vec<u8>, via: Option<Position>) -> bool {
        let table = self.inner().ring.table.load();
        let Some(table) = table.as_ref() else { return false };
        let Some((first, agent)) = crate::plane::first_hop(table, &header, via) else { return false };
        header.agent = agent;
        self.inner().ring_send(&first, &Packet { header, body })
    }

    /// Asks the member at `to` and waits for its answer at most `limit`. `via`: through this neighbour, as its leaf.
    pub async fn call(&self, to: Position, via: Option<Position>, body: Vec<u8>, limit: Duration) -> Option<Vec<u8>> {
        self.exchange(Kind::Call, to, via, body, limit).await
    }

    /// Sends a packet that begins with an id, again while nothing comes back, and waits for what comes back under this id.
    async fn exchange(&self, kind: Kind, to: Position, via: Option<Position>, body: Vec<u8>, limit: Duration) -> Option<Vec<u8>> {
        let id: u64 = rand::random();
        let (answer, answered) = oneshot::channel();
        {
            let mut calls = lock(&self.calls);
            calls.retain(|_, waiting| !waiting.is_closed());
            if calls.len() >= MAX_CALLS {
                return None;
            }
            calls.insert(id, answer);
        }
        let body = [&id.to_be_bytes()[..], &body].concat();
        let send = async {
            for pause in REPEAT_MS {
                self.originate(Header::new(kind, self.me.position, to), body.clone(), via);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            self.originate(Header::new(kind, self.me.position, to), body.clone(), via);
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            () = send => None,
            got = tokio::time::timeout(limit, answered) => got.ok().and_then(Result::ok),
        };
        lock(&self.calls).remove(&id);
        if got.is_none() {
            self.lost_calls.fetch_add(1, Ordering::Relaxed);
        }
        got
    }

    /// A call or an answer that ends here.
    fn take(&self, packet: &Packet) {
        let Some((id, body)) = packet.body.split_first_chunk::<8>() else { return };
        let number = u64::from_be_bytes(*id);
        if packet.header.kind == Kind::Answer {
            let waiting = lock(&self.calls).remove(&number);
            waiting.map(|waiting| waiting.send(body.to_vec()));
            return;
        }
        let asked = (packet.header.from, number);
        let known = lock(&self.answered).iter().find(|(of, _)| *of == asked).map(|(_, answer)| answer.clone());
        let answer = match known {
            Some(answer) => answer,
            None => {
                let Some(answer) = self.answers.get().and_then(|a| a.answer(&packet.header, body)) else { return };
                let mut answered = lock(&self.answered);
                if answered.len() >= KEPT_ANSWERS {
                    answered.pop_front();
                }
                answered.push_back((asked, answer.clone()));
                answer
            }
        };
        let reply = packet.header.reply(Kind::Answer, self.me.position);
        self.originate(reply, [&id[..], &answer].concat(), None);
    }
}

/// A running ring; dropping it ends it, and this member leaves its place.
pub struct RingDriver {
    _tasks: JoinSet<()>,
}

impl RingDriver {
    /// Takes this member's place on the ring and keeps it. Must be called within a tokio runtime.
    pub fn start(net: Arc<RingNet>, connector: Arc<Connector>, fabric: Arc<dyn Fabric>, options: RingOptions) -> Self {
        let mut tasks = JoinSet::new();
        let Some(packets) = net.inner().take_ring_packets() else { return Self { _tasks: tasks } };
        let (outcomes, outcome) = mpsc::channel(64);
        let ring = Ring::new(net.me.member, options, rand::random());
        net.inner().ring.table.store(Some(ring.table()));
        let now = Instant::now();
        let driver = Driver {
            ring,
            net,
            connector,
            fabric,
            edges: HashSet::new(),
            links: BTreeSet::new(),
            asked: HashSet::new(),
            connected: HashSet::new(),
            unproved: VecDeque::new(),
            traffic: HashMap::new(),
            traffic_at: now,
            seed_at: now,
            prove_at: now + PROVE_EVERY,
            outcomes,
        };
        tasks.spawn(driver.run(packets, outcome));
        Self { _tasks: tasks }
    }
}

enum Outcome {
    /// No link to this member could be made.
    NoLink(MemberId),
    /// A link was made, or the attempt was given up because there is one.
    Link(MemberId),
    /// The control plane reaches this member and the ring does not.
    Elsewhere(MemberId),
}

struct Driver {
    ring: Ring,
    net: Arc<RingNet>,
    connector: Arc<Connector>,
    fabric: Arc<dyn Fabric>,
    /// Links that the ring knows of and has not let go.
    edges: HashSet<MemberId>,
    /// Links that there were at the last look.
    links: BTreeSet<MemberId>,
    /// Links that are being made.
    asked: HashSet<MemberId>,
    connected: HashSet<MemberId>,
    /// Members that have connected and are to be asked over the ring, and from when on.
    unproved: VecDeque<(Instant, MemberId)>,
    /// Bytes counted at the last look.
    traffic: HashMap<MemberId, u64>,
    traffic_at: Instant,
    seed_at: Instant,
    prove_at: Instant,
    outcomes: mpsc::Sender<Outcome>,
}

impl Driver {
    async fn run(mut self, mut packets: mpsc::Receiver<(MemberId, Packet)>, mut outcome: mpsc::Receiver<Outcome>) {
        let plane = self.net.inner().clone();
        let mut sync = tokio::time::interval(SYNC_EVERY);
        let mut show = tokio::time::interval(SHOW_EVERY);
        sync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        show.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.ring.wake_at().map(tokio::time::Instant::from_std);
            tokio::select! {
                packet = packets.recv() => match packet {
                    Some((from, packet)) => self.on_packet(from, packet),
                    None => return,
                },
                Some(outcome) = outcome.recv() => self.on_outcome(outcome),
                () = plane.path_changed.notified() => self.look_at_links(),
                () = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)), if wake.is_some() => {
                    self.ring.handle(Instant::now(), Input::Tick);
                }
                _ = sync.tick() => self.look_at_links(),
                _ = show.tick() => self.every_second(Instant::now()),
            }
            self.run_outputs();
            if plane.stop.raised() {
                return;
            }
        }
    }

    fn on_packet(&mut self, from: MemberId, packet: Packet) {
        match packet.header.kind {
            Kind::Call | Kind::Answer => self.net.take(&packet),
            _ => self.ring.handle(Instant::now(), Input::Received { from, packet }),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Link(member) => {
                self.asked.remove(&member);
                self.look_at_links();
                // It was there already, or is gone again.
                self.report(member);
            }
            Outcome::NoLink(member) => {
                self.asked.remove(&member);
                self.ring.handle(Instant::now(), Input::LinkFailed { member });
            }
            Outcome::Elsewhere(member) => {
                tracing::info!(?member, "not in our ring: the rings are to merge");
                self.ring.handle(Instant::now(), Input::Seed(member));
            }
        }
    }

    /// Tells the ring of a link that stands, or that it does not.
    fn report(&mut self, member: MemberId) {
        let now = Instant::now();
        let peer = self.net.inner().peers.load().get(&member).cloned();
        if peer.as_ref().is_some_and(|peer| peer.is_edge_path() && peer.ready()) {
            if self.edges.insert(member) {
                let rtt = peer.as_ref().and_then(|peer| peer.info()).and_then(|info| info.rtt);
                peer.inspect(|peer| peer.set_edge(true));
                self.ring.handle(now, Input::Linked { member, rtt });
            }
        } else if !self.edges.contains(&member) {
            self.ring.handle(now, Input::LinkFailed { member });
        }
    }

    /// Links that came and went since the last look.
    fn look_at_links(&mut self) {
        let plane = self.net.inner().clone();
        let links: BTreeSet<MemberId> =
            plane.peers.load().iter().filter(|peer| peer.is_edge_path() && peer.ready()).map(|peer| peer.member).collect();
        let (came, went): (Vec<_>, Vec<_>) =
            (links.difference(&self.links).copied().collect(), self.links.difference(&links).copied().collect());
        self.links = links;
        for member in went {
            if self.edges.remove(&member) {
                self.ring.handle(Instant::now(), Input::Unlinked { member });
            }
            if let Some(peer) = plane.peers.load().get(&member) {
                peer.set_edge(false);
            }
        }
        for member in came {
            self.report(member);
        }
    }

    fn run_outputs(&mut self) {
        while let Some(output) = self.ring.poll() {
            match output {
                Output::Send { to, packet } => drop(self.net.inner().ring_send(&to, &packet)),
                Output::Link { member, agent } => self.link(member, agent),
                Output::Unlink { member } => {
                    self.edges.remove(&member);
                    if let Some(peer) = self.net.inner().peers.load().get(&member) {
                        peer.set_edge(false);
                    }
                }
                Output::TableChanged(table) => self.net.inner().ring.table.store(Some(table)),
                Output::Deliver { packet, .. } => {
                    if matches!(packet.header.kind, Kind::Call | Kind::Answer) {
                        self.net.take(&packet);
                    }
                }
                Output::Event(event) => match event {
                    Event::Joined => tracing::info!(position = %self.net.me.position, "in the ring"),
                    Event::Alone => tracing::info!("alone: no neighbour on the ring"),
                    Event::Died(member) => tracing::info!(?member, "a neighbour on the ring died"),
                    Event::Found(member) => tracing::debug!(?member, "a neighbour on the ring that was not known"),
                },
            }
        }
    }

    fn link(&mut self, member: MemberId, agent: Option<Position>) {
        if self.links.contains(&member) {
            return self.report(member);
        }
        if !self.asked.insert(member) {
            return;
        }
        let (connector, outcomes) = (self.connector.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            let outcome = match connector.ensure_edge(member, agent).await {
                Ok(_) => Outcome::Link(member),
                Err(error) => {
                    tracing::debug!(?member, %error, "no edge");
                    Outcome::NoLink(member)
                }
            };
            // A driver that has ended asks nobody any more.
            let _ = outcomes.send(outcome).await;
        });
    }

    fn every_second(&mut self, now: Instant) {
        let status = self.ring.status();
        self.seek(now, status.joined);
        self.net.status.store(Some(Arc::new(status)));
        if now.saturating_duration_since(self.traffic_at) >= TRAFFIC_EVERY {
            self.measure(now);
        }
    }

    /// What goes to and comes from each member by way of guests and hosts, for shortcuts.
    fn measure(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.traffic_at).as_secs_f64();
        let counted: HashMap<MemberId, u64> =
            self.net.plane.peers().into_iter().map(|(member, info)| (member, info.tx_bytes + info.rx_bytes)).collect();
        let rate = |(member, bytes): (&MemberId, &u64)| {
            let before = self.traffic.get(member).copied().unwrap_or(*bytes);
            let rate = (bytes.saturating_sub(before) as f64 / seconds) as u64;
            (rate > 0).then_some((*member, rate))
        };
        let rates: Vec<(MemberId, u64)> = counted.iter().filter_map(rate).collect();
        (self.traffic, self.traffic_at) = (counted, now);
        self.ring.handle(now, Input::Traffic(&rates));
    }

    /// Members to meet from outside of the ring.
    fn seek(&mut self, now: Instant, joined: bool) {
        let connected: HashSet<MemberId> = self.fabric.connected().into_iter().collect();
        if !joined {
            if self.seed_at <= now
                && let Some(member) = any_of(&connected)
            {
                self.seed_at = now + SEED_EVERY;
                self.ring.handle(now, Input::Seed(member));
            }
        } else {
            let new = connected.iter().filter(|m| !self.connected.contains(m));
            for member in new.take(MAX_UNPROVED.saturating_sub(self.unproved.len())) {
                // Not all at the same time: a bootstrap that comes back meets everyone at once.
                self.unproved.push_back((now + SETTLE.mul_f64(rand::random_range(1.0..2.0)), *member));
            }
            if self.prove_at <= now
                && let Some(member) = any_of(&connected)
            {
                self.prove_at = now + PROVE_EVERY.mul_f64(rand::random_range(0.75..1.25));
                self.unproved.push_back((now, member));
            }
            let due = self.unproved.iter().position(|(at, _)| *at <= now);
            if let Some((_, member)) = due.and_then(|i| self.unproved.remove(i))
                && !self.edges.contains(&member)
                && connected.contains(&member)
            {
                self.prove(member);
            }
        }
        self.connected = connected;
    }

    /// Asks a member over the ring whether it is there.
    fn prove(&self, member: MemberId) {
        let (connector, outcomes) = (self.connector.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            if !connector.alive_over_ring(member).await {
                let _ = outcomes.send(Outcome::Elsewhere(member)).await;
            }
        });
    }
}

fn any_of(members: &HashSet<MemberId>) -> Option<MemberId> {
    let at = rand::random_range(0..members.len().max(1));
    members.iter().nth(at).copied()
}
