//! Guest ports: a guest's Ethernet interface ends here. What the daemon answers (ARP, neighbour
//! discovery, DHCP) goes up as events; IP goes to the overlay, its source checked, its TSO packets
//! cut only where they must be. In the other direction, packets of one flow are joined again (GRO)
//! before the guest sees them.

use super::{
    care::{Care, mute_host_stack},
    config::{GATEWAY_V6, GuestPort, Leaving},
    holding::Holding,
    limit::{Bucket, GuestLimit},
    listening::FrameListener,
    port::{Port, Ports},
};
use crate::lock;
use crate::{
    id::VmId,
    link::{frame::wire_epoch, wire::TAG_LEN},
    plane::{
        core::Inner,
        error::Error,
        io::{packet_socket::PacketSocket, priority, wake::Stop},
        scratch::Scratch,
        send::{HEAD, Segments},
        shape::{
            cut::{NEEDS_CHECKSUM, Target, cut},
            packet::{self, ETHERNET_LEN, Guest},
        },
        types::PlaneEvent,
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
    thread,
    time::{Duration, Instant},
};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// How many segments one of a guest's TSO packets is cut into at most.
const MAX_SEGMENTS: usize = 128;
/// How long nothing is read from an interface that is down or away.
const AWAY_PAUSE: Duration = Duration::from_millis(100);
/// How many frames in a row may be unreadable before a pause.
/// Reason: an error that does not end must not take a processor.
const MAX_UNREADABLE: u32 = 10_000;

impl Inner {
    pub fn attach_port(self: &Arc<Self>, config: GuestPort) -> Result<(), Error> {
        let failed = |cause| Error::Port {
            ifname: config.ifname.clone(),
            cause,
        };
        if config.ifname.contains(['/', '\0']) {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        mute_host_stack(&config.ifname);
        let socket = PacketSocket::open(&config.ifname).map_err(failed)?;
        let stop = Stop::new().map_err(failed)?;
        let port = Arc::new(Port {
            config: config.clone(),
            socket,
            care: Mutex::new(Care::of(&config.ifname)),
            listening: FrameListener::default(),
            frozen: AtomicBool::new(false),
            holding: Holding::default(),
            since: Instant::now(),
            stop,
            out: Bucket::default(),
            into: Bucket::default(),
        });
        port.limit(config.bits_per_second);
        let (inner, own, arrived) = (self.clone(), port.clone(), port.clone());
        thread::Builder::new()
            .name("p2pvm-guest".into())
            .spawn(move || {
                run(&inner, &own);
                p2pvm_host::apart::let_go(&own.config.ifname);
            })
            .map_err(failed)?;
        self.change_ports(|ports| ports.insert(port.clone()));
        self.tables.forwards.rcu(|forwards| {
            let mut forwards = HashMap::clone(forwards);
            forwards.retain(|addr, _| !config.owns(addr));
            forwards
        });
        self.give_early(&arrived);
        // The interfaces' thread learns which process holds the interface while it is there.
        self.ask_host(None);
        Ok(())
    }

    /// Gives a guest that has just come what its former host passed on before it was here.
    fn give_early(&self, port: &Arc<Port>) {
        let mut scratch = Scratch::default();
        for addr in port.config.addresses() {
            for packet in lock(&self.waiting.early).take(Instant::now(), &addr) {
                scratch.give_guest(port, &packet);
            }
        }
        scratch.flush(self);
    }

    /// Notes whether the guest is about to leave, stands still, or stays after all.
    pub fn hold_port(&self, vm: VmId, leaving: Leaving) {
        let Some(port) = self.tables.ports.load().get(vm).cloned() else {
            return;
        };
        match leaving {
            Leaving::Soon => port.holding.remember(),
            Leaving::StandsStill => port.holding.hold(Instant::now()),
            Leaving::Not => {
                let mut scratch = Scratch::default();
                for packet in port.holding.release(false) {
                    scratch.give_guest(&port, &packet);
                }
                scratch.flush(self);
            }
        }
    }

    fn change_ports(&self, change: impl Fn(&mut Ports) -> Option<Arc<Port>>) {
        let mut gone = None;
        self.tables.ports.rcu(|ports| {
            let mut ports = Ports::clone(ports);
            gone = change(&mut ports);
            ports
        });
        if let Some(port) = gone {
            port.stop.raise();
        }
    }

    pub fn detach_port(&self, vm: VmId) {
        self.change_ports(|ports| ports.remove(vm));
    }

    pub fn freeze_port(&self, vm: VmId, frozen: bool) {
        if let Some(port) = self.tables.ports.load().get(vm) {
            port.frozen.store(frozen, Ordering::Relaxed);
        }
    }

    pub fn limit_port(&self, vm: VmId, bits_per_second: Option<u64>) {
        if let Some(port) = self.tables.ports.load().get(vm) {
            port.limit(bits_per_second);
        }
    }

    pub fn limit_of(&self, vm: VmId) -> Option<GuestLimit> {
        Some(self.tables.ports.load().get(vm)?.limited())
    }

    pub fn send_to_guest(&self, vm: VmId, frame: &[u8]) {
        if let Some(port) = self.tables.ports.load().get(vm) {
            port.send_frame(frame);
        }
    }
}

/// One guest's thread.
fn run(inner: &Inner, port: &Port) {
    priority::raise();
    let stride = HEAD + usize::from(inner.mtu) + TAG_LEN;
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + ETHERNET_LEN + 65_535];
    let mut buf = vec![0; stride * MAX_SEGMENTS];
    let mut sizes = vec![0; MAX_SEGMENTS];
    let mut scratch = Scratch::default();
    let mut unreadable = 0u32;
    while !port.stop.raised() && !inner.stop.raised() {
        let received = port.socket.receive(&mut raw);
        if received.is_ok() {
            unreadable = 0;
        }
        match received {
            Ok(len) if port.passes() => {
                if let Some(count) = take(inner, port, &mut raw[..len], &mut buf, &mut sizes) {
                    let epoch = wire_epoch(port.config.epoch);
                    let segments = Segments {
                        buf: &mut buf,
                        stride,
                        sizes: &sizes[..count],
                    };
                    if port.out.passes(segments.total(), || port.since.elapsed()) {
                        inner.carry(&mut scratch, epoch, segments, Instant::now());
                        scratch.flush(inner);
                    }
                }
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                scratch.rest(inner);
                if !port.stop.wait_readable(port.socket.fd()) {
                    break;
                }
            }
            // The kernel has no words for this frame's offloads, and has dropped it: a guest sends
            // as many of them as it likes.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && unreadable < MAX_UNREADABLE => {
                unreadable += 1;
            }
            // The interface is down or away; the owner detaches the port when the guest is gone.
            Err(_) => {
                thread::sleep(AWAY_PAUSE);
                unreadable = 0;
            }
        }
    }
}

