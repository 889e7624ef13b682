//! Bounds on what this node keeps and on what it accepts from a peer.

/// How many of the members that a VM exchanges traffic with are counted, the busiest first.
/// Reason: the others hardly change where the VM is best placed.
pub(crate) const MAX_TALKS: usize = 8;

/// How many entries one gossip message has at most.
pub const MAX_ENTRIES: usize = 16;

/// How long a message is at most, in bytes.
/// Reason: [`MAX_ENTRIES`] entries fit.
pub const MAX_MESSAGE_BYTES: usize = 2048;
