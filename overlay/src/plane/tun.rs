//! The TUN thread: reads what the host sends into the overlay, a TSO packet at a time.

use super::{
    Inner,
    deliver::Ctx,
    segments::{HEAD, Segments},
};
use crate::link::wire::TAG_LEN;
use std::{io, os::fd::AsFd, time::Instant};
use tun_rs::VIRTIO_NET_HDR_LEN;

/// Segments that one TSO packet can have at the smallest usual MSS.
const MAX_SEGMENTS: usize = 128;

pub(crate) fn run(inner: &Inner) {
    let stride = HEAD + usize::from(inner.mtu) + TAG_LEN;
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + 65_535];
    let mut buf = vec![0; stride * MAX_SEGMENTS];
    let mut sizes = vec![0; MAX_SEGMENTS];
    let mut ctx = Ctx::default();
    while !inner.stop.raised() {
        let read = {
            // The last bytes of each piece stay free for the tag.
            let mut pieces: Vec<&mut [u8]> = buf.chunks_mut(stride).map(|c| &mut c[..stride - TAG_LEN]).collect();
            inner.tun.recv_multiple(&mut raw, &mut pieces, &mut sizes, HEAD)
        };
        match read {
            Ok(count) => {
                inner.carry(&mut ctx, 0, Segments { buf: &mut buf, stride, sizes: &sizes[..count] }, Instant::now());
                ctx.flush(inner);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
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
