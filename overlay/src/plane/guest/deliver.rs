//! Gives packets to the host and to guests: what a thread's scratch has gathered is written when a
//! read is done.

use super::port::Port;
use crate::{
    link::frame::Frame,
    plane::{core::Inner, scratch::Scratch, shape::join::FRONT},
};
use std::{net::IpAddr, sync::Arc, time::Instant};
use tun_rs::VIRTIO_NET_HDR_LEN;

impl Scratch {
    /// Gives the host an IP packet.
    pub fn give_host(&mut self, inner: &Inner, packet: &[u8]) {
        if !self.to_tun.push(packet, inner.joins_datagrams) {
            self.flush_tun(inner);
            self.to_tun.push(packet, inner.joins_datagrams);
        }
    }

    /// Gives a guest an IP packet.
    pub fn give_guest(&mut self, port: &Arc<Port>, packet: &[u8]) {
        if port.keeps(packet) || !port.into.passes(packet.len(), || port.since.elapsed()) {
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
        let written = header.encode(bytes).and_then(|()| inner.tun()?.send(bytes));
        if let Err(error) = written {
            tracing::trace!(error = %p2pvm_host::chain(&error), "the TUN did not take a packet");
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

    /// Writes everything that was gathered.
    pub fn flush(&mut self, inner: &Inner) {
        self.flush_tun(inner);
        if self.guest.is_some() {
            self.flush_guest();
        }
        self.out.flush(&inner.udp);
        self.tally.settle(&inner.traffic);
    }

    /// Hands over what was counted before the thread waits, as it may wait long.
    pub fn rest(&mut self, inner: &Inner) {
        self.tally.settle_now(&inner.traffic);
    }
}

impl Inner {
    /// Carries a guest's packet to a multicast address. `from_epoch`: that of the guest.
    pub fn multicast_out(
        &self,
        scratch: &mut Scratch,
        from_epoch: u32,
        packet: &[u8],
        src: &IpAddr,
        dst: &IpAddr,
        now: Instant,
    ) {
        if !dst.is_multicast() || !self.multicast.may_send(packet, now) {
            return;
        }
        self.to_guests(scratch, packet, src, now);
        let members = self.multicast.members.load();
        for member in members.iter().flat_map(|members| members.iter()) {
            let peer = self.peer(*member);
            self.send_frame(
                &mut scratch.out,
                &peer,
                Frame::Ip {
                    from_epoch,
                    to_epoch: 0,
                    passed_on: false,
                },
                packet,
                now,
            );
        }
    }

    /// Takes a packet to a multicast address from another member's guest, its source checked.
    pub fn multicast_in(&self, scratch: &mut Scratch, packet: &[u8], src: &IpAddr, now: Instant) {
        if self.multicast.may_receive(packet, now) {
            self.to_guests(scratch, packet, src, now);
        }
    }

    fn to_guests(&self, scratch: &mut Scratch, packet: &[u8], src: &IpAddr, now: Instant) {
        for port in self.tables.ports.load().iter() {
            let guest = IpAddr::V4(port.config.v4);
            if !port.config.owns(src) && self.access.admits(packet, src, &guest, now) {
                scratch.give_guest(port, packet);
            }
        }
    }
}
