//! Requests to the kernel's rtnetlink (rtnetlink(7)), one at a time, in the network namespace of
//! the calling thread.
//!
//! Synchronous on purpose: the kernel answers at once, and a thread that has entered a namespace
//! stays in it. Multicast groups wake the caller by the socket's descriptor.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// How many bytes the kernel sends at a time at most (NLMSG_GOODSIZE is a page; dumps use up to 32
/// KiB).
const READ_BYTES: usize = 64 << 10;

/// A socket to rtnetlink.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it a dump of one family's addresses has all families (rtnetlink(7),
        // NETLINK_GET_STRICT_CHK); old kernels lack it.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Opens a non-blocking socket that listens to these multicast groups (RTNLGRP_*).
    ///
    /// # Errors
    /// The kernel's error.
    pub fn listen(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks the kernel to change something.
    ///
    /// # Errors
    /// The kernel's error, such as `AlreadyExists` (EEXIST), or ESRCH for a missing object.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Asks for a whole table.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Asks for one thing, such as the route that a packet would take.
    ///
    /// # Errors
    /// The kernel's error, such as ENETUNREACH for no route.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK)
            .map(|answers| answers.into_iter().next())
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let read = self.read()?;
            for message in read
                .into_iter()
                .filter(|m| m.header.sequence_number == self.sequence)
            {
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }

    fn read(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut buf = Vec::with_capacity(READ_BYTES);
        self.socket.recv(&mut buf, 0)?;
        let (mut messages, mut at) = (Vec::new(), 0);
        while at + 16 <= buf.len() {
            let length =
                u32::from_ne_bytes(buf[at..at + 4].try_into().expect("four bytes")) as usize;
            if length < 16 || at + length > buf.len() {
                break;
            }
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buf[at..at + length]) {
                Ok(message) => messages.push(message),
                // A newer kernel may send messages that this crate does not know: only those are
                // lost.
                Err(error) => {
                    tracing::debug!(
                        error = %crate::chain(&error),
                        "cannot parse a message of the kernel"
                    )
                }
            }
            at += length.next_multiple_of(4);
        }
        Ok(messages)
    }

    /// The messages since the last call, on a socket of [`Netlink::listen`]. If messages were lost
    /// for lack of room (ENOBUFS), it is an error, and the caller has to look at everything again.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn hear(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut heard = Vec::new();
        loop {
            match self.read() {
                Ok(messages) => {
                    heard.extend(messages.into_iter().filter_map(|m| match m.payload {
                        NetlinkPayload::InnerMessage(inner) => Some(inner),
                        _ => None,
                    }))
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the socket's, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
