//! The UDP socket of the plane: one port for IPv4 and IPv6, sent to in GSO batches and read with GRO (quinn-udp).

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// Kernel buffers: a burst of one bandwidth-delay product at 1 Gbit/s and 50 ms fits.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// A GSO send must stay under 64 KiB with the headers of IP and UDP, IPv6's with an extension or two.
pub const MAX_BATCH_BYTES: usize = 65_400;
/// Linux takes at most 64 segments a send (UDP_MAX_SEGMENTS).
const MAX_BATCH_SEGMENTS: usize = 64;
/// One GRO read.
pub const READ_BYTES: usize = 65_536;

/// The plane's socket.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
    port: u16,
    /// The kernel found a datagram too large for its interface.
    refused: AtomicBool,
}

impl Udp {
    /// Binds `port` (0: any) for both families, or for IPv4 alone where the kernel has no IPv6.
    ///
    /// # Errors
    /// What the kernel says, such as that the port is in use.
    pub fn bind(port: u16) -> io::Result<Self> {
        let dual = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_only_v6(false)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            Ok(socket)
        };
        let (socket, v6) = match dual() {
            Ok(socket) => (socket, true),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse || e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
            Err(_) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
                (socket, false)
            }
        };
        // Larger than net.core.[rw]mem_max is cut to it; a small buffer costs speed, never truth.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        Ok(Self { socket, state, v6, port, refused: AtomicBool::new(false) })
    }

    /// The bound port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the kernel refused a datagram as too large since the last call.
    pub fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn outward(&self, to: SocketAddr) -> Option<SocketAddr> {
        match (to.ip(), self.v6) {
            (IpAddr::V4(v4), true) => Some(SocketAddr::from((v4.to_ipv6_mapped(), to.port()))),
            (IpAddr::V6(_), false) => None,
            _ => Some(to),
        }
    }

    /// Sends one datagram; lost like any other if the kernel has no room or no route.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.transmit(to, datagram, None);
    }

    /// Sends datagrams of `size` bytes each (the last may be shorter), together where the kernel can.
    pub fn send_many(&self, to: SocketAddr, datagrams: &[u8], size: usize) {
        self.transmit(to, datagrams, (datagrams.len() > size).then_some(size));
    }

    fn transmit(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) {
        let Some(destination) = self.outward(to) else { return };
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        let Err(error) = self.state.try_send(UdpSockRef::from(&self.socket), &transmit) else { return };
        match (error.kind(), segment_size) {
            (io::ErrorKind::WouldBlock, _) => {
                // The device queue is full: wait for it, as a blocking socket would, but not for ever.
                let mut fds = [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(20u8));
                let _ = self.state.try_send(UdpSockRef::from(&self.socket), &transmit);
            }
            // GSO can fail at run time (a device without checksum offload: EIO): the batch goes singly.
            (_, Some(size)) => contents.chunks(size).for_each(|datagram| self.transmit(to, datagram, None)),
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => self.refused.store(true, Ordering::Relaxed),
            _ => tracing::trace!(%to, %error, "datagram not sent"),
        }
    }

    /// Reads once into `buf` ([`READ_BYTES`]): where it came from, how much, and the size of each datagram but the last.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; anything else concerns one earlier datagram and may be ignored.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<(SocketAddr, usize, usize)> {
        let mut meta = [RecvMeta::default()];
        let read = self.state.recv(UdpSockRef::from(&self.socket), &mut [IoSliceMut::new(buf)], &mut meta)?;
        if read == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let from = SocketAddr::new(meta[0].addr.ip().to_canonical(), meta[0].addr.port());
        Ok((from, meta[0].len, meta[0].stride.max(1)))
    }
}

/// Collects datagrams for one destination and sends them with one system call. Its memory is made with the first datagram
/// and used again for all that follow.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// How much of it is used.
    len: usize,
    to: Option<SocketAddr>,
    segment: usize,
    count: usize,
    closed: bool,
}

impl Batch {
    /// Whether one more datagram may go with `count` others if that makes `bytes` in all.
    pub fn fits(bytes: usize, count: usize) -> bool {
        bytes <= MAX_BATCH_BYTES && count < MAX_BATCH_SEGMENTS
    }

    /// Adds a datagram of at most `room` bytes that `write` makes in place and whose length it returns (`None`: nothing);
    /// sends first what cannot go with it.
    pub fn push(&mut self, udp: &Udp, to: SocketAddr, room: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let full = self.closed || !Self::fits(self.len + room, self.count);
        if self.to != Some(to) || full {
            self.flush(udp);
            self.to = Some(to);
        }
        let start = self.len;
        if self.bytes.len() < start + room {
            self.bytes.resize((start + room).max(MAX_BATCH_BYTES), 0);
        }
        let written = write(&mut self.bytes[start..start + room]).unwrap_or(0);
        match written {
            0 => return,
            n if self.count == 0 => self.segment = n,
            n if n < self.segment => self.closed = true,
            n if n > self.segment => {
                // Larger than those before it: they go first, it starts the next batch.
                self.flush(udp);
                self.bytes.copy_within(start..start + n, 0);
                (self.to, self.segment) = (Some(to), n);
            }
            _ => {}
        }
        self.len += written;
        self.count += 1;
    }

    /// Sends what is there.
    pub fn flush(&mut self, udp: &Udp) {
        if let (Some(to), true) = (self.to, self.count > 0) {
            udp.transmit(to, &self.bytes[..self.len], (self.count > 1).then_some(self.segment));
        }
        (self.len, self.to, self.count, self.segment, self.closed) = (0, None, 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_unequal_datagrams_arrives_whole_and_in_order() {
        let (a, b) = (Udp::bind(0).unwrap(), Udp::bind(0).unwrap());
        let to = SocketAddr::from(([127, 0, 0, 1], b.port()));
        let sizes = [100usize, 100, 100, 40, 100, 300, 300, 1];
        let mut batch = Batch::default();
        for (i, size) in sizes.iter().enumerate() {
            batch.push(&a, to, 400, |out| {
                out[..*size].fill(i as u8);
                Some(*size)
            });
        }
        batch.push(&a, to, 400, |_| None);
        batch.flush(&a);
        let (mut buf, mut got) = (vec![0; READ_BYTES], Vec::new());
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while got.len() < sizes.len() && std::time::Instant::now() < until {
            if let Ok((from, len, stride)) = b.receive(&mut buf) {
                assert_eq!(from.port(), a.port());
                got.extend(buf[..len].chunks(stride).map(|d| (d[0] as usize, d.len())));
            }
        }
        assert_eq!(got, sizes.iter().copied().enumerate().collect::<Vec<_>>());
    }
}
