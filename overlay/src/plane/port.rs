//! Guest ports: a guest's Ethernet interface ends here. What the daemon answers (ARP, neighbour
//! discovery, DHCP) goes up as events; IP goes to the overlay, its source checked, its TSO packets
//! cut only where they must be. The other way, packets of one flow are joined again (GRO) before
//! the guest sees them.

use super::{
    Error, Inner, PlaneEvent,
    core::lock,
    cut::{Into, NEEDS_CHECKSUM, cut},
    deliver::Ctx,
    guest_proof::Listening,
    holding::Holding,
    join::FRONT,
    multicast::group_mac,
    packet::{self, ETHERNET_LEN, Guest},
    packet_socket::PacketSocket,
    port_care::Care,
    priority,
    segments::{HEAD, Segments},
    wake::Stop,
};
use crate::{
    id::{Epoch, VmId},
    link::{frame::wire_epoch, wire::TAG_LEN},
};
use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// The gateway's link-local address on every guest port.
pub(super) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Segments that one of a guest's TSO packets is cut into at most.
const MAX_SEGMENTS: usize = 128;
/// For so long after a guest came, packets that its former host passes on are let in.
const NEW_FOR: Duration = Duration::from_secs(60);

/// How far a guest's departure has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It stays: what was held for it is given to it.
    Not,
    /// Its memory is being copied.
    Soon,
    /// It was stopped for the hand-over: what comes for it is held until
    /// [`super::Plane::set_forward`] says where it went.
    StandsStill,
}

/// A guest's interface and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPort {
    /// Whose it is.
    pub vm: VmId,
    /// The TAP's name on this host.
    pub ifname: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The MAC address that the overlay shows to the guest.
    pub gateway_mac: [u8; 6],
    /// The gateway's IPv4 address: what the guest sends there (DNS) is the daemon's to answer.
    pub gateway: Ipv4Addr,
    /// The guest's IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
    /// The epoch under which this host runs the guest.
    pub epoch: Epoch,
}

impl GuestPort {
    fn owns(&self, addr: &IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) => *v4 == self.v4,
            IpAddr::V6(v6) => self.v6.contains(v6),
        }
    }
}

pub(crate) struct Port {
    pub config: GuestPort,
    pub socket: PacketSocket,
    pub care: Mutex<Care>,
    /// What is looked out for while the guest is asked whether it is there.
    pub listening: Listening,
    frozen: AtomicBool,
    pub holding: Holding,
    since: Instant,
    pub stop: Stop,
}

impl Port {
    pub fn is_new(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < NEW_FOR
    }

    fn open(&self) -> bool {
        !self.frozen.load(Ordering::Relaxed)
    }

    /// Whether the guest runs here and stays, as far as its owner has said.
    pub fn is_open(&self) -> bool {
        self.open() && !self.holding.active()
    }

    /// Gives the guest a frame; what the kernel says.
    pub fn ask(&self, frame: &[u8]) -> io::Result<()> {
        let mut out = vec![0; VIRTIO_NET_HDR_LEN];
        out.extend_from_slice(frame);
        self.socket.send(&out).map(drop)
    }

    /// Whether a packet is held for the guest, which is being moved, instead of given to it.
    pub fn keeps(&self, packet: &[u8]) -> bool {
        self.open() && self.holding.active() && self.holding.keeps(Instant::now(), packet)
    }

    /// Gives the guest an IP packet, which may be a joined one, behind [`FRONT`] bytes of room.
    pub fn deliver(&self, mut header: VirtioNetHdr, buffer: &mut [u8]) {
        if !self.open() {
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
            tracing::trace!(%error, "frame not taken by the guest");
        }
    }

