//! Outward: packets from the TUN or a guest find their route and are sealed for their peer. The
//! segments of one read (one TSO packet, cut) belong to one flow, so route, session and path are
//! looked up once; on a direct path they are sealed in place and leave with one GSO send.

use super::{
    core::Inner,
    guest::port::Port,
    io::udp::Batch,
    path::peer::{Peer, SendPath},
    scratch::Scratch,
    shape::packet,
    types::{Path, PlaneEvent},
};
use crate::link::{
    Session,
    frame::{FRAME_HEADER_LEN, Frame, wire_epoch},
    session::OVERHEAD,
    wire::{HEADER_LEN, TAG_LEN},
};
use crate::lock;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

/// How many bytes precede each packet in its datagram: the datagram's and the frame's header.
pub(crate) const HEAD: usize = HEADER_LEN + FRAME_HEADER_LEN;

/// Packets of one flow at equal distances in one buffer, each with [`HEAD`] bytes before it and
/// room for a tag behind it.
pub(crate) struct Segments<'a> {
    pub buf: &'a mut [u8],
    pub stride: usize,
    pub sizes: &'a [usize],
}

impl Segments<'_> {
    pub fn packet(&self, i: usize) -> &[u8] {
        let start = i * self.stride + HEAD;
        &self.buf[start..start + self.sizes[i]]
    }

    pub fn total(&self) -> usize {
        self.sizes.iter().sum()
    }
}

enum NextHop {
    Guest(Arc<Port>),
    Host,
    Member(Arc<Peer>, u32),
    Unknown,
    Drop,
}

impl Inner {
    fn next_hop(&self, dst: &IpAddr) -> NextHop {
        if let Some(port) = self.port_of(dst) {
            return NextHop::Guest(port);
        }
        if self.is_host(dst) {
            return NextHop::Host;
        }
        if !packet::is_unicast(dst) {
            return NextHop::Drop;
        }
        match self.tables.routes.load().get(dst) {
            // This host's by the table, but without a port: the guest has left, or is not here yet.
            Some(route) if route.member == self.me => NextHop::Drop,
            Some(route) => NextHop::Member(self.peer(route.member), wire_epoch(route.epoch)),
            None => NextHop::Unknown,
        }
    }

    /// Carries the segments to their destination. `from_epoch`: the epoch of the source address,
    /// zero for the host's own.
    pub fn carry(
        &self,
        scratch: &mut Scratch,
        from_epoch: u32,
        segments: Segments<'_>,
        now: Instant,
    ) {
        let Some((src, dst)) = segments
            .sizes
            .first()
            .and_then(|_| packet::addresses(segments.packet(0)))
        else {
            return;
        };
        self.access.sent(segments.packet(0), &src, &dst, now);
        match self.next_hop(&dst) {
            // The segments are of one flow: the decision for the first holds for all.
            NextHop::Guest(_) | NextHop::Host
                if !self.access.admits(segments.packet(0), &src, &dst, now) => {}
            NextHop::Guest(port) => {
                scratch
                    .tally
                    .note(&self.traffic, (src, dst), self.me, (segments.total(), 0));
                (0..segments.sizes.len())
                    .for_each(|i| scratch.give_guest(&port, segments.packet(i)));
            }
            NextHop::Host => {
                (0..segments.sizes.len()).for_each(|i| scratch.give_host(self, segments.packet(i)))
            }
            // Only guests' addresses have an epoch; the host's own has none.
            NextHop::Drop if from_epoch > 0 => {
                (0..segments.sizes.len()).for_each(|i| {
                    self.multicast_out(scratch, from_epoch, segments.packet(i), &src, &dst, now)
                });
            }
            NextHop::Drop => {}
            NextHop::Unknown => {
                let mut ask = false;
                for i in 0..segments.sizes.len() {
                    ask |= lock(&self.waiting.unresolved).hold(
                        now,
                        dst,
                        (from_epoch, segments.packet(i).to_vec()),
                    );
                }
                if ask {
                    self.tell(PlaneEvent::Unresolved(dst));
                }
            }
            NextHop::Member(peer, to_epoch) => {
                let frame = Frame::Ip {
                    from_epoch,
                    to_epoch,
                    passed_on: false,
                };
                let sent = (segments.total(), 0);
                scratch
                    .tally
                    .note(&self.traffic, (src, dst), peer.member, sent);
                self.carry_to_member(scratch, &peer, frame, segments, now);
            }
        }
    }

