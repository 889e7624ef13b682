//! How datagrams reach a member: the member's link, its paths, relays and the ring.

pub(super) mod arrival;
pub(super) mod envelopes;
pub(super) mod handshake;
pub(super) mod links;
pub(super) mod moves;
pub mod paths;
pub(super) mod peer;
pub(super) mod pending;
pub(super) mod ping;
pub(super) mod relaying;
pub(super) mod ring;
pub(super) mod ring_port;
pub(super) mod roam;
pub(super) mod second_port;
pub(super) mod streams;
pub(super) mod stun;
