//! Where this node can be reached: the addresses that it publishes, and, if no member can dial it,
//! the circuits that it reserves on members that can be dialled.

use super::{Driver, PUBLISH_DELAY};
use crate::{
    control::{
        address::{
            ip_of, is_loopback, is_public, is_quic, is_relayed, member_of, peer_of, split_peer,
        },
        mapped,
        wire::{Contact, Gossip, MAX_ADDRESSES},
    },
    network_time::next_number,
};
use crate::{read_lock, write_lock};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long before a node that no member has reached reserves circuits.
const RESERVE_AFTER: Duration = Duration::from_secs(1);
const RESERVATIONS: usize = 2;

impl Driver {
    pub(super) fn addresses_changed(&mut self) {
        let listeners = self
            .swarm
            .listeners()
            .map(|a| {
                a.clone()
                    .with(Protocol::P2p(*self.swarm.local_peer_id()))
                    .to_string()
            })
            .collect();
        *write_lock(&self.shared.listening) = listeners;
        self.publish_at
            .get_or_insert(Instant::now() + PUBLISH_DELAY);
    }

    /// The router's mapping of this node's port has changed.
    pub(super) fn on_mapped(&mut self, old: Option<SocketAddr>, new: Option<SocketAddr>) {
        if let Some(old) = old {
            self.swarm.remove_external_address(&mapped::multiaddr(old));
        }
        if let Some(new) = new {
            self.swarm.add_external_address(mapped::multiaddr(new));
        }
        self.publish();
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.swarm
            .external_addresses()
            .any(|a| !is_relayed(a) && self.shared.is_usable(a))
    }

    /// Signs this member's last contact, after which it publishes no other.
    pub(super) fn farewell(&mut self) -> Contact {
        self.has_left = true;
        let told = self.shared.door.contact().map(|c| c.seq);
        let seq = next_number(told.max(self.overtaken));
        Contact::sign(
            &self.identity,
            self.certificate.clone(),
            Vec::new(),
            false,
            seq,
        )
    }

    pub(super) fn publish(&mut self) {
        if self.has_left {
            return;
        }
        let me = *self.swarm.local_peer_id();
        let all: Vec<Multiaddr> = self
            .swarm
            .external_addresses()
            .chain(self.swarm.listeners())
            .cloned()
            .map(|a| match split_peer(a.clone()) {
                (short, Some(peer)) if peer == me => short,
                _ => a,
            })
            .filter(|a| self.shared.is_usable(a))
            .collect();
        let only_loopback = all.iter().all(is_loopback);
        let mut addresses: Vec<String> = Vec::new();
        for address in all
            .iter()
            .filter(|a| only_loopback || !is_loopback(a))
            .map(ToString::to_string)
        {
            if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
                addresses.push(address);
            }
        }
        let now = (addresses, self.is_reachable());
        let told = self.shared.door.contact().map(|c| c.seq);
        if now == self.published && told > Some(0) && told > self.overtaken {
            return;
        }
        self.published = now.clone();
        // The newest sequence number that any member may have: this run's last, the previous run's,
        // or one in a contact that came back to us.
        let newest = read_lock(&self.shared.book)
            .get(self.shared.me)
            .map(|c| c.seq);
        let seq = next_number(newest.max(told).max(self.overtaken));
        let contact = Contact::sign(&self.identity, self.certificate.clone(), now.0, now.1, seq);
        self.shared.door.set_contact(contact.clone());
        write_lock(&self.shared.book).insert(contact.clone(), &self.shared.door.trust);
        self.tell_all(
            None,
            &Gossip {
                contacts: vec![contact],
                revocations: Vec::new(),
            },
        );
    }

    pub(super) fn reserve(&mut self, now: Instant) {
        if self.is_reachable() {
            for id in self.reservations.give_up() {
                self.swarm.remove_listener(id);
            }
            return;
        }
        self.reservations.retain(|peer| self.mesh.has_link(peer));
        if now < self.started + RESERVE_AFTER || self.reservations.len() >= RESERVATIONS {
            return;
        }
        let online = read_lock(&self.shared.online).clone();
        let book = read_lock(&self.shared.book);
        let mut relays: Vec<_> = online
            .iter()
            .filter(|(member, seen)| {
                seen.relayed.is_none() && book.get(**member).is_some_and(|c| c.public)
            })
            .filter_map(|(member, seen)| {
                Some((seen.rtt.unwrap_or(Duration::MAX), peer_of(*member)?))
            })
            .filter(|(_, peer)| !self.reservations.contains(peer))
            .collect();
        drop(book);
        relays.sort_unstable();
        for (_, relay) in relays
            .into_iter()
            .take(RESERVATIONS - self.reservations.len())
        {
            let Some(address) = self.relay_address(relay) else {
                continue;
            };
            let address = address
                .with(Protocol::P2p(relay))
                .with(Protocol::P2pCircuit);
            match self.swarm.listen_on(address) {
                Ok(id) => self.reservations.asked(relay, id),
                Err(e) => tracing::debug!("no circuit can be reserved: {}", p2pvm_host::chain(&e)),
            }
        }
    }

    /// The address by which others reach a relay: its public one if it publishes one, else the one
    /// of our connection.
    pub(super) fn relay_address(&self, relay: PeerId) -> Option<Multiaddr> {
        let book = read_lock(&self.shared.book);
        let told = book
            .get(member_of(&relay)?)?
            .addresses
            .iter()
            .filter_map(|a| a.parse::<Multiaddr>().ok());
        let public = told
            .filter(|a| {
                !is_relayed(a) && self.shared.is_usable(a) && ip_of(a).is_some_and(is_public)
            })
            .max_by_key(is_quic);
        public.or_else(|| {
            self.mesh
                .best_link(&relay)
                .map(|l| split_peer(l.address.clone()).0)
        })
    }
}
