//! Packets that are larger than what the path to their member carries: the sender is told of those
//! that may be refused ([`super::shape::too_big`]), the others go in pieces
//! ([`super::shape::pieces`]).

use super::{
    core::Inner,
    guest::config::GATEWAY_V6,
    io::udp::Batch,
    path::peer::Peer,
    scratch::Scratch,
    send::Segments,
    shape::{packet, pieces, too_big},
};
use crate::link::frame::{FRAME_HEADER_LEN, Frame};
use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

/// How long a packet may be to fit every path, in bytes.
const ALWAYS: usize = 1076;

impl Inner {
    /// Whether all the packets fit the peer's path whole.
    pub fn fits(&self, peer: &Peer, segments: &Segments<'_>) -> bool {
        let largest = segments.sizes.iter().copied().max().unwrap_or(0);
        if largest > ALWAYS && !peer.large.load(Ordering::Relaxed) {
            peer.large.store(true, Ordering::Relaxed);
        }
        largest <= peer.limit().0
    }

    /// Sends packets that fit, refuses those that do not, and sends in pieces those that may not be
    /// refused.
    pub fn carry_large(
        &self,
        scratch: &mut Scratch,
        peer: &Arc<Peer>,
        frame: Frame,
        segments: &Segments<'_>,
        now: Instant,
    ) {
        let (room, sure) = peer.limit();
        let mut told = false;
        for i in 0..segments.sizes.len() {
            let packet = segments.packet(i);
            if packet.len() > room && sure {
                // One answer is enough for the segments of one packet.
                if told || self.refuse(scratch, packet, room) {
                    told = true;
                    continue;
                }
            }
            self.send_frame(&mut scratch.out, peer, frame, packet, now);
        }
    }

    /// Tells the sender, host or guest, how large its packets may be. False if this packet may not
    /// be refused.
    fn refuse(&self, scratch: &mut Scratch, packet: &[u8], room: usize) -> bool {
        let Some((src, dst)) = packet::addresses(packet) else {
            return false;
        };
        let guest = self.port_of(&src);
        let router = match (&guest, src) {
            (Some(port), IpAddr::V4(_)) => IpAddr::V4(port.config.gateway),
            (Some(_), IpAddr::V6(_)) => IpAddr::V6(GATEWAY_V6),
            // For the host the destination speaks: it lies behind the TUN, so that no filter of
            // source addresses drops it.
            (None, _) => dst,
        };
        let Some(answer) = too_big::refusal(packet, room, router) else {
            return false;
        };
        match guest {
            Some(port) => scratch.give_guest(&port, &answer),
            None if self.is_host(&src) => scratch.give_host(self, &answer),
            None => return false,
        }
        true
    }

    /// Sends a frame in pieces that the path carries.
    pub fn send_pieces(
        &self,
        out: &mut Batch,
        peer: &Arc<Peer>,
        frame: Frame,
        payload: &[u8],
        now: Instant,
    ) -> bool {
        let mut whole = vec![0; FRAME_HEADER_LEN];
        frame.write_header(&mut whole);
        whole.extend_from_slice(payload);
        let Some((count, size)) = pieces::divide(whole.len(), peer.limit().0) else {
            return false;
        };
        let id = peer.piece_id.fetch_add(1, Ordering::Relaxed);
        let mut sent = true;
        for (index, piece) in whole.chunks(size).enumerate() {
            let header = Frame::Piece {
                id,
                index: index as u8,
                count: count as u8,
            };
            sent &= self.send_frame(out, peer, header, piece, now);
        }
        sent
    }
}
