//! How events lie in a file that is only appended to: frames, each with its length and a checksum.
//! A crash while one is written leaves an incomplete frame at the end, which the reader drops.
//!
//! A frame: the payload's length (4 bytes, big endian), the first 4 bytes of the payload's BLAKE3
//! hash, the payload. A payload: a byte that says what it is, then the content. What a later
//! version writes under another byte is skipped.

use super::{EventChains, KeptEvent};

/// How many bytes a payload has at most.
/// Reason: the chains of the VMs of one host; each has 73 bytes.
const MAX_PAYLOAD: usize = 4 << 20;
const HEAD_BYTES: usize = 8;
const CHAINS: u8 = 1;
const EVENT: u8 = 2;

/// What a frame has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The ends of the chains as they were before the file's first event: the file before may be
    /// deleted.
    Chains(EventChains),
    /// An event.
    Event(KeptEvent),
}

/// Appends a frame to `bytes`.
pub fn write_frame(bytes: &mut Vec<u8>, frame: &Frame) {
    let payload = match frame {
        Frame::Chains(chains) => {
            let mut payload = vec![CHAINS];
            let body = postcard::to_stdvec(chains);
            payload.extend(body.expect("chains have nothing that postcard cannot write"));
            payload
        }
        Frame::Event(event) => {
            let mut payload = vec![EVENT];
            payload.extend(event.to_bytes());
            payload
        }
    };
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(&blake3::hash(&payload).as_bytes()[..4]);
    bytes.extend(payload);
}

/// The whole frames at the beginning of `bytes`, and how many bytes they have. What follows is
/// damaged or was not written to its end.
pub fn frames(bytes: &[u8]) -> (Vec<Frame>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some((payload, next)) = payload(bytes, at) {
        at = next;
        let frame = match payload.split_first() {
            Some((&CHAINS, rest)) => postcard::from_bytes(rest).ok().map(Frame::Chains),
            Some((&EVENT, rest)) => KeptEvent::from_bytes(rest).ok().map(Frame::Event),
            _ => None,
        };
        found.extend(frame);
    }
    (found, at)
}

/// The payload of the frame at `at`, and where the next frame begins.
fn payload(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let length = u32::from_be_bytes(head[..4].try_into().ok()?) as usize;
    if length > MAX_PAYLOAD {
        return None;
    }
    let end = at + HEAD_BYTES + length;
    let payload = bytes.get(at + HEAD_BYTES..end)?;
    (blake3::hash(payload).as_bytes()[..4] == head[4..]).then_some((payload, end))
}
