//! What a proof that a guest is reached says ([`super::proof`]).

use std::time::Duration;

/// How far packets for a guest come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestReach {
    /// The guest answered.
    Answers {
        /// From the question to the answer.
        rtt: Duration,
    },
    /// The guest took the questions and does not answer.
    Quiet {
        /// Whether it sent anything meanwhile.
        talks: bool,
    },
    /// Nothing takes packets out of the interface: the guest's network driver does not run, or the
    /// guest is stopped.
    NotTaken,
    /// The interface is gone.
    Missing,
    /// The interface is down.
    Down,
    /// Nothing holds the interface's other end.
    NoCarrier,
    /// This machine drops what is for the guest.
    Dropped {
        /// What the kernel said.
        why: String,
    },
}

/// What was found, and of which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestProof {
    /// The TAP's name on this host.
    pub ifname: String,
    /// What was found.
    pub reach: GuestReach,
}
