//! The task that owns the swarm: it keeps the connections that the network needs, dials for those
//! who wait, spreads contacts and revocations, and reserves circuits where this node cannot be
//! dialled.
//!
//! In a network of at most `ControlConfig::full_mesh` members everyone stays connected to everyone;
//! in a larger one to its neighbours on the ring, near and far, and to whom it talks to.

mod beside;
mod dial;
mod gossip;
mod link;
mod mesh;
mod reach;
mod roam;
mod saving;

use super::{
    ControlEvent,
    address::{ip_of, is_public, is_relayed, member_of, peer_of, relay_of},
    door::{DoorError, Proved},
    gate::GateEvent,
    host::{Host, InsideEvent},
    shared::{Command, Online, Shared},
    streams::Waiter,
    wire::Gossip,
};
use crate::{
    id::MemberId,
    identity::Identity,
    membership::{Certificate, Refusal},
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::{ConnectedPoint, Endpoint, transport::ListenerId},
    relay,
    swarm::{ConnectionId, SwarmEvent},
};
use mesh::{Input, Mesh};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};

/// Up to here every member keeps a connection to every other, unless configured otherwise.
pub const FULL_MESH: usize = 24;
const TICK: Duration = Duration::from_millis(500);
/// Members looked up at the same time for those who want to talk to them; more are told that they
/// cannot be reached.
const MAX_SEARCHES: usize = 64;
/// News about this node's own addresses is gathered this long before it is told.
const PUBLISH_DELAY: Duration = Duration::from_millis(400);
const PROBE_TIMEOUT: Duration = Duration::from_secs(6);

/// The end of this node waits so long for its connections to close.
const FAREWELL: Duration = Duration::from_millis(300);
/// And so long for the packets that say so to leave: QUIC's endpoint sends them by itself (RFC
/// 9000, 10.2).
const FLUSH: Duration = Duration::from_millis(30);

