//! What one UDP read brought, and envelopes in it ([`crate::link::wire`]): datagrams of other pairs
//! that this node passes on. They are sealed for their end, so that only what is written on the
//! envelope is opened here, written anew for the next hop and sealed again, all where it stands in
//! the buffer it was read into. Those that follow each other to one member, as one GSO send brought
//! them, leave with one GSO send: a relay touches some 60 bytes of a datagram and copies none of
//! it.
//!
//! Datagrams that came singly are gathered like all others that leave, which costs a copy and saves
//! a system call each.

use super::{
    Inner,
    deliver::Ctx,
    peer::Via,
    receive::{By, Origin},
    udp::Batch,
};
use crate::{
    link::{
        frame::{FRAME_HEADER_LEN, Frame},
        wire::{self, Datagram, HEADER_LEN, TAG_LEN},
    },
    stun,
};
use std::{net::SocketAddr, time::Instant};

/// From so many on a run is worth a send of its own.
const LEAST_RUN: usize = 4;

/// Datagrams that stand one behind the other in the buffer and go to one place, all of one size but
/// the last.
struct Run {
    to: SocketAddr,
    start: usize,
    end: usize,
    size: usize,
    count: usize,
}

impl Run {
    /// Whether a datagram of `len` bytes that stands at `at` continues the run.
    fn takes(&self, to: SocketAddr, at: usize, len: usize) -> bool {
        let even = self.end - self.start == self.count * self.size;
        self.to == to
            && self.end == at
            && even
            && len <= self.size
            && Batch::fits(at + len - self.start, self.count)
    }

    fn send(self, inner: &Inner, ctx: &mut Ctx, buf: &[u8]) {
        let bytes = &buf[self.start..self.end];
        if self.count >= LEAST_RUN {
            // What is gathered came before.
            ctx.out.flush(&inner.udp);
            return inner.udp.send_many(self.to, bytes, self.size);
        }
        for datagram in bytes.chunks(self.size) {
            ctx.out.push(&inner.udp, self.to, datagram.len(), |out| {
                out.copy_from_slice(datagram);
                Some(datagram.len())
            });
        }
    }
}

impl Inner {
    /// All the datagrams of one read from `from`, `stride` bytes each but the last.
    pub fn datagrams(
        &self,
        ctx: &mut Ctx,
        buf: &mut [u8],
        stride: usize,
        from: Origin,
        now: Instant,
    ) {
        if self.underlay.is_inside(&from.addr.ip()) {
            // Through a tunnel of this machine, whoever it is from.
            return;
        }
        let mut run: Option<Run> = None;
        let mut at = 0;
        while at < buf.len() {
            let end = (at + stride).min(buf.len());
            let datagram = &mut buf[at..end];
            let passed_on = match wire::parse(datagram) {
                Ok(Datagram::Envelope { receiver, counter }) => {
                    self.envelope(ctx, datagram, (receiver, counter), from, now)
                }
                _ if stun::is_stun(datagram) => {
                    self.on_stun(datagram, from);
                    None
                }
                _ => {
                    self.datagram(ctx, datagram, By::Udp(from), now);
                    None
                }
            };
            if let Some(to) = passed_on {
                match &mut run {
                    Some(run) if run.takes(to, at, end - at) => {
                        (run.end, run.count) = (end, run.count + 1)
                    }
                    _ => {
                        if let Some(run) = run.replace(Run {
                            to,
                            start: at,
                            end,
                            size: end - at,
                            count: 1,
                        }) {
                            run.send(self, ctx, buf);
                        }
                    }
                }
            }
            at = end;
        }
        if let Some(run) = run {
            run.send(self, ctx, buf);
        }
    }

    /// Opens an envelope. If it is for another member it is made ready for it where it stands, and
    /// where it goes is returned.
    fn envelope(
        &self,
        ctx: &mut Ctx,
        datagram: &mut [u8],
        (receiver, counter): (u32, u64),
        from: Origin,
        now: Instant,
    ) -> Option<SocketAddr> {
        let sessions = self.sessions.load();
        let (session, peer) = sessions.get(&receiver)?;
        let plain = session.open_envelope(datagram, counter).ok()?;
        self.verified(session, peer, By::Udp(from), (0, true), now);
        match Frame::parse(plain)? {
            Frame::ForwardFrom(_) => {
                // Who sent it shows by the session that opens it.
                self.datagram(
                    ctx,
                    &mut plain[FRAME_HEADER_LEN..],
                    By::Relay(peer.member),
                    now,
                );
                None
            }
            Frame::ForwardTo(to) => {
                let next = self.peers.load().by_short(&to).cloned()?;
                let (len, frame) = (plain.len(), Frame::ForwardFrom(peer.short));
                let inside = len - FRAME_HEADER_LEN;
                if !self.relaying.admits(peer.short, to, inside, now) {
                    return None;
                }
                // Never a second relay: what we pass on leaves directly or by stream.
                let there = match &**next.via.load() {
                    Via::Direct(there) => *there,
                    Via::Stream(_) => {
                        self.send_frame(
                            &mut ctx.out,
                            &next,
                            frame,
                            &plain[FRAME_HEADER_LEN..],
                            now,
                        );
                        return None;
                    }
                    Via::Nowhere | Via::Relayed(_) | Via::Ring => return None,
                };
                frame.write_header(plain);
                let onward = next.sending.load();
                let sealed = onward.as_ref()?.seal_envelope(datagram, len)?;
                debug_assert_eq!(sealed, HEADER_LEN + len + TAG_LEN);
                next.note_sent(now, inside);
                Some(there)
            }
            _ => None,
        }
    }
}
