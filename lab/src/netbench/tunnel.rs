//! The upper bound: a forwarder that does what the packet plane does on its data path, and nothing
//! else. It reads TSO packets from a TUN, cuts them into datagrams in one buffer, sends them with
//! one GSO call; receives with GRO and writes coalesced packets to the TUN. No encryption, no
//! handshake, no routes: the [`HEAD`] and [`TAIL`] bytes in which a link keeps its headers and its
//! tag stay empty. Also a relay that only passes datagrams on.

use super::load::is_transient;
use anyhow::Context;
use clap::Args;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
};
use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

/// How many bytes a link puts before a packet (its header and the frame's) and after it (its tag).
const HEAD: usize = 28;
const TAIL: usize = 16;
/// The MTU of the packet plane.
const MTU: u16 = 1340;
const STRIDE: usize = HEAD + MTU as usize + TAIL;
/// Segments of one TSO packet.
const SEGMENTS: usize = 64;
/// How many bytes one GSO send carries.
/// Reason: with headers it stays under 64 KiB.
const MAX_SEND: usize = 65_000;
/// How many bytes each socket buffer has. Reason: as many as the packet plane's.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;

/// Arguments of `testbed plain-tunnel`.
#[derive(Args, Debug)]
pub struct TunnelOptions {
    /// Where to receive
    #[arg(long)]
    listen: SocketAddr,
    /// Where to send; twice for a relay, which passes on from each to the other
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Address on the TUN; none for a relay
    #[arg(long)]
    address: Option<IpAddr>,
}

struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn bind(at: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(at).with_context(|| format!("binding {at}"))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Cut to the system's limits, like the packet plane's.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER_BYTES);
        socket.set_nonblocking(false)?;
        Ok(Self { socket, state })
    }

    fn send(&self, to: SocketAddr, bytes: &[u8], size: usize) {
        let segment_size = (bytes.len() > size).then_some(size);
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size,
            src_ip: None,
        };
        // Datagrams that cannot be sent are lost.
        let _ = self
            .state
            .try_send(UdpSockRef::from(&self.socket), &transmit);
    }

    fn receive(&self, buf: &mut [u8]) -> std::io::Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        self.state.recv(
            UdpSockRef::from(&self.socket),
            &mut [IoSliceMut::new(buf)],
            &mut meta,
        )?;
        Ok(meta[0])
    }
}

/// Runs until killed.
pub fn run(options: &TunnelOptions) -> anyhow::Result<()> {
    let socket = Arc::new(Socket::bind(options.listen)?);
    let Some(address) = options.address else {
        return relay(&socket, &options.to);
    };
    let to = options.to[0];
    let tun = DeviceBuilder::new()
        .name("plain0")
        .mtu(MTU)
        .offload(true)
        .build_sync()
        .context("making the TUN")?;
    match address {
        IpAddr::V4(v4) => tun.add_address_v4(v4, 24)?,
        IpAddr::V6(v6) => tun.add_address_v6(v6, 64)?,
    }
    let tun = Arc::new(tun);
    let (out_tun, out_socket) = (tun.clone(), socket.clone());
    thread::spawn(move || outward(&out_tun, &out_socket, to));
    inward(&tun, &socket)
}

fn outward(tun: &SyncDevice, socket: &Socket, to: SocketAddr) {
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + 65_535];
    let (mut buf, mut sizes) = (vec![0; STRIDE * SEGMENTS], vec![0; SEGMENTS]);
    loop {
        let mut pieces: Vec<&mut [u8]> = buf.chunks_mut(STRIDE).collect();
        let Ok(count) = tun.recv_multiple(&mut raw, &mut pieces, &mut sizes, HEAD) else {
            continue;
        };
        let (mut start, mut end, mut first) = (0, 0, 0);
        for (i, size) in sizes[..count].iter().enumerate() {
            let (at, len) = (i * STRIDE, HEAD + size + TAIL);
            if end > start && (len > first || end - start + len > MAX_SEND) {
                socket.send(to, &buf[start..end], first);
                end = start;
            }
            if end == start {
                (start, end, first) = (at, at, len);
            }
            buf.copy_within(at..at + len, end);
            end += len;
            if len < first {
                socket.send(to, &buf[start..end], first);
                start = end;
            }
        }
        if end > start {
            socket.send(to, &buf[start..end], first);
        }
    }
}

fn inward(tun: &SyncDevice, socket: &Socket) -> anyhow::Result<()> {
    let (mut buf, mut gro) = (vec![0; 65_536], GROTable::default());
    let mut packets: Vec<Vec<u8>> = (0..SEGMENTS)
        .map(|_| Vec::with_capacity(VIRTIO_NET_HDR_LEN + 65_536))
        .collect();
    loop {
        let meta = match socket.receive(&mut buf) {
            Ok(meta) => meta,
            Err(e) if is_transient(&e) => continue,
            Err(e) => return Err(e).context("receiving"),
        };
        let mut count = 0;
        for datagram in buf[..meta.len].chunks(meta.stride.max(1)).take(SEGMENTS) {
            if datagram.len() <= HEAD + TAIL {
                continue;
            }
            let packet = &mut packets[count];
            packet.clear();
            packet.resize(VIRTIO_NET_HDR_LEN, 0);
            packet.extend_from_slice(&datagram[HEAD..datagram.len() - TAIL]);
            count += 1;
        }
        if count > 0 {
            // Packets that the TUN refuses are lost.
            let _ = tun.send_multiple(&mut gro, &mut packets[..count], VIRTIO_NET_HDR_LEN);
        }
    }
}

fn relay(socket: &Socket, ends: &[SocketAddr]) -> anyhow::Result<()> {
    let [one, other] = ends else {
        anyhow::bail!("a relay stands between two: give --to twice")
    };
    let mut buf = vec![0; 65_536];
    loop {
        match socket.receive(&mut buf) {
            Ok(meta) => socket.send(
                if meta.addr == *one { *other } else { *one },
                &buf[..meta.len],
                meta.stride.max(1),
            ),
            Err(e) if is_transient(&e) => {}
            Err(e) => return Err(e).context("receiving"),
        }
    }
}
