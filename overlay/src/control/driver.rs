//! The task that owns the swarm: it keeps the connections that the network needs, dials for those
//! who wait, spreads contacts and revocations, and reserves circuits where this node cannot be
//! dialled.
//!
//! In a network of at most `ControlConfig::full_mesh` members everyone stays connected to everyone;
//! in a larger one to its neighbours on the ring, near and far, and to whom it talks to.

mod beside;
mod gossip;
mod link;
mod mesh;
mod reach;
mod roam;
mod saving;

use super::{
    ControlEvent,
    address::{ip_of, is_public, is_quic, is_relayed, member_of, peer_of, relay_of, split_peer},
    door::{DoorError, Proved},
    gate::GateEvent,
    host::{Host, InsideEvent},
    shared::{Command, Online, Shared},
    streams::{NoStream, Waiter},
    wire::{Gossip, PROBE_SERVICE},
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
    multiaddr::Protocol,
    relay,
    swarm::{
        ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use link::{Attempt, Link};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

/// Up to here every member keeps a connection to every other, unless configured otherwise.
pub const FULL_MESH: usize = 24;
const TICK: Duration = Duration::from_millis(500);
/// Members looked up at the same time for those who want to talk to them; more are told that they
/// cannot be reached.
const MAX_SEARCHES: usize = 64;
/// News about this node's own addresses is gathered this long before it is told.
const PUBLISH_DELAY: Duration = Duration::from_millis(400);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// Connections over TCP do not notice a dead peer by themselves: they are probed.
const PROBE_EVERY: Duration = Duration::from_secs(6);
/// The legs of a circuit are direct connections, each watched by its two ends, and a relay that
/// loses one leg ends the circuit on the other: a question of its own, which costs a kilobyte on
/// the wire, is only for a relay that has forgotten the circuit.
const PROBE_CIRCUIT_EVERY: Duration = Duration::from_secs(120);
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
    links: HashMap<PeerId, Vec<Link>>,
    attempts: HashMap<MemberId, Attempt>,
    waiting: HashMap<MemberId, Vec<Waiter>>,
    /// Whose contact is being looked up, and who waits for that.
    searching: HashSet<MemberId>,
    may_search: HashSet<MemberId>,
    reservations: BTreeMap<PeerId, ListenerId>,
    /// Who relays for this node, or it for them: circuits ride on their direct connections, unseen
    /// by `Streams`.
    relaying: BTreeSet<PeerId>,
    publish_at: Option<Instant>,
    published: (Vec<String>, bool),
    /// This member has said farewell.
    has_left: bool,
    saving: saving::Saving,
    /// A contact of ours that came back is newer than the last one told: a clock of ours was ahead
    /// once. The next is newer still.
    overtaken: Option<u64>,
    bootstrap_at: Instant,
    started: Instant,
    cuts: Vec<(Instant, PeerId)>,
    probe_at: Instant,
    checked_at: Instant,
    /// This host has moved: until then those who are lost are dialled without delay.
    hasty_until: Instant,
    refresh: mesh::Refresh,
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
    ) -> Self {
        let now = Instant::now();
        Self {
            swarm,
            shared,
            identity,
            certificate,
            commands,
            bootstrap,
            public_addresses,
            links: HashMap::new(),
            attempts: HashMap::new(),
            waiting: HashMap::new(),
            searching: HashSet::new(),
            may_search: HashSet::new(),
            refresh: mesh::Refresh::new(now),
            reservations: BTreeMap::new(),
            relaying: BTreeSet::new(),
            publish_at: Some(now + PUBLISH_DELAY),
            published: (Vec::new(), false),
            has_left: false,
            saving: saving::Saving::default(),
            overtaken: None,
            bootstrap_at: now,
            started: now,
            cuts: Vec::new(),
            probe_at: now + PROBE_EVERY,
            checked_at: now,
            hasty_until: now,
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
                    Some(command) => self.on_command(command),
                    None => return,
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
    }

    /// Closes every connection and lets the other ends hear of it. Reason: one that is not told
    /// takes this node for connected until its idle timeout, and does not dial it when it is back.
    async fn part_with_all(&mut self) {
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
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

    fn on_command(&mut self, command: Command) {
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
            Command::Part(member, answer) => drop(answer.send(self.agrees_to_part(member))),
            Command::Parted(member) => self.parted(member),
            Command::Dead(member) => {
                if let Some(peer) = peer_of(member) {
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Command::DeadLink(id) => drop(self.swarm.close_connection(id)),
            Command::Sound(member, told) => self.sound(member, told, Instant::now()),
            Command::Sounded(member, id, lives) => self.sounded(member, id, lives, Instant::now()),
            Command::Roamed => self.on_roamed(Instant::now()),
            Command::Mapped { old, new, done } => {
                self.on_mapped(old, new);
                // Who asked may have been ended.
                let _ = done.send(());
            }
            Command::Farewell(told) => drop(told.send(self.farewell())),
            Command::Shutdown(_) => {}
        }
    }

    // --- Streams and dialling

    fn best_link(&self, peer: &PeerId) -> Option<&Link> {
        self.links
            .get(peer)?
            .iter()
            .filter(|l| l.proved.is_some() && l.parting.is_none())
            .min_by_key(|l| l.rank())
    }

    fn open(&mut self, member: MemberId, waiter: Waiter, search: bool) {
        let Some(peer) = peer_of(member) else { return };
        if let Some(connection) = self.best_link(&peer).map(|l| l.id) {
            self.swarm
                .behaviour_mut()
                .inner
                .streams
                .open(peer, connection, waiter);
            let now = Instant::now();
            self.links
                .entry(peer)
                .or_default()
                .iter_mut()
                .filter(|l| l.id == connection)
                .for_each(|l| l.used = now);
            return;
        }
        self.waiting.entry(member).or_default().push(waiter);
        if search {
            self.may_search.insert(member);
        }
        let unproved = self.links.contains_key(&peer);
        if !unproved
            && self
                .attempts
                .get(&member)
                .is_none_or(|a| a.dialling.is_empty())
            && !self.dial(member)
        {
            self.search_or_give_up(member);
        }
    }

    /// Where nobody can be reached any more as this node knows it, another member may know better.
    fn search_or_give_up(&mut self, member: MemberId) {
        if self.searching.contains(&member) {
            return;
        }
        if !self.may_search.remove(&member) || self.searching.len() >= MAX_SEARCHES {
            self.give_up(member);
            return;
        }
        self.searching.insert(member);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let news = shared.search(member).await;
            let _ = shared.commands.send(Command::Searched(member, news)).await;
        });
    }

    fn searched(&mut self, member: MemberId, news: bool) {
        self.searching.remove(&member);
        let connected = peer_of(member).is_some_and(|peer| self.links.contains_key(&peer));
        let dialling = self
            .attempts
            .get(&member)
            .is_some_and(|a| !a.dialling.is_empty());
        if connected || dialling {
            return;
        }
        if news {
            // Nobody may wait for it, but the ring.
            self.attempts.entry(member).or_default().not_before = None;
        }
        let redial = news && self.waiting.contains_key(&member);
        if !redial || !self.dial(member) {
            self.give_up(member);
        }
    }

    /// Dials all addresses known of a member, best first. False if none are known.
    fn dial(&mut self, member: MemberId) -> bool {
        let addresses = self.addresses_of(member);
        self.dial_at(member, addresses)
    }

    fn addresses_of(&self, member: MemberId) -> Vec<Multiaddr> {
        let book = self
            .shared
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let me = *self.swarm.local_peer_id();
        let told = book
            .get(member)
            .into_iter()
            .flat_map(|c| &c.addresses)
            .filter_map(|a| a.parse::<Multiaddr>().ok());
        // One dial for what it tells and what this node was told of it when it joined: two dials
        // made two connections.
        let given = self
            .bootstrap
            .iter()
            .cloned()
            .map(split_peer)
            .filter(|(_, peer)| peer_of(member) == *peer)
            .map(|(a, _)| a);
        let mut addresses: Vec<Multiaddr> = Vec::new();
        // Another home numbers its machines alike: an address that is this node's own leads nowhere
        // else.
        let is_own = |address: &Multiaddr| self.swarm.listeners().any(|own| own == address);
        for address in told
            .chain(given)
            .filter(|a| self.shared.is_usable(a) && relay_of(a) != Some(me) && !is_own(a))
        {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    fn dial_at(&mut self, member: MemberId, addresses: Vec<Multiaddr>) -> bool {
        let Some(peer) = peer_of(member).filter(|_| !addresses.is_empty()) else {
            return false;
        };
        let addresses = addresses
            .into_iter()
            .map(|a| a.with(Protocol::P2p(peer)))
            .collect();
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Disconnected)
            .addresses(addresses)
            .build();
        let id = options.connection_id();
        let attempt = self.attempts.entry(member).or_default();
        if self.swarm.dial(options).is_ok() {
            attempt.dialling.insert(id);
        }
        true
    }

    fn give_up(&mut self, member: MemberId) {
        self.may_search.remove(&member);
        for waiter in self.waiting.remove(&member).unwrap_or_default() {
            let _ = waiter.send(Err(NoStream::Unreachable));
        }
    }

    fn dial_ended(&mut self, peer: Option<PeerId>, connection: ConnectionId) {
        let Some(member) = peer.and_then(|p| member_of(&p)) else {
            return;
        };
        let Some(attempt) = self.attempts.get_mut(&member) else {
            return;
        };
        if attempt.dialling.remove(&connection) && attempt.dialling.is_empty() {
            attempt.failed(Instant::now());
            if !self.links.contains_key(&peer.expect("named above")) {
                self.shared
                    .book
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .failed(member);
                self.search_or_give_up(member);
            }
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
                let by_smaller =
                    dialled == member_of(&peer_id).is_some_and(|member| self.shared.me < member);
                let now = Instant::now();
                let link = Link {
                    id: connection_id,
                    address,
                    by_smaller,
                    proved: None,
                    since: now,
                    doubted: false,
                    used: now,
                    probed: None,
                    dialled,
                    parting: None,
                };
                self.links.entry(peer_id).or_default().push(link);
                if let Some(attempt) = member_of(&peer_id).and_then(|m| self.attempts.get_mut(&m)) {
                    attempt.dialling.remove(&connection_id);
                }
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
                self.dial_ended(peer_id, connection_id);
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
                let _ = self.relaying.insert(src_peer_id);
            }
            InsideEvent::Relay(relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            }) => {
                self.relaying.extend([src_peer_id, dst_peer_id]);
            }
            InsideEvent::RelayClient(
                relay::client::Event::ReservationReqAccepted { relay_peer_id, .. }
                | relay::client::Event::OutboundCircuitEstablished { relay_peer_id, .. },
            ) => drop(self.relaying.insert(relay_peer_id)),
            InsideEvent::Dcutr(event) => {
                tracing::debug!(peer = %event.remote_peer_id, "hole punching: {:?}", event.result)
            }
            InsideEvent::AutonatClient(event) => {
                tracing::debug!(address = %event.tested_addr, "reachability: {:?}", event.result)
            }
            _ => {}
        }
    }

    fn on_proved(&mut self, peer: PeerId, connection: ConnectionId, proved: Proved) {
        let Some(member) = member_of(&peer) else {
            return;
        };
        let Some(link) = self
            .links
            .get_mut(&peer)
            .and_then(|links| links.iter_mut().find(|l| l.id == connection))
        else {
            return;
        };
        link.proved = Some(Instant::now());
        self.doubt_older(&peer, connection);
        self.replaced(member, connection);
        let attempt = self.attempts.entry(member).or_default();
        attempt.failures = 0;
        attempt.not_before = None;
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
        if self.best_link(&peer).is_some() {
            return; // Another connection is fine.
        }
        let attempt = self.attempts.entry(member).or_default();
        attempt.failures = attempt.failures.max(5);
        attempt.not_before = Some(Instant::now() + LAST_BACKOFF);
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
        let Some(links) = self.links.get_mut(&peer) else {
            return;
        };
        let was_proved = links
            .iter()
            .any(|l| l.id == connection && l.proved.is_some());
        links.retain(|l| l.id != connection);
        if links.is_empty() {
            self.links.remove(&peer);
            self.relaying.remove(&peer);
        }
        let Some(member) = member_of(&peer) else {
            return;
        };
        if !was_proved {
            if !self.links.contains_key(&peer) {
                self.give_up(member);
            }
            return;
        }
        self.refresh_online(peer, member, None);
        if self.best_link(&peer).is_none() {
            self.dial_instead(member, connection);
            self.shared
                .certificates
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&member);
            // A node that restarts is back at once; one whose path broke may be reachable by
            // another.
            let wait = if self.shared.me < member {
                FIRST_BACKOFF / 2
            } else {
                FIRST_BACKOFF
            };
            let wait = if Instant::now() < self.hasty_until {
                Duration::ZERO
            } else {
                wait
            };
            self.attempts.entry(member).or_default().not_before = Some(Instant::now() + wait);
            tracing::info!(%member, "disconnected");
            self.shared.found.left(member);
            let _ = self.shared.events.send(ControlEvent::Disconnected(member));
        }
        // Who waited while the two ends parted is served by a new connection.
        if !self.links.contains_key(&peer)
            && self.waiting.contains_key(&member)
            && !self.dial(member)
        {
            self.search_or_give_up(member);
        }
    }

    /// Tells the callers' view who is connected how. True if the member was not before.
    fn refresh_online(&mut self, peer: PeerId, member: MemberId, rtt: Option<Duration>) -> bool {
        let best = self.best_link(&peer).map(|l| l.address.clone());
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
        self.dial_wanted(now);
        self.close_superfluous(now);
        self.tend_large(now);
        if self.probe_at <= now {
            self.probe_at = now + PROBE_EVERY;
            self.probe(now);
        }
        // Only if it changed: a node that is killed a second after it joined finds its way back.
        self.save_book();
        if now.duration_since(self.checked_at) > Duration::from_secs(60) {
            self.checked_at = now;
            self.cut_untrusted(); // Certificates also end by time.
        }
    }

    /// QUIC notices a dead peer by itself; TCP does not.
    fn probe(&mut self, now: Instant) {
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            let (Some(member), Some(best)) =
                (member_of(&peer), self.best_link(&peer).map(|l| l.id))
            else {
                continue;
            };
            let Some(link) = self
                .links
                .get_mut(&peer)
                .and_then(|links| links.iter_mut().find(|l| l.id == best))
            else {
                continue;
            };
            // The first question also measures the round trip.
            let pause = if is_relayed(&link.address) {
                PROBE_CIRCUIT_EVERY
            } else {
                PROBE_EVERY / 2
            };
            if is_quic(&link.address)
                || link.probed.is_some_and(|at| now.duration_since(at) < pause)
            {
                continue;
            }
            link.probed = Some(now);
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let started = Instant::now();
                match shared
                    .call(member, PROBE_SERVICE, Vec::new(), PROBE_TIMEOUT)
                    .await
                {
                    Ok(_) => {
                        if let Some(online) = shared
                            .online
                            .write()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_mut(&member)
                        {
                            online.rtt = Some(started.elapsed());
                        }
                    }
                    Err(_) => drop(shared.commands.send(Command::Dead(member)).await),
                }
            });
        }
    }
}
