//! Version 2 of the messages to a voter: renewals of all VMs of a host in one message, and the
//! question of how long a lease runs. A voter of the previous release refuses the frame, and so
//! tells its version. A renewal carries no voter set and no signature: the connection proves who
//! asks, and a voter renews only what it has as confirmed for that member.

use super::{
    super::{VoterSet, wire::Promise},
    MAX_RENEWED,
};
use p2pvm_overlay::{Epoch, VmId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u8 = 2;
/// How long a message is at most.
/// Reason: answers of [`MAX_RENEWED`] VMs with 45 bytes each, and a margin.
const MAX_BYTES: usize = 16 * 1024;

/// A question to one voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseRequest {
    /// Renew the asking member's leases: at most [`MAX_RENEWED`].
    Renew(Vec<(VmId, Epoch)>),
    /// How long the lease runs; changes nothing.
    View(VoterSet),
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseReply {
    /// One answer for each VM, in the order of the question.
    Renewed {
        /// The voter's clock, milliseconds since it started: a caller may compare the rates.
        clock_ms: u64,
        /// The answers.
        answers: Vec<RenewAnswer>,
    },
    /// What the voter has of the VM.
    View(VoterView),
    /// The voter pinned other voters for this VM.
    OtherVoters,
    /// The asked member is no voter of this VM, or a signature is wrong.
    Invalid,
}

/// A voter's answer for one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewAnswer {
    /// Renewed.
    Ours,
    /// Not renewed: this promise is as new or newer.
    Newer(Promise),
    /// Not renewed: the voter has not this epoch confirmed, or the VM not as protected.
    Unknown,
}

/// What one voter has of a VM's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterView {
    /// The newest promise.
    pub promise: Option<Promise>,
    /// Whether the VM is protected.
    pub is_protected: bool,
    /// For how many milliseconds it grants no unasked take-over.
    pub free_in_ms: u32,
}

/// The bytes on the wire.
pub fn emit<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("plain fields always serialize")
}

/// Reads a question; `None` for anything but exactly one of this version within its bounds.
pub fn parse_request(body: &[u8]) -> Option<LeaseRequest> {
    let request = parse(body)?;
    match &request {
        LeaseRequest::Renew(vms) if vms.len() > MAX_RENEWED => None,
        _ => Some(request),
    }
}

/// Reads an answer.
pub fn parse_reply(body: &[u8]) -> Option<LeaseReply> {
    parse(body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (&VERSION, rest) = body.split_first()? else {
        return None;
    };
    if body.len() > MAX_BYTES {
        return None;
    }
    let (message, rest) = postcard::take_from_bytes(rest).ok()?;
    rest.is_empty().then_some(message)
}
