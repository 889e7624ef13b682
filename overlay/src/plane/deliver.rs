//! A packet thread's scratch: batches for the socket, the TUN and a guest, flushed when a read is
//! done. Nothing in it is allocated for a packet.

use super::{
    Inner,
    join::{FRONT, Join},
    port::Port,
    traffic::Tally,
    udp::Batch,
};
use std::sync::Arc;
use tun_rs::VIRTIO_NET_HDR_LEN;

/// One thread's scratch.
#[derive(Default)]
pub(crate) struct Ctx {
    pub out: Batch,
    to_tun: Join,
    to_guest: Join,
    guest: Option<Arc<Port>>,
    pub tally: Tally,
}

impl Ctx {
    /// An IP packet for the host.
    pub fn give_host(&mut self, inner: &Inner, packet: &[u8]) {
        if !self.to_tun.push(packet, inner.joins_datagrams) {
            self.flush_tun(inner);
            self.to_tun.push(packet, inner.joins_datagrams);
        }
    }

    /// An IP packet for a guest.
    pub fn give_guest(&mut self, port: &Arc<Port>, packet: &[u8]) {
        if port.keeps(packet) {
            return;
        }
        if self.guest.as_ref().is_none_or(|p| !Arc::ptr_eq(p, port)) {
            self.flush_guest();
            self.guest = Some(port.clone());
        }
        if !self.to_guest.push(packet, false) {
            self.write_guest();
            self.to_guest.push(packet, false);
        }
    }

    fn flush_tun(&mut self, inner: &Inner) {
        let Some((header, buffer)) = self.to_tun.take() else {
            return;
        };
        // The virtio-net header stands right before the packet.
        let bytes = &mut buffer[FRONT - VIRTIO_NET_HDR_LEN..];
        let written = header.encode(bytes).and_then(|()| inner.tun.send(bytes));
        if let Err(error) = written {
            tracing::trace!(%error, "packet not taken by the TUN");
        }
    }

    fn write_guest(&mut self) {
        if let (Some(port), Some((header, buffer))) = (&self.guest, self.to_guest.take()) {
            port.deliver(header, buffer);
        }
    }

    fn flush_guest(&mut self) {
        self.write_guest();
        self.guest = None;
    }

    /// Writes everything gathered.
    pub fn flush(&mut self, inner: &Inner) {
        self.flush_tun(inner);
        if self.guest.is_some() {
            self.flush_guest();
        }
        self.out.flush(&inner.udp);
        self.tally.settle(&inner.traffic);
    }

    /// Before the thread waits: what it counted is told, as it may wait long.
    pub fn rest(&mut self, inner: &Inner) {
        self.tally.settle_now(&inner.traffic);
    }
}
