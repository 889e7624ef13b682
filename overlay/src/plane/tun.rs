//! The TUN thread: reads what the host sends into the overlay, a TSO packet at a time, and goes on
//! reading as long as there is more, so that single packets leave in batches too.

use super::{
    Inner,
    cut::{Into, cut},
    deliver::Ctx,
    priority,
    segments::{HEAD, Segments},
};
use crate::link::wire::TAG_LEN;
use std::{io, os::fd::AsFd, time::Instant};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// Segments that one TSO packet can have at the smallest usual MSS.
const MAX_SEGMENTS: usize = 128;
/// Reads before what was gathered leaves at the latest: the first packet waits as long as these
/// take, some 30 us.
const MAX_READS: usize = 64;

pub(crate) fn run(inner: &Inner) {
    priority::raise();
    let room = usize::from(inner.mtu);
    let stride = HEAD + room + TAG_LEN;
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + 65_535];
    let mut buf = vec![0; stride * MAX_SEGMENTS];
    let mut sizes = vec![0; MAX_SEGMENTS];
    let mut ctx = Ctx::default();
    let mut reads = 0;
    while !inner.stop.raised() {
        match inner.tun.recv(&mut raw) {
            Ok(len) => {
                let Ok(header) = VirtioNetHdr::decode(&raw[..len]) else {
                    continue;
                };
                let into = Into {
                    buf: &mut buf,
                    head: HEAD,
                    stride,
                    room,
                };
                let packet = &raw[VIRTIO_NET_HDR_LEN..len];
                if let Some(count) = cut(packet, &header, into, &mut sizes) {
                    let now = Instant::now();
                    if !inner.proofs.takes(packet, now) && !inner.comes_round(packet, count, now) {
                        inner.carry(
                            &mut ctx,
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
                    ctx.flush(inner);
                    reads = 0;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if reads > 0 {
                    ctx.flush(inner);
                    reads = 0;
                }
                ctx.rest(inner);
                if !inner.stop.wait_readable(inner.tun.as_fd()) {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBADFD | libc::EIO)) => {
                // Somebody took the device down or away: nothing to read until it comes back.
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            Err(error) => tracing::debug!(%error, "unreadable packet from the TUN"),
        }
    }
}
