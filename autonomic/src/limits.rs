//! Bounds on what this node keeps and what it takes from a peer.

/// How many of its peers a VM's traffic is counted for.
/// Reason: the rest changes nothing.
pub(crate) const MAX_TALKS: usize = 8;

/// How many entries one gossip message has at most.
pub const MAX_ENTRIES: usize = 16;

/// How long a message is at most, in bytes.
/// Reason: [`MAX_ENTRIES`] entries fit.
pub const MAX_MESSAGE_BYTES: usize = 2048;
