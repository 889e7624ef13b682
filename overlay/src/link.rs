//! An encrypted link between two members, as a state machine without socket, clock or task.
//!
//! The design is WireGuard's (Donenfeld, NDSS 2017): a Noise IK handshake in one round trip, then
//! AEAD per datagram with an explicit counter and a replay window, rekeyed by time without loss,
//! with MACs and cookies that keep a flood of forged handshakes cheap to refuse. The differences:
//! AES-256-GCM or ChaCha20-Poly1305, agreed in the handshake; BLAKE3 for the MACs; and a link knows
//! no address. `plane::paths` decides which path a datagram takes, so that a handshake may as well
//! travel over the control plane.

pub mod cookie;
pub mod frame;
#[cfg(test)]
mod golden_tests;
pub mod handshake;
pub mod replay;
pub mod session;
pub mod state;
mod wipe;
pub mod wire;

pub use handshake::{Keys, OpenedInitiation};
pub use session::{Cipher, Session};
pub use state::{Link, Output};

/// Why a datagram or a handshake message was refused.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinkRefusal {
    /// It is no datagram of a link: too short, too long, or of an unknown kind.
    #[error("not a datagram of a link")]
    Malformed,
    /// A MAC, tag or handshake does not verify.
    #[error("does not verify")]
    Forged,
    /// The counter or timestamp was seen before, or is too old.
    #[error("replayed")]
    Replayed,
    /// There is no handshake under way that this answers.
    #[error("answers no handshake under way")]
    Unasked,
    /// The session is past its lifetime.
    #[error("session has expired")]
    Expired,
}