    fn send_frame(&self, frame: &[u8]) {
        if self.open() {
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

    fn insert(&mut self, port: Arc<Port>) -> Option<Arc<Port>> {
        let old = self.remove(port.config.vm);
        let v6 = port.config.v6.iter().map(|a| IpAddr::V6(*a));
        for addr in v6.chain([IpAddr::V4(port.config.v4)]) {
            self.by_addr.insert(addr, port.clone());
        }
        self.by_vm.insert(port.config.vm, port);
        old
    }

    fn remove(&mut self, vm: VmId) -> Option<Arc<Port>> {
        let old = self.by_vm.remove(&vm)?;
        self.by_addr.retain(|_, port| !Arc::ptr_eq(port, &old));
        Some(old)
    }
}

/// The host's own stack must not answer the guest: it would reply to ARP for any address of the
/// host (ip-sysctl, arp_ignore).
pub(super) fn mute_host_stack(ifname: &str) {
    for (file, value) in [
        (format!("/proc/sys/net/ipv4/conf/{ifname}/arp_ignore"), "8"),
        (
            format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6"),
            "1",
        ),
    ] {
        if let Err(error) = fs::write(&file, value) {
            tracing::debug!(%file, %error, "not set");
        }
    }
}

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
            listening: Listening::default(),
            frozen: AtomicBool::new(false),
            holding: Holding::default(),
            since: Instant::now(),
            stop,
        });
        let (inner, own, arrived) = (self.clone(), port.clone(), port.clone());
        thread::Builder::new()
            .name("p2pvm-guest".into())
            .spawn(move || run(&inner, &own))
            .map_err(failed)?;
        self.change_ports(|ports| ports.insert(port.clone()));
        self.forwards.rcu(|forwards| {
            let mut forwards = HashMap::clone(forwards);
            forwards.retain(|addr, _| !config.owns(addr));
            forwards
        });
        self.give_early(&arrived);
        // It learns who holds the interface while that is there.
        self.ask_host(None);
        Ok(())
    }

    /// Gives a guest that has just come what its former host passed on before it was here.
    fn give_early(&self, port: &Arc<Port>) {
        let v6 = port.config.v6.iter().map(|a| IpAddr::V6(*a));
        let mut ctx = Ctx::default();
        for addr in v6.chain([IpAddr::V4(port.config.v4)]) {
            for packet in lock(&self.early).take(Instant::now(), &addr) {
                ctx.give_guest(port, &packet);
            }
        }
        ctx.flush(self);
    }

    /// Whether the guest is about to leave, stands still, or stays after all.
    pub fn hold_port(&self, vm: VmId, leaving: Leaving) {
        let Some(port) = self.ports.load().by_vm.get(&vm).cloned() else {
            return;
        };
        match leaving {
            Leaving::Soon => port.holding.remember(),
            Leaving::StandsStill => port.holding.hold(Instant::now()),
            Leaving::Not => {
                let mut ctx = Ctx::default();
                for packet in port.holding.release(false) {
                    ctx.give_guest(&port, &packet);
                }
                ctx.flush(self);
            }
        }
    }

    fn change_ports(&self, change: impl Fn(&mut Ports) -> Option<Arc<Port>>) {
        let mut gone = None;
        self.ports.rcu(|ports| {
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
        if let Some(port) = self.ports.load().by_vm.get(&vm) {
            port.frozen.store(frozen, Ordering::Relaxed);
        }
    }

    pub fn send_to_guest(&self, vm: VmId, frame: &[u8]) {
        if let Some(port) = self.ports.load().by_vm.get(&vm) {
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
    let mut ctx = Ctx::default();
    while !port.stop.raised() && !inner.stop.raised() {
        match port.socket.receive(&mut raw) {
            Ok(len) if port.open() => {
                if let Some(count) = take(inner, port, &mut raw[..len], &mut buf, &mut sizes) {
                    let epoch = wire_epoch(port.config.epoch);
                    inner.carry(
                        &mut ctx,
                        epoch,
                        Segments {
                            buf: &mut buf,
                            stride,
                            sizes: &sizes[..count],
                        },
                        Instant::now(),
                    );
                    ctx.flush(inner);
                }
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                ctx.rest(inner);
                if !port.stop.wait_readable(port.socket.fd()) {
                    break;
                }
            }
            // The interface went down or away; the owner detaches the port when the guest is gone.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Sorts one frame behind its virtio-net header; an IP packet for the overlay is cut into `buf`,
/// and how many pieces it has.
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
    port.listening.note(port, frame);
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
    let into = Into {
        buf,
        head: HEAD,
        stride,
        room: usize::from(inner.mtu),
    };
    cut(packet, &header, into, sizes)
}
