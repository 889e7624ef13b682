//! Inward: datagrams are sorted, opened, checked against the routes, and delivered to the host, a
//! guest or the next member.

use super::{
    Inner, Path, PlaneEvent, Route,
    core::{Held, lock},
    deliver::Ctx,
    packet,
    peer::{Peer, Via},
    priority,
    ring::OverRing,
    udp::READ_BYTES,
};
use crate::{
    id::{Epoch, MemberId},
    link::{
        Opened, Session,
        cookie::mac1_verifies,
        frame::{FRAME_HEADER_LEN, Frame, ROAMED, wire_epoch},
        session::OVERHEAD,
        wire::{self, Datagram, HEADER_LEN},
    },
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

/// Where a UDP datagram came from, and by which port of this node. A flow of a NAT or a firewall
/// has both: what comes by one port says nothing of what leaves by the other.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub addr: SocketAddr,
    /// It came by the second port ([`super::aside`]).
    pub aside: bool,
}

/// How a datagram came.
#[derive(Clone, Copy)]
pub(crate) enum By {
    Udp(Origin),
    Relay(MemberId),
    Ring(OverRing),
    Stream,
}

impl By {
    pub fn path(self) -> Path {
        match self {
            Self::Udp(from) => Path::Direct(from.addr),
            Self::Relay(relay) => Path::Relayed(relay),
            Self::Ring(_) => Path::Ring,
            Self::Stream => Path::Stream,
        }
    }

    /// The links that it took over the ring.
    pub fn hops(self) -> Option<u8> {
        if let Self::Ring(over) = self {
            Some(over.hops + 1)
        } else {
            None
        }
    }
}

/// Datagrams after which what was gathered is written at the latest: half a full GRO read.
const FLUSH_AFTER: usize = 32;

