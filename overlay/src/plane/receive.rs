//! Inward: datagrams are sorted, opened, checked against the routes, and delivered to the host, a
//! guest or the next member.

use super::{
    core::Inner,
    io::{priority, second_port::UdpSource, udp::READ_BYTES},
    path::{
        arrival::Arrival,
        peer::{Peer, SendPath},
        pending::USER_PING,
    },
    routes::Route,
    scratch::Scratch,
    shape::packet,
    types::PlaneEvent,
    waiting::HeldPacket,
};
use crate::lock;
use crate::{
    id::Epoch,
    link::{
        Session,
        frame::{FRAME_HEADER_LEN, Frame, ROAMED, ShortId, wire_epoch},
        session::OVERHEAD,
        wire::{self, Datagram, HEADER_LEN},
    },
};
use std::{io, net::IpAddr, sync::Arc, time::Instant};

/// How many datagrams are gathered before they are written: half a full GRO read.
const FLUSH_AFTER: usize = 32;

/// The UDP socket's thread.
pub(super) fn run(inner: &Inner) {
    priority::raise();
    let mut buf = vec![0; READ_BYTES];
    let mut scratch = Scratch::default();
    let mut datagrams = 0;
    while !inner.stop.raised() {
        match inner.udp.receive(&mut buf) {
            Ok((from, len, stride)) => {
                inner.datagrams(
                    &mut scratch,
                    &mut buf[..len],
                    stride,
                    UdpSource {
                        addr: from,
                        is_second_port: false,
                    },
                    Instant::now(),
                );
                // Datagrams that came singly are gathered; a full read is written at once.
                datagrams += len.div_ceil(stride);
                if datagrams >= FLUSH_AFTER {
                    scratch.flush(inner);
                    datagrams = 0;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if datagrams > 0 {
                    scratch.flush(inner);
                    datagrams = 0;
                }
                scratch.rest(inner);
                if !inner.stop.wait_readable(inner.udp.fd()) {
                    break;
                }
            }
            // An ICMP error of an earlier datagram: its path will be found dead by silence.
            Err(error) => tracing::trace!(
                error = %p2pvm_host::chain(&error),
                "the UDP socket reports an error"
            ),
        }
    }
}

impl Inner {
    /// Takes one datagram of a link, by whichever path it came.
    pub fn datagram(&self, scratch: &mut Scratch, bytes: &mut [u8], by: Arrival, now: Instant) {
        let Ok(Datagram::Data { receiver, counter }) = wire::parse(bytes) else {
            return self.handshake(scratch, bytes, by, now);
        };
        let sessions = self.tables.sessions.load();
        let Some((session, peer)) = sessions.get(&receiver) else {
            return;
        };
        let Ok(plain) = session.open(bytes, counter) else {
            return;
        };
        let data = if Frame::is_data(plain.first()) {
            plain.len().saturating_sub(FRAME_HEADER_LEN)
        } else {
            0
        };
        // A ping shows that the peer's datagrams arrive here; that ours arrive there is shown only
        // by answers.
        let answers = !matches!(Frame::parse(plain), Some(Frame::Ping(_)));
        self.verified(session, peer, by, (data, answers), now);
        if let Arrival::Ring(over) = by {
            peer.set_agent(over.agent);
        }
        self.frame(scratch, peer, plain, by, now);
    }

    /// Notes about a link that a datagram of its session came: with how much data, and whether it
    /// may be an answer.
    pub fn verified(
        &self,
        session: &Session,
        peer: &Arc<Peer>,
        by: Arrival,
        (data, answers): (usize, bool),
        now: Instant,
    ) {
        if session.confirm() {
            if let Some(link) = peer.link().as_mut() {
                link.confirmed(session.local_index());
            }
            self.run_link(peer, now);
        }
        let in_use = match (by, &**peer.via.load()) {
            (Arrival::Udp(from), SendPath::Direct(to)) => {
                from.addr == *to && self.is_answered_by_its_port(from)
            }
            (Arrival::Relay(relay), SendPath::Relayed(used)) => relay == used.member,
            (Arrival::Ring(_), SendPath::Ring) | (Arrival::Stream, SendPath::Stream(_)) => true,
            _ => false,
        };
        peer.note_received(now, data, in_use && answers);
        if !in_use && peer.may_look(now) {
            if let Arrival::Udp(from) = by {
                self.turn_to_port(peer, from, now);
            }
            // The path may be new, such as a NAT's new mapping: it is probed.
            peer.paths().heard(by.path(), now, peer.activity().received);
            self.clock.wake();
        }
    }

    fn frame(
        &self,
        scratch: &mut Scratch,
        peer: &Arc<Peer>,
        plain: &mut [u8],
        by: Arrival,
        now: Instant,
    ) {
        let Some(frame) = Frame::parse(plain) else {
            return;
        };
        if let Frame::Ring { .. } = frame {
            return self.ring_in(scratch, peer, plain, by, now);
        }
        let payload = &mut plain[FRAME_HEADER_LEN..];
        match frame {
            Frame::Ip { .. } => self.ip_in(scratch, peer, frame, payload, now),
            Frame::Ping(token) => {
                if token & (ROAMED | USER_PING) == ROAMED {
                    peer.paths().peer_moved(by.path(), now);
                    self.clock.wake();
                }
                self.reply(scratch, peer, by, Frame::Pong(token), now);
            }
            Frame::Pong(token) => self.pong(peer, token, by, now),
            Frame::Keepalive | Frame::Ring { .. } => {}
            // Never a second relay: a datagram that came by one is not passed on.
            Frame::ForwardTo(_) | Frame::ForwardFrom(_)
                if matches!(by, Arrival::Relay(_) | Arrival::Ring(_)) => {}
            Frame::ForwardTo(to) => self.forward(scratch, peer, to, payload, now),
            // The session that opens it names the sender.
            Frame::ForwardFrom(_) => {
                self.datagram(scratch, payload, Arrival::Relay(peer.member), now)
            }
            Frame::Piece { id, index, count } => {
                let whole = lock(&peer.pieces).take(now, id, index, count, payload);
                if let Some(mut whole) = whole
                    && matches!(Frame::parse(&whole), Some(Frame::Ip { .. }))
                {
                    self.frame(scratch, peer, &mut whole, by, now);
                }
            }
            Frame::Moved {
                addr,
                member,
                epoch,
            } => self.moved(peer, addr, member, epoch),
        }
    }

    /// Takes the answer to a user's ping, to a path MTU probe, or to a path's probe.
    fn pong(&self, peer: &Arc<Peer>, token: u64, by: Arrival, now: Instant) {
        let waiting = lock(&self.pending.pings).remove(&token);
        if let Some(waiting) = waiting {
            let _ = waiting.send((now, by));
            return;
        }
        let of_size = peer.pmtu().pong(token, now);
        if of_size {
            peer.show_limit();
        }
        let asked = peer.paths().pong(by.path(), token, now);
        if let (true, Arrival::Udp(from)) = (asked, by) {
            self.keep_port(from, now);
        }
        self.run_paths(peer, now);
    }

    /// Passes a datagram of `peer` on to another member, as its relay.
    fn forward(
        &self,
        scratch: &mut Scratch,
        peer: &Peer,
        to: ShortId,
        datagram: &[u8],
        now: Instant,
    ) {
        let Some(next) = self.tables.peers.load().by_short(&to).cloned() else {
            return;
        };
        // Never a second relay: a relayed datagram leaves directly or by stream.
        if self.relaying.admits(peer.short, to, datagram.len(), now)
            && matches!(**next.via.load(), SendPath::Direct(_) | SendPath::Stream(_))
        {
            let frame = Frame::ForwardFrom(peer.short);
            self.send_frame(&mut scratch.out, &next, frame, datagram, now);
        }
    }

    /// Answers a datagram by the path by which it came.
    pub fn reply(
        &self,
        scratch: &mut Scratch,
        peer: &Arc<Peer>,
        by: Arrival,
        frame: Frame,
        now: Instant,
    ) {
        let Arrival::Udp(from) = by else {
            return self.send_frame_by(&mut scratch.out, peer, by.path(), frame, &[], now);
        };
        let second = self.udp.second_port();
        if second.answers(from) == second.sends_to(&from.addr) {
            return self.send_frame_by(&mut scratch.out, peer, by.path(), frame, &[], now);
        }
        let mut bytes = [0; OVERHEAD];
        frame.write_header(&mut bytes[HEADER_LEN..]);
        let sealed = peer
            .sending
            .load()
            .as_ref()
            .and_then(|session| session.seal(&mut bytes, FRAME_HEADER_LEN));
        if let Some(len) = sealed {
            peer.note_sent(now, 0);
            self.udp
                .send_by(second.answers(from), from.addr, &bytes[..len]);
        }
    }

    /// Takes an IP packet from a member: checks its source and delivers it.
    pub fn ip_in(
        &self,
        scratch: &mut Scratch,
        peer: &Arc<Peer>,
        frame: Frame,
        packet: &[u8],
        now: Instant,
    ) {
        let Frame::Ip {
            from_epoch,
            to_epoch,
            passed_on,
        } = frame
        else {
            return;
        };
        let Some((src, dst)) = packet::addresses(packet) else {
            return;
        };
        if !passed_on && !self.has_valid_source(peer, &src, &frame, packet, now) {
            return;
        }
        if dst.is_multicast() && !passed_on {
            return self.multicast_in(scratch, packet, &src, now);
        }
        if !self.access.admits(packet, &src, &dst, now) {
            return;
        }
        scratch
            .tally
            .note(&self.traffic, (dst, src), peer.member, (0, packet.len()));
        if let Some(port) = self.port_of(&dst) {
            // A packet that the former host passed on is accepted only shortly after the guest came
            // here, and never under a newer epoch: the guest would have left again.
            if to_epoch <= wire_epoch(port.config.epoch) && (!passed_on || port.is_new(now)) {
                scratch.give_guest(&port, packet);
            }
        } else if self.is_host(&dst) && !passed_on {
            scratch.give_host(self, packet);
        } else if !passed_on && self.tables.routes.load().is_offered_by(&dst, &self.me) {
            // For a LAN that this host offers: its kernel forwards the packet.
            scratch.give_host(self, packet);
        } else if let Some(route) = self.tables.forwards.load().get(&dst).copied()
            && !passed_on
        {
            self.pass_on(scratch, peer, &dst, route, from_epoch, packet, now);
        } else if passed_on
            && self
                .tables
                .routes
                .load()
                .get(&dst)
                .is_none_or(|route| to_epoch >= wire_epoch(route.epoch))
        {
            // For a guest that is on its way here and will have its port in a moment.
            lock(&self.waiting.early).hold(now, dst, packet.to_vec());
        }
    }

    /// Whether the packet's source is the sending member's. A packet whose source is unknown, or
    /// may have moved, is held.
    fn has_valid_source(
        &self,
        peer: &Arc<Peer>,
        src: &IpAddr,
        frame: &Frame,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Frame::Ip {
            from_epoch,
            to_epoch,
            ..
        } = *frame
        else {
            return false;
        };
        match self.tables.routes.load().get(src) {
            Some(route) if from_epoch < wire_epoch(route.epoch) => {
                let (sent, known) = (Epoch(u64::from(from_epoch)), route.epoch);
                if peer.may_complain(now) {
                    self.tell(PlaneEvent::StaleEpoch {
                        addr: *src,
                        from: peer.member,
                        sent,
                        known,
                    });
                }
                false
            }
            Some(route) if route.member == peer.member => true,
            // Another member cannot hold the address under the same epoch; a newer epoch may be a
            // move that this node has not heard of.
            Some(route) if from_epoch == wire_epoch(route.epoch) && from_epoch > 0 => false,
            _ => {
                let held = HeldPacket {
                    from: peer.member,
                    from_epoch,
                    to_epoch,
                    packet: packet.to_vec(),
                };
                if lock(&self.waiting.unknown_sources).hold(now, *src, held) {
                    self.tell(PlaneEvent::Unresolved(*src));
                }
                false
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn pass_on(
        &self,
        scratch: &mut Scratch,
        sender: &Arc<Peer>,
        dst: &IpAddr,
        route: Route,
        from_epoch: u32,
        packet: &[u8],
        now: Instant,
    ) {
        let next = self.peer(route.member);
        let frame = Frame::Ip {
            from_epoch,
            to_epoch: wire_epoch(route.epoch),
            passed_on: true,
        };
        self.send_frame(&mut scratch.out, &next, frame, packet, now);
        if sender.may_hint(now) {
            let hint = Frame::Moved {
                addr: *dst,
                member: route.member,
                epoch: route.epoch,
            }
            .to_bytes();
            if let Some(header) = Frame::parse(&hint) {
                self.send_frame(
                    &mut scratch.out,
                    sender,
                    header,
                    &hint[FRAME_HEADER_LEN..],
                    now,
                );
            }
        }
    }
}
