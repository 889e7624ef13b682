//! Makes a router's kernel forget all connections, and with them all NAT mappings, as a router that
//! got a new address does.
//!
//! What `conntrack -F` does: one netlink message to the connection tracker of the calling thread's
//! network namespace (linux/netfilter/nfnetlink_conntrack.h), so that no further program has to be
//! installed.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE_CONNECTIONS: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ACKNOWLEDGED_REQUEST: u16 = 0x5;
/// Bytes of a netlink header and of netfilter's behind it.
const HEADERS: u32 = 20;
/// Where an acknowledgement has its error number, negative; 0 is none.
const ERROR_AT: usize = 16;

/// Removes every connection, of all families, from the namespace's tracker.
pub(crate) fn flush() -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut request = Vec::with_capacity(HEADERS as usize);
    request.extend(HEADERS.to_ne_bytes());
    request.extend(DELETE_CONNECTIONS.to_ne_bytes());
    request.extend(ACKNOWLEDGED_REQUEST.to_ne_bytes());
    // Sequence number, port; family (any), version and resource id of netfilter's header.
    request.extend([0; 12]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 128];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match answer[..length]
        .get(ERROR_AT..ERROR_AT + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