    fn carry_to_member(
        &self,
        scratch: &mut Scratch,
        peer: &Arc<Peer>,
        frame: Frame,
        mut segments: Segments<'_>,
        now: Instant,
    ) {
        let (session, via) = (peer.sending.load(), peer.via.load());
        if !self.fits(peer, &segments) {
            self.carry_large(scratch, peer, frame, &segments, now);
        } else if let (Some(session), SendPath::Direct(to), true) =
            (&*session, &**via, segments.sizes.len() > 1)
        {
            self.send_in_place(&mut scratch.out, session, *to, frame, &mut segments);
            peer.note_sent(now, segments.total());
        } else {
            for i in 0..segments.sizes.len() {
                self.send_frame(&mut scratch.out, peer, frame, segments.packet(i), now);
            }
        }
    }

    /// [`Inner::carry`] for one packet.
    pub fn carry_one(&self, scratch: &mut Scratch, from_epoch: u32, packet: &[u8], now: Instant) {
        let mut buf = vec![0; HEAD + packet.len() + TAG_LEN];
        buf[HEAD..HEAD + packet.len()].copy_from_slice(packet);
        let stride = buf.len();
        self.carry(
            scratch,
            from_epoch,
            Segments {
                buf: &mut buf,
                stride,
                sizes: &[packet.len()],
            },
            now,
        );
    }

    fn send_in_place(
        &self,
        out: &mut Batch,
        session: &Session,
        to: SocketAddr,
        frame: Frame,
        segments: &mut Segments<'_>,
    ) {
        // The batch holds earlier datagrams.
        out.flush(&self.udp);
        let (mut start, mut end, mut first, mut count) = (0, 0, 0, 0);
        for (i, size) in segments.sizes.iter().enumerate() {
            let at = i * segments.stride;
            let plain = FRAME_HEADER_LEN + size;
            let datagram = HEADER_LEN + plain + TAG_LEN;
            if count > 0 && (datagram > first || !Batch::fits(end - start + datagram, count)) {
                self.udp.send_many(to, &segments.buf[start..end], first);
                count = 0;
            }
            if count == 0 {
                (start, end, first) = (at, at, datagram);
            }
            frame.write_header(&mut segments.buf[at + HEADER_LEN..]);
            let Some(len) = session.seal(&mut segments.buf[at..at + datagram], plain) else {
                return;
            };
            if end != at {
                segments.buf.copy_within(at..at + len, end);
            }
            (end, count) = (end + len, count + 1);
            if len < first {
                // A shorter one ends a GSO batch.
                self.udp.send_many(to, &segments.buf[start..end], first);
                count = 0;
            }
        }
        if count > 0 {
            self.udp.send_many(to, &segments.buf[start..end], first);
        }
    }

    /// Seals one frame for the peer and sends it by its selected path. Without one, an IP frame
    /// waits and a path is asked for.
    pub fn send_frame(
        &self,
        out: &mut Batch,
        peer: &Arc<Peer>,
        frame: Frame,
        payload: &[u8],
        now: Instant,
    ) -> bool {
        let data = if matches!(
            frame,
            Frame::Ip { .. } | Frame::Piece { .. } | Frame::ForwardTo(_) | Frame::ForwardFrom(_)
        ) {
            payload.len()
        } else {
            0
        };
        let (session, via) = (peer.sending.load(), peer.via.load());
        if let (Some(session), false) = (&*session, matches!(**via, SendPath::Nowhere)) {
            if matches!(frame, Frame::Ip { .. }) && payload.len() > peer.limit().0 {
                return self.send_pieces(out, peer, frame, payload, now);
            }
            peer.note_sent(now, data);
            return self.seal_and_send(out, peer, session, &via, frame, payload, now);
        }
        if let Frame::Ip { .. } = frame {
            let mut waiting = vec![0; FRAME_HEADER_LEN];
            frame.write_header(&mut waiting);
            waiting.extend_from_slice(payload);
            peer.wait(now, waiting);
            peer.touch(now);
            self.want(peer, now);
        }
        false
    }

