//! Carries the mesh's decisions out, and dials and looks members up for callers that wait for a
//! stream.

use super::{
    Driver, MAX_SEARCHES, PROBE_TIMEOUT,
    mesh::{self, Action, Input, PART_TIMEOUT, View},
};
use crate::{
    control::{
        address::{dials, is_relayed, peer_of, relay_of, split_peer},
        shared::Command,
        streams::{NoStream, Waiter},
        wire::{PART_SERVICE, PROBE_SERVICE},
    },
    id::{MemberId, RingAddr},
};
use crate::{read_lock, write_lock};
use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use std::time::Instant;

impl Driver {
    // --- The mesh

    /// Lets the mesh decide with the present state of the node.
    fn with_view<T>(
        &mut self,
        now: Instant,
        decide: impl FnOnce(&mut mesh::Mesh, &View<'_>) -> T,
    ) -> T {
        let (shared, streams) = (&self.shared, &self.swarm.behaviour().inner.streams);
        let book = read_lock(&shared.book);
        let wanted = {
            let ring = read_lock(&shared.ring_neighbours);
            let limits = (shared.me, shared.full_mesh);
            mesh::wanted(&book, &ring, limits, self.mesh.round(now))
        };
        let view = View {
            is_large: book.len() >= shared.full_mesh,
            wanted,
            is_known: &|member| book.get(member).is_some(),
            is_public: &|member| book.get(member).is_some_and(|c| c.public),
            is_reserved: &|peer| self.reservations.contains(peer),
            streams: &|id| streams.in_use(id),
        };
        decide(&mut self.mesh, &view)
    }

    pub(super) fn tick_mesh(&mut self, now: Instant) {
        self.with_view(now, |mesh, view| mesh.handle(now, Input::Tick(view)));
        self.act(now);
    }

    /// A member asks whether the connections to it may end.
    pub(super) fn agrees_to_part(&mut self, member: MemberId, now: Instant) -> bool {
        let has_waiters = self.waiting.contains_key(&member);
        self.with_view(now, |mesh, view| {
            mesh.agrees_to_part(now, member, has_waiters, view)
        })
    }

    pub(super) fn parted(&mut self, member: MemberId, now: Instant) {
        self.with_view(now, |mesh, view| {
            mesh.handle(now, Input::Parted { member, view });
        });
    }

    /// Carries out the mesh's decisions.
    pub(super) fn act(&mut self, now: Instant) {
        while let Some(action) = self.mesh.poll(now) {
            match action {
                Action::Dial(member) => {
                    if !self.dial(member) {
                        self.mesh.handle(now, Input::NoAddress(member));
                    }
                }
                Action::DialDirectly { member, peer } => self.dial_directly(member, peer),
                Action::DialBootstrap => {
                    for options in dials(&self.bootstrap) {
                        let _ = self.swarm.dial(options);
                    }
                }
                Action::LookUp(member) => {
                    self.may_search.insert(member);
                    self.search_or_give_up(member);
                }
                Action::Unreachable(member) => {
                    write_lock(&self.shared.book).failed(member);
                    self.search_or_give_up(member);
                }
                Action::Close(id) => drop(self.swarm.close_connection(id)),
                Action::AskToPart(member) => self.ask_to_part(member),
                Action::Reopen(member) => {
                    for waiter in self.waiting.remove(&member).unwrap_or_default() {
                        self.open(member, waiter, false);
                    }
                }
                Action::Pin(members) => write_lock(&self.shared.book).pin(members),
                Action::Refresh(place) => self.refresh(place),
                Action::Probe(member) => self.probe(member),
            }
        }
    }

    fn ask_to_part(&self, member: MemberId) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let asked = shared.call_known(member, PART_SERVICE, Vec::new(), PART_TIMEOUT);
            if asked.await.is_ok() {
                let _ = shared.commands.send(Command::Parted(member)).await;
            }
        });
    }

    fn refresh(&self, place: RingAddr) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(e) = shared.refresh(place).await {
                tracing::debug!(
                    "a lookup to keep the address book fresh failed: {}",
                    p2pvm_host::chain(&e)
                );
            }
        });
    }

    /// Asks a member for a sign of life, which also measures the round trip.
    fn probe(&self, member: MemberId) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            match shared
                .call(member, PROBE_SERVICE, Vec::new(), PROBE_TIMEOUT)
                .await
            {
                Ok(_) => {
                    if let Some(online) = write_lock(&shared.online).get_mut(&member) {
                        online.rtt = Some(started.elapsed());
                    }
                }
                Err(_) => drop(shared.commands.send(Command::Dead(member)).await),
            }
        });
    }

    // --- Streams

    pub(super) fn open(&mut self, member: MemberId, waiter: Waiter, search: bool) {
        let Some(peer) = peer_of(member) else { return };
        if let Some(id) = self.mesh.best_link(&peer).map(|l| l.id) {
            self.swarm
                .behaviour_mut()
                .inner
                .streams
                .open(peer, id, waiter);
            self.mesh.handle(Instant::now(), Input::Opened { peer, id });
            return;
        }
        self.waiting.entry(member).or_default().push(waiter);
        if search {
            self.may_search.insert(member);
        }
        let unproved = self.mesh.has_link(&peer);
        if !unproved && !self.mesh.is_dialling(member) && !self.dial(member) {
            self.search_or_give_up(member);
        }
    }

    /// If no known address leads to the member any more, another member may know a better one.
    pub(super) fn search_or_give_up(&mut self, member: MemberId) {
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

    pub(super) fn searched(&mut self, member: MemberId, news: bool) {
        self.searching.remove(&member);
        let connected = peer_of(member).is_some_and(|peer| self.mesh.has_link(&peer));
        if connected || self.mesh.is_dialling(member) {
            return;
        }
        if news {
            // There may be no caller but the ring.
            self.mesh.handle(Instant::now(), Input::Found(member));
        }
        let redial = news && self.waiting.contains_key(&member);
        if !redial || !self.dial(member) {
            self.give_up(member);
        }
    }

    pub(super) fn give_up(&mut self, member: MemberId) {
        self.may_search.remove(&member);
        for waiter in self.waiting.remove(&member).unwrap_or_default() {
            let _ = waiter.send(Err(NoStream::Unreachable));
        }
    }

    // --- Dialling

    /// Dials all addresses known of a member, best first. False if none are known.
    pub(super) fn dial(&mut self, member: MemberId) -> bool {
        let addresses = self.addresses_of(member);
        let Some(peer) = peer_of(member).filter(|_| !addresses.is_empty()) else {
            return false;
        };
        let dialled = self.dial_at(peer, addresses, PeerCondition::Disconnected);
        let input = Input::Dialled {
            member,
            id: dialled,
        };
        self.mesh.handle(Instant::now(), input);
        true
    }

    /// Dials a member that is connected through a relay where none is needed.
    fn dial_directly(&mut self, member: MemberId, peer: PeerId) {
        let mut direct = self.addresses_of(member);
        direct.retain(|a| !is_relayed(a));
        self.dial_at(peer, direct, PeerCondition::Always);
    }

    /// The new connection's id, unless libp2p refuses to dial.
    pub(super) fn dial_at(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        condition: PeerCondition,
    ) -> Option<ConnectionId> {
        let addresses = addresses
            .into_iter()
            .map(|a| a.with(Protocol::P2p(peer)))
            .collect();
        let options = DialOpts::peer_id(peer)
            .condition(condition)
            .addresses(addresses)
            .build();
        let id = options.connection_id();
        self.swarm.dial(options).is_ok().then_some(id)
    }

    pub(super) fn addresses_of(&self, member: MemberId) -> Vec<Multiaddr> {
        let book = read_lock(&self.shared.book);
        let me = *self.swarm.local_peer_id();
        let told = book
            .get(member)
            .into_iter()
            .flat_map(|c| &c.addresses)
            .filter_map(|a| a.parse::<Multiaddr>().ok());
        // One dial to its own addresses and those from the invite: two dials made two connections.
        let given = self
            .bootstrap
            .iter()
            .cloned()
            .map(split_peer)
            .filter(|(_, peer)| peer_of(member) == *peer)
            .map(|(a, _)| a);
        let mut addresses: Vec<Multiaddr> = Vec::new();
        // Another home may use the same private addresses: one that this node has itself leads
        // nowhere else.
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
}
