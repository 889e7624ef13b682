//! Runs the ring: owns its state machine, tells it which links stand, what neighbours handed over
//! and what time it is, and does what it asks. Its edges are links of the packet plane; its packets
//! travel in their sealed frames (`plane/path/ring.rs`).
//!
//! Who may be met from outside of the ring (a seed) is what the control plane is connected with:
//! one of them when this member is alone, and one that does not answer over the ring when it
//! should, which is how two rings find each other after a partition has healed.

use crate::{
    connect::Connector,
    fabric::Fabric,
    id::MemberId,
    ring::{Event, Input, Kind, Output, Packet, Position, Ring, RingOptions},
    ring_net::RingNet,
};
use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};

/// Links that appeared or went are noticed at the latest after this; a change of path is noticed at
/// once.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// What others see of the ring, and how much traffic there is, is brought up to date this often.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Traffic is looked at this often: the matrix averages over as long.
const TRAFFIC_EVERY: Duration = Duration::from_secs(4);
/// A member that has just started looks this often for somebody to meet.
const FIRST_SEED_EVERY: Duration = Duration::from_millis(20);
/// A member that is alone tries another seed after this.
const SEED_EVERY: Duration = Duration::from_secs(2);
/// A random member of the control plane is asked over the ring this often, in case that there are
/// two rings.
const PROVE_EVERY: Duration = Duration::from_secs(60);
/// A member that has just connected has this long to take its place before it is asked over the
/// ring.
const SETTLE: Duration = Duration::from_secs(3);
/// Newly connected members that wait to be asked.
const MAX_UNPROVED: usize = 64;

/// A running ring; dropping it ends it, and this member leaves its place.
pub struct RingDriver {
    _tasks: JoinSet<()>,
}

