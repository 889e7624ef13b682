//! A guest port's state: the interface of one guest, the addresses behind it, and what is held for
//! the guest.

use super::{
    care::Care,
    config::GuestPort,
    holding::Holding,
    limit::{Bucket, GuestLimit},
    listening::FrameListener,
    multicast::group_mac,
};
use crate::{
    id::VmId,
    plane::{
        io::{packet_socket::PacketSocket, wake::Stop},
        shape::{cut::NEEDS_CHECKSUM, join::FRONT, packet::ETHERNET_LEN},
    },
};
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// How long after a guest came packets that its former host passes on are let in.
const NEW_FOR: Duration = Duration::from_secs(60);

pub(crate) struct Port {
    pub config: GuestPort,
    pub socket: PacketSocket,
    pub care: Mutex<Care>,
    pub listening: FrameListener,
    pub frozen: AtomicBool,
    pub holding: Holding,
    pub since: Instant,
    pub stop: Stop,
    /// What the guest sends.
    pub out: Bucket,
    /// What it is sent.
    pub into: Bucket,
}

impl Port {
    /// Bounds what the guest sends, and what it is sent.
    pub fn limit(&self, bits_per_second: Option<u64>) {
        self.out.set(bits_per_second);
        self.into.set(bits_per_second);
    }

    /// Its limit, and what was dropped by it.
    pub fn limited(&self) -> GuestLimit {
        GuestLimit {
            bits_per_second: self.out.rate(),
            dropped_bytes: self.out.dropped() + self.into.dropped(),
        }
    }

    pub fn is_new(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < NEW_FOR
    }

    /// Whether frames pass: the guest is not fenced.
    pub fn passes(&self) -> bool {
        !self.frozen.load(Ordering::Relaxed)
    }

    /// Whether the guest runs here and stays, as far as the plane's owner has said.
    pub fn is_open(&self) -> bool {
        self.passes() && !self.holding.active()
    }

    /// Sends the guest a frame, also while it is fenced.
    pub fn ask(&self, frame: &[u8]) -> io::Result<()> {
        let mut out = vec![0; VIRTIO_NET_HDR_LEN];
        out.extend_from_slice(frame);
        self.socket.send(&out).map(drop)
    }

    /// Whether a packet is held instead of given to the guest, which is being moved.
    pub fn keeps(&self, packet: &[u8]) -> bool {
        self.passes() && self.holding.active() && self.holding.keeps(Instant::now(), packet)
    }

    /// Gives the guest an IP packet, which may be a joined one, behind [`FRONT`] bytes of room.
    pub fn deliver(&self, mut header: VirtioNetHdr, buffer: &mut [u8]) {
        if !self.passes() {
            return;
        }
        if header.flags & NEEDS_CHECKSUM != 0 {
            header.csum_start += ETHERNET_LEN as u16;
            header.hdr_len += ETHERNET_LEN as u16;
        }
        let (front, packet) = buffer.split_at_mut(FRONT);
        let kind: [u8; 2] = if packet.first().is_some_and(|b| b >> 4 == 6) {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        let ethernet = &mut front[VIRTIO_NET_HDR_LEN..];
        ethernet[..6].copy_from_slice(&group_mac(packet).unwrap_or(self.config.mac));
        ethernet[6..12].copy_from_slice(&self.config.gateway_mac);
        ethernet[12..].copy_from_slice(&kind);
        if let Err(error) = header.encode(front).and_then(|()| self.socket.send(buffer)) {
            tracing::trace!(error = %p2pvm_host::chain(&error), "the guest did not take a frame");
        }
    }

    pub fn send_frame(&self, frame: &[u8]) {
        if self.passes() {
            let _ = self.ask(frame);
        }
    }
}

/// The ports, as a snapshot.
#[derive(Clone, Default)]
pub(crate) struct Ports {
    by_vm: HashMap<VmId, Arc<Port>>,
    by_addr: HashMap<IpAddr, Arc<Port>>,
}

impl Ports {
    pub fn by_addr(&self, addr: &IpAddr) -> Option<&Arc<Port>> {
        self.by_addr.get(addr)
    }

    pub fn get(&self, vm: VmId) -> Option<&Arc<Port>> {
        self.by_vm.get(&vm)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.by_vm.values()
    }

    pub fn insert(&mut self, port: Arc<Port>) -> Option<Arc<Port>> {
        let old = self.remove(port.config.vm);
        for addr in port.config.addresses() {
            self.by_addr.insert(addr, port.clone());
        }
        self.by_vm.insert(port.config.vm, port);
        old
    }

    pub fn remove(&mut self, vm: VmId) -> Option<Arc<Port>> {
        let old = self.by_vm.remove(&vm)?;
        self.by_addr.retain(|_, port| !Arc::ptr_eq(port, &old));
        Some(old)
    }
}
