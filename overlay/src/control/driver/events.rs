//! Handles the swarm's events: connections, proofs, listeners and addresses.

use super::{Driver, gossip::TOLD_AT_ONCE, mesh::Input};
use crate::write_lock;
use crate::{
    control::{
        ControlEvent,
        address::{ip_of, is_public, is_relayed, member_of, relay_of},
        door::{DoorError, ProvedPeer},
        gate::GateEvent,
        host::InnerBehaviourEvent,
        shared::Online,
        wire::Gossip,
    },
    id::MemberId,
    membership::Refusal,
};
use libp2p::{
    PeerId,
    core::{ConnectedPoint, Endpoint},
    relay,
    swarm::{ConnectionId, SwarmEvent},
};
use std::time::{Duration, Instant};

impl Driver {
    pub(super) fn on_swarm(&mut self, event: SwarmEvent<GateEvent<InnerBehaviourEvent>>) {
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
                self.on_established(peer_id, connection_id, &endpoint);
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
                tracing::debug!(?peer_id, "a dial failed: {}", p2pvm_host::chain(&error));
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
                self.reservations.ended(listener_id);
                self.addresses_changed();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.addresses_changed()
            }
            _ => {}
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        #[cfg(test)]
        self.shared
            .made
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let address = match endpoint {
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
            peer,
            id,
            address,
            dialled,
        };
        self.mesh.handle(Instant::now(), input);
    }

    fn on_inside(&mut self, event: InnerBehaviourEvent) {
        match event {
            InnerBehaviourEvent::Relay(relay::Event::ReservationReqAccepted {
                src_peer_id,
                ..
            }) => {
                self.relaying(src_peer_id);
            }
            InnerBehaviourEvent::Relay(relay::Event::CircuitReqAccepted {
                src_peer_id,
                dst_peer_id,
            }) => {
                self.relaying(src_peer_id);
                self.relaying(dst_peer_id);
            }
            InnerBehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            }) => {
                self.reservations.accepted(&relay_peer_id);
                self.relaying(relay_peer_id);
            }
            InnerBehaviourEvent::RelayClient(
                relay::client::Event::OutboundCircuitEstablished { relay_peer_id, .. },
            ) => self.relaying(relay_peer_id),
            InnerBehaviourEvent::Dcutr(event) => {
                tracing::debug!(peer = %event.remote_peer_id, "hole punching: {:?}", event.result)
            }
            InnerBehaviourEvent::AutonatClient(event) => {
                tracing::debug!(address = %event.tested_addr, "reachability: {:?}", event.result)
            }
            _ => {}
        }
    }

    fn relaying(&mut self, peer: PeerId) {
        self.mesh.handle(Instant::now(), Input::Relaying(peer));
    }

    fn on_proved(&mut self, peer: PeerId, connection: ConnectionId, proved: ProvedPeer) {
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
        write_lock(&self.shared.certificates).insert(member, certificate);
        let first = self.refresh_online(peer, member, proved.rtt);
        for waiter in self.waiting.remove(&member).unwrap_or_default() {
            self.open(member, waiter, false);
        }
        self.tell_what_it_lacks(member, &proved);
        self.on_gossip(
            Some(member),
            Gossip {
                contacts: vec![proved.contact],
                revocations: Vec::new(),
            },
        );
        if first {
            self.shared.found.came(member);
            tracing::info!(%member, "a member is connected");
            let _ = self.shared.events.send(ControlEvent::Connected(member));
        }
    }

    /// Sends a member that has just connected the contacts and revocations that it lacks.
    fn tell_what_it_lacks(&self, member: MemberId, proved: &ProvedPeer) {
        let mut book = write_lock(&self.shared.book);
        book.alive(member);
        // Digests first, because the contact just shown is about to change this node's. Members of
        // a large network never know the same contacts: a member with a full mesh of them has
        // enough.
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
        let mut revocations = Vec::new();
        if proved.revocations != trust.digest() {
            revocations = trust.revocations();
            if revocations.len() > TOLD_AT_ONCE {
                revocations.clear();
                self.tell_lacked(member);
            }
        }
        if !contacts.is_empty() || !revocations.is_empty() {
            let gossip = Gossip {
                contacts,
                revocations,
            };
            self.tell(member, gossip);
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
            write_lock(&self.shared.certificates).remove(&member);
            tracing::info!(%member, "a member is disconnected");
            self.shared.found.left(member);
            let _ = self.shared.events.send(ControlEvent::Disconnected(member));
        }
        // Callers that waited while the two ends parted are served by a new connection.
        if !self.mesh.has_link(&peer) && self.waiting.contains_key(&member) && !self.dial(member) {
            self.search_or_give_up(member);
        }
    }

    /// Publishes which members are connected and how. True if the member was not before.
    fn refresh_online(&mut self, peer: PeerId, member: MemberId, rtt: Option<Duration>) -> bool {
        let best = self.mesh.best_link(&peer).map(|l| l.address.clone());
        let mut online = write_lock(&self.shared.online);
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
}
