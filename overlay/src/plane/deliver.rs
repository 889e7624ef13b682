//! A packet thread's scratch: batches for the socket, the TUN and a guest, flushed when a read is done.

use super::{Inner, port::Port, traffic::Tally, udp::Batch};
use std::sync::Arc;
use tun_rs::{GROTable, VIRTIO_NET_HDR_LEN};

/// Packets gathered before they are written; a GRO read has at most 64.
const MAX_GATHERED: usize = 128;

/// Packets for one sink, each behind room for its headers, in buffers that are used again.
pub(crate) struct Gathered {
    buffers: Vec<Vec<u8>>,
    used: usize,
}

impl Default for Gathered {
    fn default() -> Self {
        Self { buffers: Vec::with_capacity(MAX_GATHERED), used: 0 }
    }
}

impl Gathered {
    /// Adds a packet behind `head` bytes of 0xff; true when full.
    pub fn push(&mut self, head: usize, packet: &[u8]) -> bool {
        if self.buffers.len() == self.used {
            // Room for what GRO makes of many, so that coalescing need not reallocate.
            self.buffers.push(Vec::with_capacity(head + 65_536));
        }
        let buffer = &mut self.buffers[self.used];
        buffer.clear();
        buffer.resize(head, 0xff);
        buffer.extend_from_slice(packet);
        self.used += 1;
        self.used >= MAX_GATHERED
    }

    pub fn as_mut(&mut self) -> &mut [Vec<u8>] {
        &mut self.buffers[..self.used]
    }

    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub fn clear(&mut self) {
        self.used = 0;
    }
}

/// One thread's scratch.
#[derive(Default)]
pub(crate) struct Ctx {
    pub out: Batch,
    to_tun: Gathered,
    to_guest: Gathered,
    guest: Option<Arc<Port>>,
    gro: GROTable,
    pub tally: Tally,
}

impl Ctx {
    /// An IP packet for the host.
    pub fn give_host(&mut self, inner: &Inner, packet: &[u8]) {
        if self.to_tun.push(VIRTIO_NET_HDR_LEN, packet) {
            self.flush_tun(inner);
        }
    }

    /// An IP packet for a guest.
    pub fn give_guest(&mut self, port: &Arc<Port>, packet: &[u8]) {
        if self.guest.as_ref().is_some_and(|p| !Arc::ptr_eq(p, port)) {
            self.flush_guest();
        }
        self.guest.get_or_insert_with(|| port.clone());
        if self.to_guest.push(Port::HEAD_LEN, packet) {
            self.flush_guest();
        }
    }

    fn flush_tun(&mut self, inner: &Inner) {
        if !self.to_tun.is_empty() {
            if let Err(error) = inner.tun.send_multiple(&mut self.gro, self.to_tun.as_mut(), VIRTIO_NET_HDR_LEN) {
                tracing::trace!(%error, "packet not taken by the TUN");
            }
            self.to_tun.clear();
        }
    }

    fn flush_guest(&mut self) {
        if let Some(port) = self.guest.take() {
            port.deliver(&mut self.gro, self.to_guest.as_mut());
            self.to_guest.clear();
        }
    }

    /// Writes everything gathered.
    pub fn flush(&mut self, inner: &Inner) {
        self.flush_tun(inner);
        self.flush_guest();
        self.out.flush(&inner.udp);
        self.tally.settle(&inner.traffic);
    }

    /// Before the thread waits: what it counted is told, as it may wait long.
    pub fn rest(&mut self, inner: &Inner) {
        self.tally.settle_now(&inner.traffic);
    }
}