/// Sorts one frame behind its virtio-net header. An IP packet for the overlay is cut into `buf`,
/// and the number of its pieces returned.
fn take(
    inner: &Inner,
    port: &Port,
    raw: &mut [u8],
    buf: &mut [u8],
    sizes: &mut [usize],
) -> Option<usize> {
    let stride = HEAD + usize::from(inner.mtu) + TAG_LEN;
    let mut header = VirtioNetHdr::decode(raw.get(..VIRTIO_NET_HDR_LEN)?).ok()?;
    let frame = &mut raw[VIRTIO_NET_HDR_LEN..];
    port.listening.note(&port.config, frame);
    let sort = packet::sort_guest_frame(frame);
    if sort == Guest::Drop {
        return None;
    }
    if header.flags & NEEDS_CHECKSUM != 0 && sort == Guest::ForDaemon {
        packet::complete_checksum(
            frame,
            usize::from(header.csum_start),
            usize::from(header.csum_offset),
        )
        .then_some(())?;
    }
    if sort == Guest::ForDaemon {
        inner.tell(PlaneEvent::GuestFrame {
            vm: port.config.vm,
            frame: frame.to_vec(),
        });
        return None;
    }
    let packet = &mut frame[ETHERNET_LEN..];
    // A guest speaks for its own addresses only.
    let (src, dst) = packet::addresses(packet)?;
    if dst == IpAddr::V4(port.config.gateway) || dst == IpAddr::V6(GATEWAY_V6) {
        inner.tell(PlaneEvent::GuestFrame {
            vm: port.config.vm,
            frame: frame.to_vec(),
        });
        return None;
    }
    if !port.config.owns(&src) {
        return None;
    }
    if header.flags & NEEDS_CHECKSUM != 0 {
        header.csum_start = header.csum_start.checked_sub(ETHERNET_LEN as u16)?;
    }
    let target = Target {
        buf,
        head: HEAD,
        stride,
        room: usize::from(inner.mtu),
    };
    cut(packet, &header, target, sizes)
}
