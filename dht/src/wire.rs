//! The messages between a coordinator and a replica: one version byte, then postcard. Parsing never
//! panics, takes no more than [`MAX_BYTES`] and leaves nothing unread. The receiver checks the
//! signatures.

use crate::{cell::Cell, limits::Refusal, record::Record};
use p2pvm_overlay::RingAddr;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u8 = 2;

/// How long a message is at most.
/// Reason: a cell with the largest value and all its graves, or a full comparison, fits.
pub const MAX_BYTES: usize = 256 << 10;

/// How many keys one [`Request::Compare`] has at most, 40 bytes each.
pub const MAX_COMPARED: usize = 1000;

/// A request to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Hold this record if the key is free or its owner's; `attempt` names it for
    /// [`Request::Withdraw`].
    Write {
        /// The record or tombstone.
        record: Record,
        /// Random.
        attempt: u64,
    },
    /// Forget an attempt that did not win, unless it was settled or tried again since.
    Withdraw {
        /// The key.
        key: RingAddr,
        /// The attempt's name.
        attempt: u64,
    },
    /// Merge this cell and answer with the result.
    Merge(RingAddr, Cell),
    /// Answer with the cell at this key.
    Read(RingAddr),
    /// Answer at which of these keys the cell has another [`Cell::digest`], or is missing.
    Compare(Vec<(RingAddr, u64)>),
}

/// A replica's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To a write: whether the record is held now, and what else is (the accepted record itself is
    /// left out).
    Written {
        /// Held from now on.
        accepted: bool,
        /// The cell that stands against it, if any, and all graves.
        cell: Cell,
    },
    /// To a read or merge.
    Holds(Cell),
    /// To a withdrawal.
    Done,
    /// To a comparison: the indices of the keys that differ.
    Differs(Vec<u16>),
    /// To a write or merge: not held, and why.
    Refused(Refusal),
}

/// The bytes on the wire.
pub fn emit<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("plain fields always serialize")
}

/// Reads a message; `None` for anything but exactly one of this version.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (&VERSION, rest) = body.split_first()? else {
        return None;
    };
    if body.len() > MAX_BYTES {
        return None;
    }
    let (message, rest) = postcard::take_from_bytes(rest).ok()?;
    rest.is_empty().then_some(message)
}
