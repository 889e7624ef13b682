//! A control host's reports to the crates above: events, and what it knows of each member.

use crate::id::MemberId;
use std::time::Duration;

/// An event on the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A member has its first proved connection.
    Connected(MemberId),
    /// A member has lost its last one.
    Disconnected(MemberId),
    /// A member was revoked.
    Revoked(MemberId),
    /// This node was revoked: no member talks to it any more.
    ThisNodeRevoked,
}

/// A member, as far as known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its id.
    pub member: MemberId,
    /// Its host name.
    pub name: String,
    /// Whether there is a connection now.
    pub connected: bool,
    /// The multiaddresses that it publishes.
    pub addresses: Vec<String>,
    /// The relay that the best connection leads through, if it is not direct.
    pub relayed: Option<MemberId>,
    /// The last measured round-trip time.
    pub rtt: Option<Duration>,
}
