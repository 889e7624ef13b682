//! The datagrams of one UDP read, and the envelopes among them ([`crate::link::wire`]): datagrams
//! of other pairs that this node passes on. Their content is sealed for their end; only the
//! envelope's header is opened, rewritten for the next hop and sealed again, all in the buffer of
//! the read. Consecutive ones to one member, as one GSO send brought them, leave with one GSO send:
//! a relay touches some 60 bytes of a datagram and copies none of it.
//!
//! Datagrams that came singly are gathered like all others that leave, which costs a copy and saves
//! a system call each.

use super::{arrival::Arrival, peer::SendPath};
use crate::{
    link::{
        frame::{FRAME_HEADER_LEN, Frame},
        wire::{self, Datagram, HEADER_LEN, TAG_LEN},
    },
    plane::{
        core::Inner,
        io::{second_port::UdpSource, udp::Batch},
        scratch::Scratch,
    },
    stun,
};
use std::{net::SocketAddr, time::Instant};

/// How many datagrams make a run worth a send of its own.
const LEAST_RUN: usize = 4;

/// Consecutive datagrams in the buffer that go to one address, all of one size but the last.
struct Run {
    to: SocketAddr,
    start: usize,
    end: usize,
    size: usize,
    count: usize,
}

impl Run {
    /// Whether a datagram of `len` bytes at offset `at` continues the run.
    fn takes(&self, to: SocketAddr, at: usize, len: usize) -> bool {
        let even = self.end - self.start == self.count * self.size;
        self.to == to
            && self.end == at
            && even
            && len <= self.size
            && Batch::fits(at + len - self.start, self.count)
    }

    fn send(self, inner: &Inner, scratch: &mut Scratch, buf: &[u8]) {
        let bytes = &buf[self.start..self.end];
        if self.count >= LEAST_RUN {
            // The batch holds earlier datagrams.
            scratch.out.flush(&inner.udp);
            return inner.udp.send_many(self.to, bytes, self.size);
        }
        for datagram in bytes.chunks(self.size) {
            scratch
                .out
                .push(&inner.udp, self.to, datagram.len(), |out| {
                    out.copy_from_slice(datagram);
                    Some(datagram.len())
                });
        }
    }
}

impl Inner {
    /// Takes all the datagrams of one read from `from`, each of `stride` bytes but the last.
    pub fn datagrams(
        &self,
        scratch: &mut Scratch,
        buf: &mut [u8],
        stride: usize,
        from: UdpSource,
        now: Instant,
    ) {
        if self.underlay.is_inside(&from.addr.ip()) {
            // It came through a tunnel of this machine.
            return;
        }
        let mut run: Option<Run> = None;
        let mut at = 0;
        while at < buf.len() {
            let end = (at + stride).min(buf.len());
            let datagram = &mut buf[at..end];
            let passed_on = match wire::parse(datagram) {
                Ok(Datagram::Envelope { receiver, counter }) => {
                    self.envelope(scratch, datagram, (receiver, counter), from, now)
                }
                _ if stun::is_stun(datagram) => {
                    self.on_stun(datagram, from);
                    None
                }
                _ => {
                    self.datagram(scratch, datagram, Arrival::Udp(from), now);
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
                            run.send(self, scratch, buf);
                        }
                    }
                }
            }
            at = end;
        }
        if let Some(run) = run {
            run.send(self, scratch, buf);
        }
    }

    /// Opens an envelope. One for another member is rewritten and sealed in place, and its next
    /// address is returned.
    fn envelope(
        &self,
        scratch: &mut Scratch,
        datagram: &mut [u8],
        (receiver, counter): (u32, u64),
        from: UdpSource,
        now: Instant,
    ) -> Option<SocketAddr> {
        let sessions = self.tables.sessions.load();
        let (session, peer) = sessions.get(&receiver)?;
        let plain = session.open_envelope(datagram, counter).ok()?;
        self.verified(session, peer, Arrival::Udp(from), (0, true), now);
        match Frame::parse(plain)? {
            Frame::ForwardFrom(_) => {
                // The session that opens it names the sender.
                self.datagram(
                    scratch,
                    &mut plain[FRAME_HEADER_LEN..],
                    Arrival::Relay(peer.member),
                    now,
                );
                None
            }
            Frame::ForwardTo(to) => {
                let next = self.tables.peers.load().by_short(&to).cloned()?;
                let (len, frame) = (plain.len(), Frame::ForwardFrom(peer.short));
                let inside = len - FRAME_HEADER_LEN;
                if !self.relaying.admits(peer.short, to, inside, now) {
                    return None;
                }
                // Never a second relay: a relayed datagram leaves directly or by stream.
                let there = match &**next.via.load() {
                    SendPath::Direct(there) => *there,
                    SendPath::Stream(_) => {
                        self.send_frame(
                            &mut scratch.out,
                            &next,
                            frame,
                            &plain[FRAME_HEADER_LEN..],
                            now,
                        );
                        return None;
                    }
                    SendPath::Nowhere | SendPath::Relayed(_) | SendPath::Ring => return None,
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
