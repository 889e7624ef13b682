//! What a proof that packets pass says ([`super::prove`]).

use std::{net::IpAddr, time::Duration};
use tokio::sync::oneshot;

/// What answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// An ICMP echo reply.
    Echo,
    /// UDP: a datagram, or "port unreachable".
    Udp,
    /// TCP: a connection, or its refusal.
    Tcp,
}

/// Packets pass both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// From the question to the answer.
    pub rtt: Duration,
    /// What answered.
    pub by: AnswerKind,
}

/// The step at which packets do not pass; displayed as a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofFailure {
    /// [`crate::plane::Plane::set_host_addresses`] has not been called yet.
    #[error("this host has no overlay address yet")]
    NoAddress,
    /// The device is gone.
    #[error("the interface {device} is missing")]
    Missing {
        /// The interface that packets should leave by.
        device: String,
    },
    /// The device is down.
    #[error("the interface {device} is down")]
    Down {
        /// The interface that packets should leave by.
        device: String,
    },
    /// The device has lost the address.
    #[error("the interface {device} has lost the address {addr}")]
    AddressLost {
        /// The device's name.
        device: String,
        /// The address that is lost.
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
        /// The interface that packets come in by.
        device: String,
    },
    /// Nothing came back: the device, its address and its routes are as they should be.
    #[error(
        "this host does not answer packets that come in by {device}: a firewall drops them, or \
            the answers"
    )]
    Silent {
        /// The interface that packets come in by.
        device: String,
    },
    /// There is no link to the member.
    #[error("there is no path to the member: {why}")]
    NoPath {
        /// What the link says.
        why: String,
    },
    /// The link answers, the member's host does not.
    #[error(
        "the link to the member answers, its host at {addr} does not: a firewall or the network's \
            policy there, or its interface"
    )]
    MemberSilent {
        /// The address that was asked.
        addr: IpAddr,
    },
    /// The proof itself could not be made.
    #[error("cannot be proved here: {why}")]
    Cannot {
        /// What the kernel said.
        why: String,
    },
}

/// What has to be proved, and where the result goes.
pub(crate) struct Question {
    /// The member's address; `None`: this host's own stack.
    pub to: Option<IpAddr>,
    pub limit: Duration,
    pub answer: oneshot::Sender<Result<Proof, ProofFailure>>,
}
