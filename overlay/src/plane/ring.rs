//! The ring's share of the packet plane: packets that go from neighbour to neighbour. A datagram of
//! another pair's link is handed on by the thread that received it, from a snapshot of the routing
//! table: opened, one hop taken off, sealed for the next; what is inside stays sealed between its
//! ends. Calls and answers go on in the same way; what ends here, and what the ring's state machine
//! must see, goes up to its driver through a bounded queue.
//!
//! A neighbour is reached directly, through a relay or by stream, never over the ring itself.

use super::{
    Inner,
    core::lock,
    deliver::Ctx,
    peer::{Peer, Via},
    receive::By,
    udp::Batch,
};
use crate::{
    id::MemberId,
    link::frame::{FRAME_HEADER_LEN, Frame},
    ring::{
        HOP_LIMIT, Header, Kind, Mode, Next, Node, Packet, Position, Table,
        wire::{MAX_HEADER_LEN, take_hop},
    },
};
use arc_swap::ArcSwap;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::sync::mpsc;

/// Packets for the driver that wait; more than a burst of all neighbours at once is a flood and is
/// dropped.
const MAX_UPWARD: usize = 512;

/// How a datagram came over the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverRing {
    /// The member to which answers go, if the sender has no place of its own yet.
    pub agent: Option<Position>,
    /// Neighbours that handed it on.
    pub hops: u8,
}

/// What the plane keeps of the ring.
pub(crate) struct RingPort {
    /// The neighbours; none until a driver runs.
    pub table: Arc<ArcSwap<Table>>,
    up: mpsc::Sender<(MemberId, Packet)>,
    up_by: Mutex<Option<mpsc::Receiver<(MemberId, Packet)>>>,
    /// Packets of other pairs handed on.
    pub carried: AtomicU64,
}

impl RingPort {
    pub fn new(me: MemberId) -> Self {
        let (up, up_by) = mpsc::channel(MAX_UPWARD);
        let table = Table::new(me, false, [], []);
        Self {
            table: Arc::new(ArcSwap::from_pointee(table)),
            up,
            up_by: Mutex::new(Some(up_by)),
            carried: AtomicU64::new(0),
        }
    }
}

impl Inner {
    /// The packets for the ring's state machine; the first caller has them.
    pub fn take_ring_packets(&self) -> Option<mpsc::Receiver<(MemberId, Packet)>> {
        lock(&self.ring.up_by).take()
    }

    /// Whether packets can be sent over the ring at all.
    pub fn ring_stands(&self) -> bool {
        !self.ring.table.load().members().is_empty()
    }

    /// A packet that a neighbour handed over.
    pub fn ring_in(
        &self,
        ctx: &mut Ctx,
        neighbour: &Peer,
        packet: &mut [u8],
        by: By,
        now: Instant,
    ) {
        if matches!(by, By::Ring(_)) {
            return;
        }
        let Ok((header, body)) = Header::parse(packet) else {
            return;
        };
        // A full queue loses it as a full router would: whoever asked asks again.
        let up = |body: &[u8]| {
            drop(self.ring.up.try_send((
                neighbour.member,
                Packet {
                    header,
                    body: body.to_vec(),
                },
            )))
        };
        if !matches!(header.kind, Kind::Datagram | Kind::Call | Kind::Answer) {
            return up(body);
        }
        match self.ring.table.load().route(&header) {
            Next::Here if header.kind != Kind::Datagram => up(body),
            Next::Here => {
                let over = OverRing {
                    agent: header.agent,
                    hops: HOP_LIMIT - header.hops_left,
                };
                self.datagram(
                    ctx,
                    &mut packet[header.encoded_len()..],
                    By::Ring(over),
                    now,
                );
            }
            Next::Via(member) if take_hop(packet) => {
                if self.ring_out(&mut ctx.out, &member, packet, now) {
                    self.expect_from(&member, now);
                    self.ring.carried.fetch_add(1, Ordering::Relaxed);
                }
            }
            Next::Via(_) | Next::Nowhere => {}
        }
    }

    /// Gives a packet to a neighbour; false if there is no link to it that does not itself rest on
    /// the ring.
    pub fn ring_out(
        &self,
        out: &mut Batch,
        neighbour: &MemberId,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Some(next) = self.peers.load().get(neighbour).cloned() else {
            return false;
        };
        let Some(frame) = Frame::parse(packet) else {
            return false;
        };
        next.is_edge_path() && self.send_frame(out, &next, frame, &packet[FRAME_HEADER_LEN..], now)
    }

    /// As [`Inner::ring_out`], at once. What asks for something makes a sign of life due; after an
    /// answer nothing comes, and to wait for it would be one more probe of the path for every
    /// keepalive.
    pub fn ring_send(&self, neighbour: &MemberId, packet: &Packet) -> bool {
        let (mut out, now) = (Batch::default(), Instant::now());
        let sent = self.ring_out(&mut out, neighbour, &packet.to_bytes(), now);
        out.flush(&self.udp);
        if sent && !packet.is_answer() {
            self.expect_from(neighbour, now);
        }
        sent
    }

    fn expect_from(&self, neighbour: &MemberId, now: Instant) {
        if let Some(peer) = self.peers.load().get(neighbour) {
            peer.note_expecting(now);
        }
    }

    /// Sends a sealed datagram to a member over the ring.
    pub fn send_over_ring(
        &self,
        out: &mut Batch,
        peer: &Peer,
        datagram: &[u8],
        now: Instant,
    ) -> bool {
        let table = self.ring.table.load();
        let agent = peer.agent();
        let mut header = Header::new(
            Kind::Datagram,
            table.me().position,
            agent.unwrap_or(peer.position),
        );
        header.leaf = agent.map(|_| peer.position);
        let Some((first, ours)) = first_hop(&table, &header, peer.ring_via()) else {
            return false;
        };
        header.agent = ours;
        let mut packet = vec![0; MAX_HEADER_LEN + datagram.len()];
        let Some(room) = packet.first_chunk_mut::<MAX_HEADER_LEN>() else {
            return false;
        };
        let len = header.write(room);
        packet[len..len + datagram.len()].copy_from_slice(datagram);
        packet.truncate(len + datagram.len());
        let sent = self.ring_out(out, &first, &packet, now);
        if sent {
            self.expect_from(&first, now);
        }
        sent
    }
}

/// The neighbour that a packet of our own goes to first, and the agent that it must name so that
/// answers find us. `via`: this neighbour in any case.
pub(crate) fn first_hop(
    table: &Table,
    header: &Header,
    via: Option<Position>,
) -> Option<(MemberId, Option<Position>)> {
    let first = match via {
        Some(via) => {
            let at = |nodes: &[Node]| {
                nodes
                    .binary_search_by_key(&via, |n| n.position)
                    .ok()
                    .map(|i| nodes[i].member)
            };
            at(table.members()).or_else(|| at(table.leaves()))?
        }
        None => {
            // A leaf of our own is reached through ourselves.
            let ours = header.to == table.me().position;
            let next = if ours {
                table.route(header)
            } else {
                table.next(header.to, Mode::Exact)
            };
            let Next::Via(member) = next else { return None };
            member
        }
    };
    Some((
        first,
        via.or_else(|| (!table.joined()).then(|| Position::of(&first))),
    ))
}

impl Peer {
    /// Whether datagrams reach the member by a path that does not itself rest on the ring.
    pub fn is_edge_path(&self) -> bool {
        matches!(
            **self.via.load(),
            Via::Direct(_) | Via::Relayed(_) | Via::Stream(_)
        )
    }
}
