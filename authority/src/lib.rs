//! Rights as signed statements: the bearer sends one with its request, and the receiver checks it
//! by itself, offline.
//!
//! A [`Token`] is a chain of links. Its first link is signed by the owner of a resource and names
//! the key that it is for. That key may pass the token on with a link of its own, which can only
//! narrow it: a request must satisfy every link. Only the holder of the last link's key can use the
//! token, so a copied token is worth nothing to a thief. The idea is that of SPKI certificates (RFC
//! 2693) with the narrowing of Biscuit's appended blocks; docs/decisions/0047 says why it is not
//! Biscuit.
//!
//! A [`Revocation`] takes a link back before it expires, and with it what was passed on from it.
//!
//! A token can be for the key of a person, who then shows a [`Proof`] with each request.
//!
//! A [`Receipt`] is a host's signed statement of what a member used of it, which that member checks
//! in the same way and signs too; docs/decisions/0054 says what it proves.
//!
//! An [`Event`] is what happened to a VM, a member or a host. A VM's events are a chain that its
//! host signs; docs/decisions/0062 says what the chain proves.
//!
//! Nothing here uses the network or the clock: the caller gives the asker's key and the time.

mod event;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
mod proof;
mod receipt;
mod revocation;
mod right;
mod token;
mod usage;

pub use event::{
    Event, EventChains, EventError, EventLink, EventProof, Frame, HostChain, KeptEvent,
    ProofRefusal, ProvedChain, Subject, frames, write_frame,
};
pub use proof::{Asked, PROOF_WINDOW, Proof, ProofError, SeenProofs};
pub use receipt::{
    Line, MAX_AGE, MAX_LINES, MIN_PERIOD, Receipt, ReceiptRefusal, Reply, Terms, possible,
};
pub use revocation::{MAX_REVOCATIONS, Revocation, Revocations, RevokeError};
pub use right::{Amounts, ParseRightError, Resource, Right, Rights};
pub use token::{Grant, Link, MAX_LIFE, ParseTokenError, Refusal, Request, Serial, Token};
pub use usage::{Size, Usage, most_kept};

/// A key that can be given rights: a member's, which can pass them on, or a user's.
pub type Principal = [u8; 32];
