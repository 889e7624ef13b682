//! Ring packets, which go from neighbour to neighbour. The thread that received a datagram of
//! another pair's link hands it on by a snapshot of the routing table: it opens the packet, takes
//! one hop off and seals it for the next neighbour; the content stays sealed between its ends.
//! Calls and answers go on in the same way. Packets that end here, and those for the ring's state
//! machine, go to its driver through a bounded queue.
//!
//! A neighbour is reached directly, through a relay or by stream, never over the ring itself.

use super::{
    arrival::{Arrival, RingArrival},
    peer::Peer,
    ring_port::first_hop,
};
use crate::{
    id::MemberId,
    link::frame::{FRAME_HEADER_LEN, Frame},
    plane::{core::Inner, io::udp::Batch, scratch::Scratch},
    ring::{
        HOP_LIMIT, Header, Kind, Packet, RingHop,
        wire::{MAX_HEADER_LEN, take_hop},
    },
};
use std::{sync::atomic::Ordering, time::Instant};

impl Inner {
    /// Whether the ring has a neighbour to send to.
    pub fn has_ring_neighbours(&self) -> bool {
        !self.ring.table.load().members().is_empty()
    }

    /// Takes a packet that a neighbour handed over.
    pub fn ring_in(
        &self,
        scratch: &mut Scratch,
        neighbour: &Peer,
        packet: &mut [u8],
        by: Arrival,
        now: Instant,
    ) {
        if matches!(by, Arrival::Ring(_)) {
            return;
        }
        let Ok((header, body)) = Header::parse(packet) else {
            return;
        };
        // A full queue drops it, as a full router would: the asker repeats its question.
        let to_driver = |body: &[u8]| {
            drop(self.ring.to_driver.try_send((
                neighbour.member,
                Packet {
                    header,
                    body: body.to_vec(),
                },
            )))
        };
        if !matches!(header.kind, Kind::Datagram | Kind::Call | Kind::Answer) {
            return to_driver(body);
        }
        match self.ring.table.load().route(&header) {
            RingHop::Here if header.kind != Kind::Datagram => to_driver(body),
            RingHop::Here => {
                let over = RingArrival {
                    agent: header.agent,
                    hops: HOP_LIMIT - header.hops_left,
                };
                self.datagram(
                    scratch,
                    &mut packet[header.encoded_len()..],
                    Arrival::Ring(over),
                    now,
                );
            }
            RingHop::Via(member) if take_hop(packet) => {
                if self.ring_out(&mut scratch.out, &member, packet, now) {
                    self.expect_from(&member, now);
                    self.ring.carried.fetch_add(1, Ordering::Relaxed);
                }
            }
            RingHop::Via(_) | RingHop::Nowhere => {}
        }
    }

    /// Gives a packet to a neighbour. False without a link to it that does not itself rest on the
    /// ring.
    pub fn ring_out(
        &self,
        out: &mut Batch,
        neighbour: &MemberId,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Some(next) = self.tables.peers.load().get(neighbour).cloned() else {
            return false;
        };
        let Some(frame) = Frame::parse(packet) else {
            return false;
        };
        next.is_edge_path() && self.send_frame(out, &next, frame, &packet[FRAME_HEADER_LEN..], now)
    }

    /// As [`Inner::ring_out`], sent at once. Any packet but an answer makes a sign of life due.
    /// Reason: nothing follows an answer, and to expect it would add a probe of the path to every
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
        if let Some(peer) = self.tables.peers.load().get(neighbour) {
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