    /// Seals one frame and sends it by `path`, whichever path is selected.
    pub fn send_frame_by(
        &self,
        out: &mut Batch,
        peer: &Arc<Peer>,
        path: Path,
        frame: Frame,
        payload: &[u8],
        now: Instant,
    ) {
        let session = peer.sending.load();
        if let (Some(session), Some(via)) = (&*session, self.via(peer, path)) {
            peer.note_sent(now, 0);
            self.seal_and_send(out, peer, session, &via, frame, payload, now);
        }
    }

    /// How packet threads use a path; `None` if its relay or stream is gone.
    pub fn via(&self, peer: &Peer, path: Path) -> Option<SendPath> {
        match path {
            Path::Direct(to) => Some(SendPath::Direct(to)),
            Path::Relayed(relay) => self
                .tables
                .peers
                .load()
                .get(&relay)
                .cloned()
                .map(SendPath::Relayed),
            Path::Ring => Some(SendPath::Ring),
            Path::Stream => peer.stream().clone().map(SendPath::Stream),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn seal_and_send(
        &self,
        out: &mut Batch,
        peer: &Peer,
        session: &Session,
        via: &SendPath,
        frame: Frame,
        payload: &[u8],
        now: Instant,
    ) -> bool {
        let room = OVERHEAD + payload.len();
        let seal = |buf: &mut [u8]| {
            frame.write_header(&mut buf[HEADER_LEN..]);
            buf[HEAD..HEAD + payload.len()].copy_from_slice(payload);
            session.seal(buf, FRAME_HEADER_LEN + payload.len())
        };
        if let SendPath::Direct(to) = via {
            out.push(&self.udp, *to, room, seal);
            return true;
        }
        if let SendPath::Relayed(relay) = via
            && let (Some(outer), SendPath::Direct(to)) =
                (&*relay.sending.load(), &**relay.via.load())
        {
            // Sealed in place twice: for the member, then with its id for the relay.
            relay.note_sent(now, room);
            out.push(&self.udp, *to, OVERHEAD + room, |buf| {
                let inner = seal(buf.get_mut(HEAD..HEAD + room)?)?;
                Frame::ForwardTo(peer.short).write_header(&mut buf[HEADER_LEN..]);
                outer.seal_envelope(buf, FRAME_HEADER_LEN + inner)
            });
            return true;
        }
        let mut datagram = vec![0; room];
        seal(&mut datagram).is_some() && self.pass(out, peer, via, datagram, now)
    }

    /// Sends a finished datagram of the link to `peer` by `via`.
    pub fn pass(
        &self,
        out: &mut Batch,
        peer: &Peer,
        via: &SendPath,
        datagram: Vec<u8>,
        now: Instant,
    ) -> bool {
        match via {
            SendPath::Nowhere => false,
            SendPath::Direct(to) => {
                out.push(&self.udp, *to, datagram.len(), |buf| {
                    buf.copy_from_slice(&datagram);
                    Some(buf.len())
                });
                true
            }
            SendPath::Ring => self.send_over_ring(out, peer, &datagram, now),
            SendPath::Stream(stream) => stream.try_send(datagram).is_ok(),
            SendPath::Relayed(relay) => {
                // Never two relays: a member that itself needs a relay cannot be one.
                let usable = matches!(
                    **relay.via.load(),
                    SendPath::Direct(_) | SendPath::Stream(_)
                );
                usable && self.send_frame(out, relay, Frame::ForwardTo(peer.short), &datagram, now)
            }
        }
    }
}