/// See the module.
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
    /// Whose contact is being looked up, and who waits for that.
    searching: HashSet<MemberId>,
    may_search: HashSet<MemberId>,
    reservations: BTreeMap<PeerId, ListenerId>,
    publish_at: Option<Instant>,
    published: (Vec<String>, bool),
    /// This member has said farewell.
    has_left: bool,
    saving: saving::Saving,
    /// A contact of ours that came back is newer than the last one told: a clock of ours was ahead
    /// once. The next is newer still.
    overtaken: Option<u64>,
    started: Instant,
    cuts: Vec<(Instant, PeerId)>,
    checked_at: Instant,
    /// Connections that are asked whether they live, by member.
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
            reservations: BTreeMap::new(),
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

    /// Runs until told to shut down.
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

    /// Closes every connection and lets the other ends hear of it. Reason: one that is not told
    /// takes this node for connected until its idle timeout, and does not dial it when it is back.
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
        // What is closed is still to be sent.
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
                drop(answer.send(self.agrees_to_part(member, now)));
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
                // Who asked may have been ended.
                let _ = done.send(());
            }
            Command::Farewell(told) => drop(told.send(self.farewell())),
            Command::Shutdown(_) => {}
        }
    }

    // --- The swarm's events

    fn on_swarm(&mut self, event: SwarmEvent<GateEvent<InsideEvent>>) {
        match event {
            SwarmEvent::Behaviour(GateEvent::Proved {
                peer,
                connection,
                proved,
            }) => self.on_proved(peer, connection, *proved),
            SwarmEvent::Behaviour(GateEvent::Failed { peer, error }) => self.on_failed(peer, error),
            SwarmEvent::Behaviour(GateEvent::Inner(event)) => self.on_inside(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                #[cfg(test)]
                self.shared
                    .made
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let address = match &endpoint {
                    ConnectedPoint::Dialer { address, .. } => address.clone(),
                    ConnectedPoint::Listener { local_addr, .. } if is_relayed(local_addr) => {
                        local_addr.clone()
                    }
                    ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr.clone(),
                };
                let dialled = matches!(
                    endpoint,
                    ConnectedPoint::Dialer {
                        role_override: Endpoint::Dialer,
                        ..
                    }
                );
                let input = Input::Established {
                    peer: peer_id,
                    id: connection_id,
                    address,
                    dialled,
                };
                self.mesh.handle(Instant::now(), input);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, "a connection ended: {cause:?}");
                self.on_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id,
                connection_id,
                error,
            } => {
                tracing::debug!(?peer_id, "a dial failed: {error}");
                if let Some(member) = peer_id.and_then(|peer| member_of(&peer)) {
                    let id = connection_id;
                    self.mesh
                        .handle(Instant::now(), Input::DialFailed { member, id });
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                // An interface with a public IPv4 address is reachable; IPv6 ones often sit behind
                // a firewall.
                if ip_of(&address).is_some_and(|ip| ip.is_ipv4() && is_public(ip))
                    && !is_relayed(&address)
                {
                    self.swarm.add_external_address(address);
                }
                self.addresses_changed();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                self.addresses_changed();
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => {
                tracing::debug!("a listener ended: {reason:?}");
                self.reservations.retain(|_, id| *id != listener_id);
                self.addresses_changed();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.addresses_changed()
            }
            _ => {}
        }
    }

    fn on_inside(&mut self, event: InsideEvent) {
        match event {
            InsideEvent::Relay(relay::Event::ReservationReqAccepted { src_peer_id, .. }) => {
                self.relaying(src_peer_id);
            }
            InsideEvent::Relay(relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            }) => {
                self.relaying(src_peer_id);
                self.relaying(dst_peer_id);
            }
            InsideEvent::RelayClient(
                relay::client::Event::ReservationReqAccepted { relay_peer_id, .. }
                | relay::client::Event::OutboundCircuitEstablished { relay_peer_id, .. },
            ) => self.relaying(relay_peer_id),
            InsideEvent::Dcutr(event) => {
                tracing::debug!(peer = %event.remote_peer_id, "hole punching: {:?}", event.result)
            }
            InsideEvent::AutonatClient(event) => {
                tracing::debug!(address = %event.tested_addr, "reachability: {:?}", event.result)
            }
            _ => {}
        }
    }

    fn relaying(&mut self, peer: PeerId) {
        self.mesh.handle(Instant::now(), Input::Relaying(peer));
    }

    fn on_proved(&mut self, peer: PeerId, connection: ConnectionId, proved: Proved) {
        let Some(member) = member_of(&peer) else {
            return;
        };
        if self.mesh.link(&peer, connection).is_none() {
            return;
        }
        let id = connection;
        self.mesh.handle(Instant::now(), Input::Proved { peer, id });
        self.replaced(member, connection);
        let certificate = proved.contact.certificate.clone();
        self.shared
            .certificates
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(member, certificate);
        let first = self.refresh_online(peer, member, proved.rtt);
        for waiter in self.waiting.remove(&member).unwrap_or_default() {
            self.open(member, waiter, false);
        }
        let mut book = self
            .shared
            .book
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        book.alive(member);
        // Digests first, because the contact just shown is about to change this node's. Members of
        // a large network never know the same others: one that knows a mesh full of them has what
        // it needs.
        let full_mesh = self.shared.full_mesh;
        let needs = proved.contacts != book.digest()
            && (book.len() < full_mesh || (proved.known as usize) < full_mesh);
        let contacts = if needs {
            book.to_tell(&member.ring_addr())
        } else {
            Vec::new()
        };
        drop(book);
        let trust = &self.shared.door.trust;
        let revocations = if proved.revocations == trust.digest() {
            Vec::new()
        } else {
            trust.revocations()
        };
        if !contacts.is_empty() || !revocations.is_empty() {
            self.tell(
                member,
                Gossip {
                    contacts,
                    revocations,
                },
            );
        }
        self.on_gossip(
            Some(member),
            Gossip {
                contacts: vec![proved.contact],
                revocations: Vec::new(),
            },
        );
        if first {
            self.shared.found.came(member);
            tracing::info!(%member, "connected");
            let _ = self.shared.events.send(ControlEvent::Connected(member));
        }
    }

    fn on_failed(&mut self, peer: PeerId, error: DoorError) {
        let Some(member) = member_of(&peer) else {
            return;
        };
        tracing::info!(%member, "no membership proved: {}", p2pvm_host::chain(&error));
        if self.mesh.best_link(&peer).is_some() {
            return; // Another connection is fine.
        }
        self.mesh.handle(Instant::now(), Input::Refused(member));
        if let DoorError::TurnedDown(Refusal::Revoked, revocations, _) = error {
            self.on_gossip(
                None,
                Gossip {
                    contacts: Vec::new(),
                    revocations,
                },
            );
        }
        self.give_up(member);
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        if !self.mesh.has_link(&peer) {
            return;
        }
        let was_proved = self
            .mesh
            .link(&peer, connection)
            .is_some_and(|l| l.proved.is_some());
        let id = connection;
        self.mesh.handle(Instant::now(), Input::Closed { peer, id });
        let Some(member) = member_of(&peer) else {
            return;
        };
        if !was_proved {
            if !self.mesh.has_link(&peer) {
                self.give_up(member);
            }
            return;
        }
        self.refresh_online(peer, member, None);
        if self.mesh.best_link(&peer).is_none() {
            self.dial_instead(member, connection);
            self.shared
                .certificates
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&member);
            tracing::info!(%member, "disconnected");
            self.shared.found.left(member);
            let _ = self.shared.events.send(ControlEvent::Disconnected(member));
        }
        // Who waited while the two ends parted is served by a new connection.
        if !self.mesh.has_link(&peer) && self.waiting.contains_key(&member) && !self.dial(member) {
            self.search_or_give_up(member);
        }
    }

    /// Tells the callers' view who is connected how. True if the member was not before.
    fn refresh_online(&mut self, peer: PeerId, member: MemberId, rtt: Option<Duration>) -> bool {
        let best = self.mesh.best_link(&peer).map(|l| l.address.clone());
        let mut online = self
            .shared
            .online
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match best {
            Some(address) => {
                let relayed = relay_of(&address).and_then(|relay| member_of(&relay));
                let before = online.get(&member).and_then(|o| o.rtt);
                online
                    .insert(
                        member,
                        Online {
                            relayed,
                            rtt: rtt.or(before),
                        },
                    )
                    .is_none()
            }
            None => {
                online.remove(&member);
                false
            }
        }
    }

    // --- What time brings

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
        // Only if it changed: a node that is killed a second after it joined finds its way back.
        self.save_book();
        if now.duration_since(self.checked_at) > Duration::from_secs(60) {
            self.checked_at = now;
            self.cut_untrusted(); // Certificates also end by time.
        }
    }
}