/// The UDP thread.
pub(crate) fn run(inner: &Inner) {
    priority::raise();
    let mut buf = vec![0; READ_BYTES];
    let mut ctx = Ctx::default();
    let mut datagrams = 0;
    while !inner.stop.raised() {
        match inner.udp.receive(&mut buf) {
            Ok((from, len, stride)) => {
                inner.datagrams(
                    &mut ctx,
                    &mut buf[..len],
                    stride,
                    Origin {
                        addr: from,
                        aside: false,
                    },
                    Instant::now(),
                );
                // Datagrams that came singly are gathered; a full read is not held up for more.
                datagrams += len.div_ceil(stride);
                if datagrams >= FLUSH_AFTER {
                    ctx.flush(inner);
                    datagrams = 0;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if datagrams > 0 {
                    ctx.flush(inner);
                    datagrams = 0;
                }
                ctx.rest(inner);
                if !inner.stop.wait_readable(inner.udp.fd()) {
                    break;
                }
            }
            // An ICMP error of an earlier datagram: its path will be found dead by silence.
            Err(error) => tracing::trace!(%error, "UDP"),
        }
    }
}

impl Inner {
    /// One datagram of a link, however it came.
    pub fn datagram(&self, ctx: &mut Ctx, bytes: &mut [u8], by: By, now: Instant) {
        let Ok(Datagram::Data { receiver, counter }) = wire::parse(bytes) else {
            return self.handshake(ctx, bytes, by, now);
        };
        let sessions = self.sessions.load();
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
        // A ping shows that the peer's datagrams reach us; whether ours reach the peer shows by
        // what answers them.
        let answers = !matches!(Frame::parse(plain), Some(Frame::Ping(_)));
        self.verified(session, peer, by, (data, answers), now);
        if let By::Ring(over) = by {
            peer.set_agent(over.agent);
        }
        self.frame(ctx, peer, plain, by, now);
    }

    /// What it says about a link that a datagram of its session came: how much data it brought, and
    /// whether it may be an answer.
    pub fn verified(
        &self,
        session: &Session,
        peer: &Arc<Peer>,
        by: By,
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
            (By::Udp(from), Via::Direct(to)) => {
                from.addr == *to && self.is_answered_by_its_port(from)
            }
            (By::Relay(relay), Via::Relayed(used)) => relay == used.member,
            (By::Ring(_), Via::Ring) | (By::Stream, Via::Stream(_)) => true,
            _ => false,
        };
        peer.note_received(now, data, in_use && answers);
        if !in_use && peer.may_look(now) {
            if let By::Udp(from) = by {
                self.turn_to_port(peer, from, now);
            }
            // From a place we did not know, such as a NAT's new mapping: probe it.
            peer.paths().heard(by.path(), now, peer.activity().received);
            self.kick.kick();
        }
    }

    fn frame(&self, ctx: &mut Ctx, peer: &Arc<Peer>, plain: &mut [u8], by: By, now: Instant) {
        let Some(frame) = Frame::parse(plain) else {
            return;
        };
        if let Frame::Ring { .. } = frame {
            return self.ring_in(ctx, peer, plain, by, now);
        }
        let payload = &mut plain[FRAME_HEADER_LEN..];
        match frame {
            Frame::Ip { .. } => self.ip_in(ctx, peer, frame, payload, now),
            Frame::Ping(token) => {
                if token & (ROAMED | super::core::USER_PING) == ROAMED {
                    peer.paths().peer_moved(by.path(), now);
                    self.kick.kick();
                }
                self.reply(ctx, peer, by, Frame::Pong(token), now);
            }
            Frame::Pong(token) => {
                let asked = lock(&self.pings).remove(&token);
                match asked {
                    Some(waiting) => drop(waiting.send((now, by))),
                    None => {
                        let of_size = peer.pmtu().pong(token, now);
                        if of_size {
                            peer.show_limit();
                        }
                        let asked = peer.paths().pong(by.path(), token, now);
                        if let (true, By::Udp(from)) = (asked, by) {
                            self.keep_port(from, now);
                        }
                        self.run_paths(peer, now);
                    }
                }
            }
            Frame::Keepalive | Frame::Ring { .. } => {}
            Frame::ForwardTo(to) => {
                let next = self.peers.load().by_short(&to).cloned();
                if let (Some(next), false) = (next, matches!(by, By::Relay(_) | By::Ring(_)))
                    && self.relaying.admits(peer.short, to, payload.len(), now)
                {
                    // Never a second relay: what we pass on leaves directly or by stream.
                    if matches!(**next.via.load(), Via::Direct(_) | Via::Stream(_)) {
                        self.send_frame(
                            &mut ctx.out,
                            &next,
                            Frame::ForwardFrom(peer.short),
                            payload,
                            now,
                        );
                    }
                }
            }
            Frame::ForwardFrom(_) if matches!(by, By::Relay(_) | By::Ring(_)) => {}
            // Who sent it shows by the session that opens it.
            Frame::ForwardFrom(_) => self.datagram(ctx, payload, By::Relay(peer.member), now),
            Frame::Piece { id, index, count } => {
                let whole = lock(&peer.pieces).take(now, id, index, count, payload);
                if let Some(mut whole) = whole
                    && matches!(Frame::parse(&whole), Some(Frame::Ip { .. }))
                {
                    self.frame(ctx, peer, &mut whole, by, now);
                }
            }
            Frame::Moved {
                addr,
                member,
                epoch,
            } => self.moved(peer, addr, member, epoch),
        }
    }

    /// Answers what came, the way that it came.
    fn reply(&self, ctx: &mut Ctx, peer: &Arc<Peer>, by: By, frame: Frame, now: Instant) {
        let By::Udp(from) = by else {
            return self.send_frame_by(&mut ctx.out, peer, by.path(), frame, &[], now);
        };
        let aside = self.udp.aside();
        if aside.answers(from) == aside.writes_to(&from.addr) {
            return self.send_frame_by(&mut ctx.out, peer, by.path(), frame, &[], now);
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
                .send_by(aside.answers(from), from.addr, &bytes[..len]);
        }
    }

    /// An IP packet from a member: is the source its own, and where does it go?
    pub fn ip_in(
        &self,
        ctx: &mut Ctx,
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
        if !passed_on && !self.source_stands(peer, &src, &frame, packet, now) {
            return;
        }
        if dst.is_multicast() && !passed_on {
            return self.multicast_in(ctx, packet, &src, now);
        }
        if !self.access.admits(packet, &src, &dst, now) {
            return;
        }
        ctx.tally
            .note(&self.traffic, (dst, src), peer.member, (0, packet.len()));
        if let Some(port) = self.port_of(&dst) {
            // Passed on by the former host: believed only shortly after the guest came here, and
            // never under a newer epoch than ours, which would mean that the guest has left again.
            if to_epoch <= wire_epoch(port.config.epoch) && (!passed_on || port.is_new(now)) {
                ctx.give_guest(&port, packet);
            }
        } else if self.is_host(&dst) && !passed_on {
            ctx.give_host(self, packet);
        } else if !passed_on && self.routes.load().is_offered_by(&dst, &self.me) {
            // For the LAN that this host offers: its kernel forwards.
            ctx.give_host(self, packet);
        } else if let Some(route) = self.forwards.load().get(&dst).copied()
            && !passed_on
        {
            self.pass_on(ctx, peer, &dst, route, from_epoch, packet, now);
        } else if passed_on
            && self
                .routes
                .load()
                .get(&dst)
                .is_none_or(|route| to_epoch >= wire_epoch(route.epoch))
        {
            // For a guest that is on its way here: it has its port in a moment.
            lock(&self.early).hold(now, dst, packet.to_vec());
        }
    }

    fn source_stands(
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
        match self.routes.load().get(src) {
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
            // The same epoch from another member is a lie; a newer one may be a move that we have
            // not heard of.
            Some(route) if from_epoch == wire_epoch(route.epoch) && from_epoch > 0 => false,
            _ => {
                let held = Held {
                    from: peer.member,
                    from_epoch,
                    to_epoch,
                    packet: packet.to_vec(),
                };
                if lock(&self.unknown_sources).hold(now, *src, held) {
                    self.tell(PlaneEvent::Unresolved(*src));
                }
                false
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn pass_on(
        &self,
        ctx: &mut Ctx,
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
        self.send_frame(&mut ctx.out, &next, frame, packet, now);
        if sender.may_hint(now) {
            let hint = Frame::Moved {
                addr: *dst,
                member: route.member,
                epoch: route.epoch,
            }
            .to_bytes();
            if let Some(header) = Frame::parse(&hint) {
                self.send_frame(&mut ctx.out, sender, header, &hint[FRAME_HEADER_LEN..], now);
            }
        }
    }

    /// A handshake message. Initiations from strangers end here: only members that the connector
    /// has met have a link.
    fn handshake(&self, ctx: &mut Ctx, bytes: &[u8], by: By, now: Instant) {
        match wire::parse(bytes) {
            Ok(Datagram::Initiation { sender, noise })
                if mac1_verifies(bytes, &self.keys.public().0) =>
            {
                if let By::Ring(_) = by
                    && lock(&self.doorman).overloaded(now)
                {
                    // No address that a cookie could prove.
                    return;
                }
                if let By::Udp(from) = by {
                    let mut doorman = lock(&self.doorman);
                    if doorman.overloaded(now) && !doorman.proves_address(now, bytes, from.addr) {
                        if let Some((salt, sealed)) =
                            doorman.reply(now, bytes, from.addr, &self.keys.public().0)
                        {
                            self.udp.send_by(
                                from.aside,
                                from.addr,
                                &wire::cookie(sender, &salt, &sealed),
                            );
                        }
                        return;
                    }
                }
                let Ok(opened) = Opened::read(&self.keys, sender, noise) else {
                    return;
                };
                let peers = self.peers.load();
                let known = peers
                    .iter()
                    .find(|p| p.link().as_ref().is_some_and(|l| l.peer() == opened.peer));
                let Some(peer) = known else { return };
                let index = self.new_index();
                let answer = peer
                    .link()
                    .as_mut()
                    .and_then(|link| link.accept(now, opened, index, false, &[]).ok());
                self.run_link(peer, now);
                match (answer, by, self.via(peer, by.path())) {
                    (Some(answer), By::Udp(from), _) => {
                        self.udp
                            .send_by(self.udp.aside().answers(from), from.addr, &answer)
                    }
                    (Some(answer), _, Some(via)) => {
                        let _ = self.pass(&mut ctx.out, peer, &via, answer, now);
                    }
                    _ => {}
                }
            }
            Ok(Datagram::Response { receiver, .. }) => {
                let peers = self.peers.load();
                let Some(peer) = peers
                    .iter()
                    .find(|p| p.link().as_ref().is_some_and(|l| l.waits_for(receiver)))
                else {
                    return;
                };
                let answered = peer
                    .link()
                    .as_mut()
                    .is_some_and(|link| link.answered(now, bytes).is_ok());
                self.run_link(peer, now);
                if answered {
                    // So that the far end may seal with the new session too.
                    self.reply(ctx, peer, by, Frame::Keepalive, now);
                }
            }
            Ok(Datagram::Cookie { receiver, .. }) => {
                for peer in self.peers.load().iter() {
                    if let Some(link) = peer.link().as_mut().filter(|l| l.waits_for(receiver)) {
                        let _ = link.cookie(now, bytes);
                    }
                }
                self.kick.kick();
            }
            _ => {}
        }
    }
}