impl RingDriver {
    /// Takes this member's place on the ring and keeps it. Must be called within a tokio runtime.
    pub fn start(
        net: Arc<RingNet>,
        connector: Arc<Connector>,
        fabric: Arc<dyn Fabric>,
        options: RingOptions,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let Some(packets) = net.plane().take_ring_packets() else {
            return Self { _tasks: tasks };
        };
        let (outcomes, outcome) = mpsc::channel(64);
        let ring = Ring::new(net.me().member, options, rand::random());
        net.plane().set_ring_table(ring.table());
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
            traffic_at: now,
            seed_at: now,
            seeded: false,
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
    /// When traffic was last looked at.
    traffic_at: Instant,
    seed_at: Instant,
    /// Somebody has been tried since the start.
    seeded: bool,
    prove_at: Instant,
    outcomes: mpsc::Sender<Outcome>,
}

impl Driver {
    async fn run(
        mut self,
        mut packets: mpsc::Receiver<(MemberId, Packet)>,
        mut outcome: mpsc::Receiver<Outcome>,
    ) {
        let plane = self.net.plane().clone();
        let mut sync = tokio::time::interval(SYNC_EVERY);
        let mut show = tokio::time::interval(SHOW_EVERY);
        let mut first = tokio::time::interval(FIRST_SEED_EVERY);
        first.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                () = plane.path_changed() => self.look_at_links(),
                () = tokio::time::sleep_until(
                    wake.unwrap_or_else(tokio::time::Instant::now)
                ), if wake.is_some() => {
                    self.ring.handle(Instant::now(), Input::Tick);
                }
                _ = sync.tick() => self.look_at_links(),
                _ = show.tick() => self.every_second(Instant::now()),
                _ = first.tick(), if !self.seeded => {
                    let connected = self.fabric.connected().into_iter().collect();
                    self.seed(Instant::now(), &connected);
                }
            }
            self.run_outputs();
            if plane.is_shut_down() {
                return;
            }
        }
    }

    fn on_packet(&mut self, from: MemberId, packet: Packet) {
        match packet.header.kind {
            Kind::Call | Kind::Answer => self.net.take(&packet),
            _ => self
                .ring
                .handle(Instant::now(), Input::Received { from, packet }),
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
                self.ring
                    .handle(Instant::now(), Input::LinkFailed { member });
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
        let plane = self.net.plane();
        if plane.may_be_edge(member) {
            if self.edges.insert(member) {
                let rtt = plane.path(member).and_then(|info| info.rtt);
                plane.set_edge(member, true);
                self.ring.handle(now, Input::Linked { member, rtt });
            }
        } else if !self.edges.contains(&member) {
            self.ring.handle(now, Input::LinkFailed { member });
        }
    }

    /// Links that came and went since the last look.
    fn look_at_links(&mut self) {
        let links = self.net.plane().possible_edges();
        let (came, went): (Vec<_>, Vec<_>) = (
            links.difference(&self.links).copied().collect(),
            self.links.difference(&links).copied().collect(),
        );
        self.links = links;
        for member in went {
            if self.edges.remove(&member) {
                self.ring.handle(Instant::now(), Input::Unlinked { member });
            }
            self.net.plane().set_edge(member, false);
        }
        for member in came {
            self.report(member);
        }
    }

    fn run_outputs(&mut self) {
        while let Some(output) = self.ring.poll() {
            match output {
                Output::Send { to, packet } => {
                    let _ = self.net.plane().send_to_ring_neighbour(&to, &packet);
                }
                Output::Link { member, agent } => self.link(member, agent),
                Output::Unlink { member } => {
                    self.edges.remove(&member);
                    self.net.plane().set_edge(member, false);
                }
                Output::TableChanged(table) => self.net.plane().set_ring_table(table),
                Output::Deliver { packet, .. } => {
                    if matches!(packet.header.kind, Kind::Call | Kind::Answer) {
                        self.net.take(&packet);
                    }
                }
                Output::Event(event) => match event {
                    Event::Joined => {
                        tracing::info!(position = %self.net.me().position, "in the ring")
                    }
                    Event::Alone => tracing::info!("alone: no neighbour on the ring"),
                    Event::Died(member) => tracing::info!(?member, "a neighbour on the ring died"),
                    Event::Found(member) => {
                        tracing::debug!(?member, "a neighbour on the ring that was not known")
                    }
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
                    tracing::debug!(?member, error = %p2pvm_host::chain(&error), "no edge");
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

    /// Who talks with whom, and where they are: what shortcuts are made by.
    fn measure(&mut self, now: Instant) {
        let rates = self.net.plane().traffic().by_member();
        let places: Vec<_> = rates
            .iter()
            .filter_map(|(member, _)| Some((*member, self.connector.coordinate(*member)?)))
            .collect();
        self.traffic_at = now;
        self.ring.handle(now, Input::Traffic(&rates));
        self.ring.handle(now, Input::Places(&places));
    }

    /// Members to meet from outside of the ring.
    fn seek(&mut self, now: Instant, joined: bool) {
        let connected: HashSet<MemberId> = self.fabric.connected().into_iter().collect();
        if !joined {
            if self.seed_at <= now {
                self.seed(now, &connected);
            }
        } else {
            let new = connected.iter().filter(|m| !self.connected.contains(m));
            for member in new.take(MAX_UNPROVED.saturating_sub(self.unproved.len())) {
                // Not all at the same time: a bootstrap that comes back meets everyone at once.
                self.unproved
                    .push_back((now + SETTLE.mul_f64(rand::random_range(1.0..2.0)), *member));
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

    /// Meets one of the members that are connected, if there are any: rather one that everybody can
    /// reach, to which a link needs no knowledge of our own NAT.
    fn seed(&mut self, now: Instant, connected: &HashSet<MemberId>) {
        let open: HashSet<MemberId> = connected
            .iter()
            .filter(|m| self.fabric.rtt_of_open(**m).is_some())
            .copied()
            .collect();
        if let Some(member) = any_of(&open).or_else(|| any_of(connected)) {
            (self.seed_at, self.seeded) = (now + SEED_EVERY, true);
            self.ring.handle(now, Input::Seed(member));
        }
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
