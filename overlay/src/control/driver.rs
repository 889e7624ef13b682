//! The task that owns the swarm: it keeps the connections that the network needs, dials for waiting
//! callers, spreads contacts and revocations, and reserves circuits if this node cannot be dialled.
//!
//! In a network of fewer members than `ControlConfig::full_mesh` every member stays connected to
//! every other; in a larger one to its neighbours on the ring, near and far, and to the members it
//! talks to. `mesh` decides that, `dial` does it.

mod beside;
mod dial;
mod events;
mod gossip;
mod link;
mod mesh;
mod reach;
mod reservations;
mod roam;
mod saving;

use super::{
    address::peer_of,
    host::Host,
    shared::{Command, Shared},
    streams::Waiter,
    wire::Gossip,
};
use crate::{id::MemberId, identity::Identity, membership::Certificate};
use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, Swarm};
use mesh::Mesh;
use reservations::Reservations;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};

const TICK: Duration = Duration::from_millis(500);
/// How many members may be looked up at a time for callers. A further caller gets the error that
/// its member cannot be reached.
const MAX_SEARCHES: usize = 64;
/// How long changes of this node's addresses are gathered before they are published.
const PUBLISH_DELAY: Duration = Duration::from_millis(400);
const PROBE_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a node that ends waits for its connections to close.
const FAREWELL: Duration = Duration::from_millis(300);
/// How long it waits after that for the last packets to leave. Reason: QUIC's endpoint sends them
/// by itself (RFC 9000, 10.2).
const FLUSH: Duration = Duration::from_millis(30);

/// The task and its state.
pub struct Driver {
    swarm: Swarm<Host>,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    certificate: Certificate,
    commands: mpsc::Receiver<Command>,
    bootstrap: Vec<Multiaddr>,
    public_addresses: Vec<Multiaddr>,
    mesh: Mesh,
    waiting: HashMap<MemberId, Vec<Waiter>>,
    /// Members whose contact is being looked up, and members that may be looked up.
    searching: HashSet<MemberId>,
    may_search: HashSet<MemberId>,
    reservations: Reservations,
    publish_at: Option<Instant>,
    published: (Vec<String>, bool),
    /// Whether this member has left the network.
    has_left: bool,
    saving: saving::Saving,
    /// The sequence number of a contact of ours that came back and is newer than the last published
    /// one: our clock was ahead once. The next one exceeds it.
    overtaken: Option<u64>,
    started: Instant,
    cuts: Vec<(Instant, PeerId)>,
    checked_at: Instant,
    /// Connections that were asked for a sign of life, by member.
    doubts: HashMap<MemberId, beside::Doubt>,
}

impl Driver {
    pub fn new(
        swarm: Swarm<Host>,
        shared: Arc<Shared>,
        identity: Arc<Identity>,
        certificate: Certificate,
        commands: mpsc::Receiver<Command>,
        (bootstrap, public_addresses): (Vec<Multiaddr>, Vec<Multiaddr>),
        unused_after: Duration,
    ) -> Self {
        let now = Instant::now();
        let mesh = Mesh::new(shared.me, unused_after, rand::random(), now);
        Self {
            swarm,
            shared,
            identity,
            certificate,
            commands,
            bootstrap,
            public_addresses,
            mesh,
            waiting: HashMap::new(),
            searching: HashSet::new(),
            may_search: HashSet::new(),
            reservations: Reservations::default(),
            publish_at: Some(now + PUBLISH_DELAY),
            published: (Vec::new(), false),
            has_left: false,
            saving: saving::Saving::default(),
            overtaken: None,
            started: now,
            cuts: Vec::new(),
            checked_at: now,
            doubts: HashMap::new(),
        }
    }

    /// Runs until [`Command::Shutdown`].
    pub async fn run(mut self) {
        for address in self.public_addresses.clone() {
            self.swarm.add_external_address(address);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => {
                        let saved = self.save_at_last();
                        self.part_with_all().await;
                        drop(self.swarm);
                        saved.await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.on_command(command, Instant::now()),
                    None => return,
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
            self.act(Instant::now());
        }
    }

    /// Closes every connection and lets the other ends receive that. Reason: otherwise they take
    /// this node for connected until their idle timeout, and do not dial it when it is back.
    async fn part_with_all(&mut self) {
        for peer in self.mesh.peers().copied().collect::<Vec<_>>() {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, closed).await;
        // The closing packets are still to be sent.
        tokio::time::sleep(FLUSH).await;
    }

    fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Open {
                member,
                waiter,
                search,
            } => self.open(member, waiter, search),
            Command::Searched(member, news) => self.searched(member, news),
            Command::Gossip(from, gossip) => self.on_gossip(Some(from), gossip),
            Command::Revoke(revocation) => self.on_gossip(
                None,
                Gossip {
                    contacts: Vec::new(),
                    revocations: vec![*revocation],
                },
            ),
            Command::Part(member, answer) => {
                let _ = answer.send(self.agrees_to_part(member, now));
            }
            Command::Parted(member) => self.parted(member, now),
            Command::Dead(member) => {
                if let Some(peer) = peer_of(member) {
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Command::DeadLink(id) => drop(self.swarm.close_connection(id)),
            Command::Sound(member, told) => self.sound(member, told, now),
            Command::Sounded(member, id, lives) => self.sounded(member, id, lives, now),
            Command::Roamed => self.on_roamed(now),
            Command::Mapped { old, new, done } => {
                self.on_mapped(old, new);
                // The caller may have ended.
                let _ = done.send(());
            }
            Command::Farewell(told) => drop(told.send(self.farewell())),
            Command::Shutdown(_) => {}
        }
    }

    // --- Timeouts

    fn on_tick(&mut self, now: Instant) {
        if self.publish_at.is_some_and(|at| at <= now) {
            self.publish_at = None;
            self.publish();
        }
        for (_, peer) in self
            .cuts
            .extract_if(.., |(due, _)| *due <= now)
            .collect::<Vec<_>>()
        {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        self.reserve(now);
        self.end_doubts(now);
        self.tick_mesh(now);
        // Only if it changed: so a node that is killed a second after it joined still finds its
        // network.
        self.save_book();
        if now.duration_since(self.checked_at) > Duration::from_secs(60) {
            self.checked_at = now;
            self.cut_untrusted(); // Certificates also expire.
        }
    }
}
