//! The UDP socket of the plane: one port for IPv4 and IPv6, sent to in GSO batches and read with
//! GRO (quinn-udp).

use super::second_port::SecondPort;
use crate::lock;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Kernel buffers: a burst of one bandwidth-delay product at 1 Gbit/s and 50 ms fits.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// A GSO send must stay under 64 KiB with the headers of IP and UDP, IPv6's with an extension or
/// two.
pub const MAX_BATCH_BYTES: usize = 65_400;
/// Linux takes at most 64 segments a send (UDP_MAX_SEGMENTS).
const MAX_BATCH_SEGMENTS: usize = 64;
/// How long datagrams to an address go singly after the kernel took no GSO batch. Reason: the route
/// may lead through another device by then.
const SINGLY_FOR: Duration = Duration::from_secs(600);
/// How many addresses without GSO are remembered.
const MAX_SINGLY: usize = 256;
/// One GRO read.
pub const READ_BYTES: usize = 65_536;

/// The plane's socket.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
    port: u16,
    /// Whether the kernel has found a datagram too large for its interface.
    refused: AtomicBool,
    /// Addresses to which the kernel makes no GSO send, and since when; the flag spares the others
    /// the look.
    singly: Mutex<HashMap<IpAddr, Instant>>,
    some_singly: AtomicBool,
    second_port: SecondPort,
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
            Err(e)
                if e.kind() == io::ErrorKind::AddrInUse
                    || e.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(e);
            }
            Err(_) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
                (socket, false)
            }
        };
        // Larger than net.core.[rw]mem_max is cut to it; a small buffer costs speed, never truth.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        crate::underlay::mark(&socket);
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        Ok(Self {
            socket,
            state,
            v6,
            port,
            refused: AtomicBool::new(false),
            singly: Mutex::default(),
            some_singly: AtomicBool::new(false),
            second_port: SecondPort::default(),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the kernel refused a datagram as too large since the last call.
    pub fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

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
        let _ = self.transmit(to, datagram, None);
    }

    /// As [`Udp::send`], but always from the first port: for requests that ask how it looks from
    /// outside.
    pub fn send_first(&self, to: SocketAddr, datagram: &[u8]) {
        let _ = self.transmit_here(to, datagram, None);
    }

    /// As [`Udp::send`], but from the given port; lost if there is no second port.
    pub fn send_by(&self, is_second_port: bool, to: SocketAddr, datagram: &[u8]) {
        match (is_second_port, self.second_port.socket()) {
            (false, _) => self.send_first(to, datagram),
            (true, Some(second)) => drop(second.transmit_here(to, datagram, None)),
            (true, None) => {}
        }
    }

    /// Sends datagrams of `size` bytes each (the last may be shorter), together where the kernel
    /// can.
    pub fn send_many(&self, to: SocketAddr, datagrams: &[u8], size: usize) {
        let _ = self.transmit(to, datagrams, (datagrams.len() > size).then_some(size));
    }

    pub fn second_port(&self) -> &SecondPort {
        &self.second_port
    }

    /// Sends from the address's port; false if the kernel did not take it.
    fn transmit(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> bool {
        if let Some(other) = self.second_port.socket_for(&to) {
            return other.transmit_here(to, contents, segment_size);
        }
        self.transmit_here(to, contents, segment_size)
    }

    fn transmit_here(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> bool {
        let Some(destination) = self.outward(to) else {
            return false;
        };
        if let Some(size) = segment_size
            && self.goes_singly(&to.ip())
        {
            return self.each(to, contents, size);
        }
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        let Err(error) = self
            .state
            .try_send(UdpSockRef::from(&self.socket), &transmit)
        else {
            return true;
        };
        match (error.kind(), segment_size) {
            (io::ErrorKind::WouldBlock, _) => {
                // The device queue is full: wait for it as a blocking socket would, but not for
                // long.
                let mut fds = [nix::poll::PollFd::new(
                    self.socket.as_fd(),
                    nix::poll::PollFlags::POLLOUT,
                )];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(20u8));
                return self
                    .state
                    .try_send(UdpSockRef::from(&self.socket), &transmit)
                    .is_ok();
            }
            // GSO can fail at run time, such as for a device without checksum offload or below
            // IPsec.
            (_, Some(size)) => {
                let sent = self.each(to, contents, size);
                if sent && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) {
                    self.note_singly(to.ip(), &error);
                }
                return sent;
            }
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.refused.store(true, Ordering::Relaxed)
            }
            _ => tracing::trace!(
                %to,
                error = %p2pvm_host::chain(&error),
                "the kernel did not send a datagram"
            ),
        }
        false
    }

    fn each(&self, to: SocketAddr, contents: &[u8], size: usize) -> bool {
        // All are tried, also after one has failed.
        contents
            .chunks(size)
            .filter(|datagram| !self.transmit(to, datagram, None))
            .count()
            == 0
    }

    fn goes_singly(&self, to: &IpAddr) -> bool {
        self.some_singly.load(Ordering::Relaxed) && {
            let ways = lock(&self.singly);
            ways.get(to)
                .is_some_and(|since| since.elapsed() < SINGLY_FOR)
        }
    }

    /// Remembers that datagrams to this address do not leave together, and logs it the first time.
    fn note_singly(&self, to: IpAddr, error: &io::Error) {
        let mut ways = lock(&self.singly);
        if ways.len() >= MAX_SINGLY && !ways.contains_key(&to) {
            return;
        }
        self.some_singly.store(true, Ordering::Relaxed);
        if ways.insert(to, Instant::now()).is_none() {
            tracing::info!(
                %to,
                error = %p2pvm_host::chain(error),
                "the route there takes no batches (UDP GSO): datagrams are sent singly, which is \
                    slower"
            );
        }
    }

    /// Reads once into `buf` ([`READ_BYTES`]): where it came from, how much, and the size of each
    /// datagram but the last.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; anything else concerns one earlier datagram and may be
    /// ignored.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<(SocketAddr, usize, usize)> {
        let mut meta = [RecvMeta::default()];
        let read = self.state.recv(
            UdpSockRef::from(&self.socket),
            &mut [IoSliceMut::new(buf)],
            &mut meta,
        )?;
        if read == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let from = SocketAddr::new(meta[0].addr.ip().to_canonical(), meta[0].addr.port());
        Ok((from, meta[0].len, meta[0].stride.max(1)))
    }
}

