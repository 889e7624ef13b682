//! The TUN thread: reads what the host sends into the overlay, a TSO packet at a time, and goes on
//! reading as long as there is more, so that single packets leave in batches too.

use super::{
    core::Inner,
    io::priority,
    scratch::Scratch,
    send::{HEAD, Segments},
    shape::cut::{Target, cut},
};
use crate::link::wire::TAG_LEN;
use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// How many segments one TSO packet can have at the smallest usual MSS.
const MAX_SEGMENTS: usize = 128;
/// How many reads are gathered before they are sent. Reason: the first packet waits for all of
/// them, some 30 us.
const MAX_READS: usize = 64;
/// How long nothing is read from a TUN that is down or away.
const AWAY_PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(inner: &Inner) {
    let Ok(tun) = inner.tun() else { return };
    priority::raise();
    let room = usize::from(inner.mtu);
    let stride = HEAD + room + TAG_LEN;
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + 65_535];
    let mut buf = vec![0; stride * MAX_SEGMENTS];
    let mut sizes = vec![0; MAX_SEGMENTS];
    let mut scratch = Scratch::default();
    let mut reads = 0;
    while !inner.stop.raised() {
        match tun.recv(&mut raw) {
            Ok(len) => {
                let Ok(header) = VirtioNetHdr::decode(&raw[..len]) else {
                    continue;
                };
                let target = Target {
                    buf: &mut buf,
                    head: HEAD,
                    stride,
                    room,
                };
                let packet = &raw[VIRTIO_NET_HDR_LEN..len];
                if let Some(count) = cut(packet, &header, target, &mut sizes) {
                    let now = Instant::now();
                    if !inner.proofs.takes(packet, now) && !inner.comes_round(packet, count, now) {
                        inner.carry(
                            &mut scratch,
                            0,
                            Segments {
                                buf: &mut buf,
                                stride,
                                sizes: &sizes[..count],
                            },
                            now,
                        );
                    }
                }
                reads += 1;
                if reads == MAX_READS {
                    scratch.flush(inner);
                    reads = 0;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if reads > 0 {
                    scratch.flush(inner);
                    reads = 0;
                }
                scratch.rest(inner);
                if !inner.stop.wait_readable(tun.as_fd()) {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBADFD | libc::EIO)) => {
                // The device is down or away: there is nothing to read until it comes back.
                thread::sleep(AWAY_PAUSE);
            }
            Err(error) => tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "unreadable packet from the TUN"
            ),
        }
    }
}

impl Inner {
    /// Whether a packet from the TUN, the first of `packets` of one flow, is a datagram of a tunnel
    /// of this machine; then it is not carried.
    #[inline]
    fn comes_round(&self, packet: &[u8], packets: usize, now: Instant) -> bool {
        let Some(to) = self.underlay.view().loops(packet, self.second_port()) else {
            return false;
        };
        self.drop_loop(to, packets, now);
        true
    }

    #[cold]
    fn drop_loop(&self, to: SocketAddr, packets: usize, now: Instant) {
        if self.loops.note(to, packets, now) {
            let count = self.loops.seen().0;
            tracing::warn!(%to, count, "a route leads datagrams of a p2pvm tunnel into the tunnel \
                itself: they are dropped");
        }
    }
}
