//! Proves that packets pass from stack to stack: the host's own stack through the TUN, and another member's through both TUNs.
//! A link that answers pings shows neither.

use crate::id::MemberId;
use std::{net::IpAddr, time::Duration};

/// What answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// An ICMP echo reply.
    Echo,
    /// UDP: a datagram, or that nobody listens at the port.
    Udp,
    /// TCP: a connection, or that nobody listens at the port.
    Tcp,
}

/// Packets pass both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// From the question to the answer.
    pub rtt: Duration,
    /// What answered.
    pub by: Answered,
}

/// The step at which packets do not pass; displayed as a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproved {
    /// [`super::Plane::set_host_addresses`] has not been called yet.
    #[error("this host has no overlay address yet")]
    NoAddress,
    /// The device is gone.
    #[error("the interface {device} is missing")]
    Missing {
        /// Its name.
        device: String,
    },
    /// The device is down.
    #[error("the interface {device} is down")]
    Down {
        /// Its name.
        device: String,
    },
    /// The device has lost the address.
    #[error("the interface {device} has lost the address {addr}")]
    AddressLost {
        /// The device's name.
        device: String,
        /// The address.
        addr: IpAddr,
    },
    /// Replies would leave elsewhere.
    #[error("packets to {addr} leave by {through} instead of {device}")]
    Elsewhere {
        /// Where they should leave.
        device: String,
        /// The address that stands for the network, or for the member.
        addr: IpAddr,
        /// The interface by which they leave, or what the kernel says instead.
        through: String,
    },
    /// Something answers for the host that it is not to be reached.
    #[error("a firewall of this host refuses packets that come in by {device}")]
    Refused {
        /// The device.
        device: String,
    },
    /// Nothing came back: the device, its address and its routes are as they should be.
    #[error("this host does not answer packets that come in by {device}: a firewall drops them, or the answers")]
    Silent {
        /// The device.
        device: String,
    },
    /// There is no link to the member.
    #[error("there is no path to the member: {why}")]
    NoPath {
        /// What the link says.
        why: String,
    },
    /// The link answers, the member's host does not.
    #[error("the link to the member answers, its host at {addr} does not: a firewall or the network's policy there, or its interface")]
    MemberSilent {
        /// Its address.
        addr: IpAddr,
    },
    /// The proof itself could not be made.
    #[error("cannot be proved here: {why}")]
    Cannot {
        /// What the kernel said.
        why: String,
    },
}

impl super::Plane {
    /// Proves that this host's own stack is reached through the TUN, and answers through it: the plane writes an ICMP echo
    /// request from the network's gateway address, which no host holds, to the host's overlay address into the TUN, and takes
    /// the reply out of what the host sends into it. A host that ignores echo requests is asked by UDP and TCP.
    ///
    /// No member is involved, so that it also says something where there is none. Cheap: some packets through the kernel.
    ///
    /// # Errors
    /// [`Unproved`]: the step that fails.
    pub async fn prove_host(&self, timeout: Duration) -> Result<Proof, Unproved> {
        let _ = timeout;
        Err(Unproved::Cannot { why: "not written yet".into() })
    }

    /// Proves that this host's stack reaches a member's, through both TUNs: an ICMP echo request that this host's stack sends from
    /// its overlay address to `addr`, one of the member's. The link is made if there is none.
    ///
    /// # Errors
    /// [`Unproved`]: the step that fails, the host's own first.
    pub async fn prove_member(&self, member: MemberId, addr: IpAddr, timeout: Duration) -> Result<Proof, Unproved> {
        let _ = (member, addr, timeout);
        Err(Unproved::Cannot { why: "not written yet".into() })
    }
}
