//! Why the plane could not do what it was asked.

use crate::{fabric::FabricError, id::MemberId};
use std::{io, net::IpAddr, time::Duration};

/// Why the plane could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TUN device could not be made or set up.
    #[error("cannot set up the TUN device {device}")]
    Tun {
        /// The device's name.
        device: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The UDP port could not be bound.
    #[error("cannot bind UDP port {port}")]
    Bind {
        /// The port that was asked for.
        port: u16,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A packet thread could not be started.
    #[error("cannot start the packet threads")]
    Thread(#[source] io::Error),
    /// The host's overlay address could not be set.
    #[error("cannot put {addr} on {device}")]
    Address {
        /// The TUN interface.
        device: String,
        /// The address that it was to get.
        addr: IpAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A guest's interface could not be opened.
    #[error("cannot open the guest port {ifname}")]
    Port {
        /// The guest's interface on this host.
        ifname: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No path to the member could be made.
    #[error("no path to {} could be found: neither direct, nor through another member, nor by \
        stream", .0.short())]
    NoPath(MemberId),
    /// The member did not answer in time.
    #[error("{} did not answer within {:?}", .0.short(), .1)]
    TimedOut(MemberId, Duration),
    /// The control plane could not reach the member.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The handshake failed; with the reason.
    #[error("handshake with {} failed: {}", .0.short(), .1)]
    Handshake(MemberId, String),
    /// The plane was shut down.
    #[error("the packet plane is shut down")]
    Closed,
}