/// Collects datagrams for one destination and sends them with one system call. Its memory is made
/// with the first datagram and used again for all that follow.
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

    /// Adds a datagram of at most `room` bytes that `write` makes in place and whose length it
    /// returns (`None`: nothing); sends first what cannot go with it.
    pub fn push(
        &mut self,
        udp: &Udp,
        to: SocketAddr,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) {
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
            // A virtual link or a router of this machine may carry a batch as one packet, and drop
            // all of it if its datagrams are too large for the next link. One larger datagram by
            // itself may be a question about the path's size: nothing else shares its fate.
            n if n > self.segment || (n < self.segment && self.count == 1) => {
                self.flush(udp);
                self.bytes.copy_within(start..start + n, 0);
                (self.to, self.segment) = (Some(to), n);
            }
            n if n < self.segment => self.closed = true,
            _ => {}
        }
        self.len += written;
        self.count += 1;
    }

    /// Sends what is there.
    pub fn flush(&mut self, udp: &Udp) {
        if let (Some(to), true) = (self.to, self.count > 0) {
            let _ = udp.transmit(
                to,
                &self.bytes[..self.len],
                (self.count > 1).then_some(self.segment),
            );
        }
        (self.len, self.to, self.count, self.segment, self.closed) = (0, None, 0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that arrives at `at` until `count` datagrams did or two seconds are over: first byte and
    /// length of each.
    fn arriving(at: &Udp, count: usize) -> Vec<(usize, usize)> {
        let (mut buf, mut got) = (vec![0; READ_BYTES], Vec::new());
        let until = Instant::now() + Duration::from_secs(2);
        while got.len() < count && Instant::now() < until {
            if let Ok((_, len, stride)) = at.receive(&mut buf) {
                got.extend(buf[..len].chunks(stride).map(|d| (d[0] as usize, d.len())));
            }
        }
        got
    }

    #[test]
    fn where_the_kernel_makes_no_batches_datagrams_go_singly_from_then_on() {
        let (a, b) = (Udp::bind(0).unwrap(), Udp::bind(0).unwrap());
        let to = SocketAddr::from(([127, 0, 0, 1], b.port()));
        // A socket that sends no checksums may not use GSO (udp(7), UDP_SEGMENT): EINVAL, as from a
        // kernel that cannot.
        let on: libc::c_int = 1;
        // SAFETY: the option's value is a c_int that outlives the call.
        let set = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&a.socket);
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
        for round in 0..2 {
            let datagrams: Vec<u8> = (0..5u8).flat_map(|i| [i; 100]).collect();
            assert_eq!(a.goes_singly(&to.ip()), round == 1);
            a.send_many(to, &datagrams, 100);
            assert_eq!(
                arriving(&b, 5),
                (0..5).map(|i| (i, 100)).collect::<Vec<_>>()
            );
        }
        assert!(
            !a.goes_singly(&[127, 0, 0, 2].into()),
            "others are not held to it"
        );
    }

    #[test]
    fn a_datagram_behind_a_larger_one_does_not_share_its_fate() {
        let (a, b) = (Udp::bind(0).unwrap(), Udp::bind(0).unwrap());
        let to = SocketAddr::from(([127, 0, 0, 1], b.port()));
        let mut batch = Batch::default();
        for size in [1428, 88] {
            batch.push(&a, to, size, |buf| Some(buf.len()));
        }
        // The larger one, as a question about the path's size is, has left by itself.
        assert_eq!((batch.count, batch.len), (1, 88));
        for size in [88, 88, 40] {
            batch.push(&a, to, size, |buf| Some(buf.len()));
        }
        assert_eq!((batch.count, batch.len, batch.closed), (4, 304, true));
        batch.flush(&a);
        let sizes: Vec<usize> = arriving(&b, 5).iter().map(|(_, len)| *len).collect();
        assert_eq!(sizes, [1428, 88, 88, 88, 40]);
    }

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
        let got = arriving(&b, sizes.len());
        assert_eq!(got, sizes.iter().copied().enumerate().collect::<Vec<_>>());
    }
}
