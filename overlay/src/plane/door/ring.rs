//! What the ring needs of the plane: its edges, its packets and its routing table.

use crate::{
    id::MemberId,
    plane::handle::Plane,
    ring::{Packet, Table},
};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::mpsc;

impl Plane {
    /// This node.
    pub(crate) fn me(&self) -> MemberId {
        self.inner().me
    }

    /// Packets for the ring's state machine, each with the neighbour that handed it over. Only the
    /// first caller gets the receiver.
    pub(crate) fn take_ring_packets(&self) -> Option<mpsc::Receiver<(MemberId, Packet)>> {
        self.inner().ring.take_packets()
    }

    /// The routing table by which packet threads hand ring packets on; the caller sees every later
    /// change in it.
    pub(crate) fn ring_table(&self) -> Arc<ArcSwap<Table>> {
        self.inner().ring.table.clone()
    }

    /// Replaces the routing table.
    pub(crate) fn set_ring_table(&self, table: Arc<Table>) {
        self.inner().ring.table.store(table);
    }

    /// Whether the ring has a neighbour to route over.
    pub(crate) fn has_ring_neighbours(&self) -> bool {
        self.inner().has_ring_neighbours()
    }

    /// Packets of other pairs that this node has handed on.
    pub(crate) fn ring_packets_carried(&self) -> u64 {
        self.inner().ring.carried.load(Ordering::Relaxed)
    }

    /// Sends a packet to a neighbour; false without a link to it that does not itself rest on the
    /// ring.
    pub(crate) fn send_to_ring_neighbour(&self, neighbour: &MemberId, packet: &Packet) -> bool {
        self.inner().ring_send(neighbour, packet)
    }

    /// Whether the ring wants the link to the member, which then stays though it carries no data.
    pub(crate) fn set_edge(&self, member: MemberId, is_wanted: bool) {
        if is_wanted {
            self.inner().peer(member).set_edge(true);
        } else if let Some(peer) = self.inner().tables.peers.load().get(&member) {
            peer.set_edge(false);
        }
    }

    /// Whether the ring wants the link to the member.
    pub(crate) fn is_edge(&self, member: MemberId) -> bool {
        self.inner().peer(member).is_edge()
    }

    /// Whether the link to the member is up and does not itself rest on the ring.
    pub(crate) fn may_be_edge(&self, member: MemberId) -> bool {
        let peer = self.inner().tables.peers.load().get(&member).cloned();
        peer.is_some_and(|peer| peer.is_edge_path() && peer.ready())
    }

    /// All members of which [`Plane::may_be_edge`] is true.
    pub(crate) fn possible_edges(&self) -> BTreeSet<MemberId> {
        let peers = self.inner().tables.peers.load();
        peers
            .iter()
            .filter(|peer| peer.is_edge_path() && peer.ready())
            .map(|peer| peer.member)
            .collect()
    }

    /// Whether the plane has been shut down.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.inner().stop.raised()
    }
}
