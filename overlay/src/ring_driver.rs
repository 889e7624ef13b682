//! Runs the ring: owns its state machine, passes it links, packets and the time, and carries out
//! its outputs. Its edges are links of the packet plane; its packets travel in their sealed frames
//! (`plane/path/ring.rs`).
//!
//! Members to meet from outside of the ring (seeds) are taken from the control plane's connections:
//! any of them if this member is alone, and one that should answer over the ring and does not. So
//! two rings find each other after a partition has healed.

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

/// How long before a link that came or went is noticed. A change of path is noticed at once.
const SYNC_EVERY: Duration = Duration::from_millis(500);
/// How long before the published state of the ring and the rates of traffic are updated.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// How long before traffic is measured again: the matrix averages over as long.
const TRAFFIC_EVERY: Duration = Duration::from_secs(4);
/// How long before a member that has just started looks for a seed again.
const FIRST_SEED_EVERY: Duration = Duration::from_millis(20);
/// How long before a member that is alone tries another seed.
const SEED_EVERY: Duration = Duration::from_secs(2);
/// How long before another member of the control plane, drawn at random, is asked over the ring.
/// Reason: there may be two rings.
const PROVE_EVERY: Duration = Duration::from_secs(60);
/// How long a member that has just connected has to take its place before it is asked over the
/// ring.
const SETTLE: Duration = Duration::from_secs(3);
/// How many newly connected members wait to be asked.
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
    /// Links that the ring has been told of and has not released.
    edges: HashSet<MemberId>,
    /// Links at the last look.
    links: BTreeSet<MemberId>,
    /// Links in the making.
    asked: HashSet<MemberId>,
    connected: HashSet<MemberId>,
    /// Newly connected members to ask over the ring, each with the earliest time.
    unproved: VecDeque<(Instant, MemberId)>,
    /// When traffic was last measured.
    traffic_at: Instant,
    seed_at: Instant,
    /// Whether a seed has been tried since the start.
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
                // The member was in the ring already, or is gone again.
                self.report(member);
            }
            Outcome::NoLink(member) => {
                self.asked.remove(&member);
                self.ring
                    .handle(Instant::now(), Input::LinkFailed { member });
            }
            Outcome::Elsewhere(member) => {
                tracing::info!(
                    ?member,
                    "a member is not in our ring: the rings are to merge"
                );
                self.ring.handle(Instant::now(), Input::Seed(member));
            }
        }
    }

    /// Reports to the ring whether the link stands.
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

    /// Reports links that came or went since the last look.
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
                        tracing::info!(
                            position = %self.net.me().position,
                            "this node is in the ring"
                        )
                    }
                    Event::Alone => tracing::info!("this node has no neighbour on the ring"),
                    Event::Died(member) => tracing::info!(?member, "a neighbour on the ring died"),
                    Event::Found(member) => {
                        tracing::debug!(?member, "this node has an unknown neighbour on the ring")
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
                    tracing::debug!(
                        ?member,
                        error = %p2pvm_host::chain(&error),
                        "the member has no edge"
                    );
                    Outcome::NoLink(member)
                }
            };
            // A driver that has ended makes no links.
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

    /// Passes the ring the traffic with each member and their coordinates, which shortcuts depend
    /// on.
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
                // Not all at the same time: a bootstrap that returns would meet every member at
                // once.
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

    /// Meets one of the connected members, if there are any: preferably one that every member can
    /// reach, because a link to it does not depend on our own NAT.
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
