//! A raw packet socket on one interface, with a virtio-net header before each frame, so that a
//! guest's TSO packets pass in one piece both ways (packet(7), PACKET_VNET_HDR).

use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// The kernel's buffers: two bandwidth-delay products of a fast guest.
const BUFFER_BYTES: usize = 4 << 20;

pub(crate) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens the interface called `name` in the calling thread's network namespace.
    pub fn open(name: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(name)?;
        // Protocol 0: nothing is received before the bind below names interface and protocol
        // together.
        let socket = Self(Socket::new(
            Domain::PACKET,
            Type::RAW.nonblocking().cloexec(),
            None,
        )?);
        set_option(&socket.0, libc::PACKET_VNET_HDR)?;
        set_option(&socket.0, libc::PACKET_IGNORE_OUTGOING)?;
        let _ = socket.0.set_recv_buffer_size(BUFFER_BYTES);
        let _ = socket.0.set_send_buffer_size(BUFFER_BYTES);
        socket.bind(index)?;
        Ok(socket)
    }

    /// Uses the interface with this index from now on: a new one of the same name, after the
    /// previous one was deleted.
    pub fn bind(&self, index: u32) -> io::Result<()> {
        // SAFETY: sockaddr_ll is a plain C structure for which all zeros is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the pointer and the length describe `address`, which lives across the call; the
        // descriptor is open.
        let bound = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const address).cast::<libc::sockaddr>(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Receives one frame behind its virtio-net header.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buf)
    }

    /// Sends a frame behind its virtio-net header.
    pub fn send(&self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_option(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which lives across the call; the descriptor
    // is open.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast::<libc::c_void>(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
