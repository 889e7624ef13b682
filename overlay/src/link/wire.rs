//! The five datagrams of a link, outermost bytes first. All numbers are big-endian.
//!
//! | kind | layout |
//! |---|---|
//! | initiation | kind, 3 zero, sender index, Noise message 1, mac1, mac2 |
//! | response | kind, 3 zero, sender index, receiver index, Noise message 2, mac1, mac2 |
//! | cookie | kind, 3 zero, receiver index, salt, sealed cookie |
//! | data | kind, 3 zero, receiver index, counter, sealed frame |
//! | envelope | kind, 3 zero, receiver index, counter, sealed forward frame's header and first 16 bytes of the datagram inside, rest of that datagram, tag |
//!
//! The first byte has its top bit set, which no STUN message has (RFC 8489 §5), so both share a
//! port.

use super::{LinkRefusal, frame::FRAME_HEADER_LEN};

/// How many bytes precede the sealed frame of a data datagram.
pub const HEADER_LEN: usize = 16;
/// Bytes of AEAD tag after the sealed frame.
pub const TAG_LEN: usize = 16;
/// Bytes of one MAC.
pub const MAC_LEN: usize = 16;
/// Bytes of salt in a cookie reply.
pub const SALT_LEN: usize = 32;
/// How many bytes a handshake message may carry sealed beside its own payload. Reason: over the
/// ring nothing else proves the sender of such content. The message stays well below one datagram.
pub const MAX_EXTRA_LEN: usize = 1100;
/// Noise IK message 1: ephemeral, sealed static, sealed payload.
pub const NOISE_1_LEN: usize = 32 + 48 + INITIATION_PAYLOAD_LEN + TAG_LEN;
/// Noise IK message 2: ephemeral and sealed payload.
pub const NOISE_2_LEN: usize = 32 + RESPONSE_PAYLOAD_LEN + TAG_LEN;
/// Version, cipher offer and timestamp.
pub const INITIATION_PAYLOAD_LEN: usize = 1 + 1 + 12;
/// The chosen cipher.
pub const RESPONSE_PAYLOAD_LEN: usize = 1;
/// Length of an initiation that carries nothing extra.
pub const INITIATION_LEN: usize = 8 + NOISE_1_LEN + 2 * MAC_LEN;
/// Length of a response that carries nothing extra.
pub const RESPONSE_LEN: usize = 12 + NOISE_2_LEN + 2 * MAC_LEN;
/// Length of a cookie reply.
pub const COOKIE_LEN: usize = 8 + SALT_LEN + MAC_LEN + TAG_LEN;

const INITIATION: u8 = 0x81;
const RESPONSE: u8 = 0x82;
const COOKIE: u8 = 0x83;
const DATA: u8 = 0x84;
pub(super) const ENVELOPE: u8 = 0x85;
/// How many bytes of an envelope are sealed: the receiver of the datagram inside, and its header,
/// which would name its session.
pub(super) const ENVELOPE_SEALED_LEN: usize = FRAME_HEADER_LEN + HEADER_LEN;
/// An envelope holds a data datagram, of which more than the sealed part is left.
const ENVELOPE_LEAST_LEN: usize = HEADER_LEN + ENVELOPE_SEALED_LEN + 2 * TAG_LEN;

/// A parsed datagram; nothing in it is verified yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// Opens a handshake.
    Initiation {
        /// The index for the answer.
        sender: u32,
        /// Noise message 1.
        noise: &'a [u8],
    },
    /// Answers an initiation.
    Response {
        /// The responder's index for the new session.
        sender: u32,
        /// The index from the initiation.
        receiver: u32,
        /// Noise message 2.
        noise: &'a [u8],
    },
    /// Answers an initiation under load: repeat it with this cookie.
    Cookie {
        /// The index from the initiation.
        receiver: u32,
        /// Makes the sealing key unique.
        salt: &'a [u8],
        /// The sealed cookie.
        sealed: &'a [u8],
    },
    /// A sealed frame.
    Data {
        /// The receiver's index of the session.
        receiver: u32,
        /// The nonce.
        counter: u64,
    },
    /// A sealed datagram on its way through a relay.
    Envelope {
        /// The receiver's index of the session.
        receiver: u32,
        /// The nonce.
        counter: u64,
    },
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, b| n << 8 | u32::from(*b))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(number(bytes, at)) << 32 | u64::from(number(bytes, at + 4))
}

/// Whether `bytes` may be a link's datagram at all.
pub fn is_ours(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_some_and(|kind| (INITIATION..=ENVELOPE).contains(kind))
}

/// Parses a datagram. Never panics; checks lengths only.
pub fn parse(bytes: &[u8]) -> Result<Datagram<'_>, LinkRefusal> {
    match (bytes.first(), bytes.len()) {
        (Some(&DATA), n) if n >= HEADER_LEN + TAG_LEN => Ok(Datagram::Data {
            receiver: number(bytes, 4),
            counter: long(bytes, 8),
        }),
        (Some(&ENVELOPE), n) if n >= ENVELOPE_LEAST_LEN => Ok(Datagram::Envelope {
            receiver: number(bytes, 4),
            counter: long(bytes, 8),
        }),
        (Some(&INITIATION), n)
            if (INITIATION_LEN..=INITIATION_LEN + MAX_EXTRA_LEN).contains(&n) =>
        {
            Ok(Datagram::Initiation {
                sender: number(bytes, 4),
                noise: &bytes[8..n - 2 * MAC_LEN],
            })
        }
        (Some(&RESPONSE), n) if (RESPONSE_LEN..=RESPONSE_LEN + MAX_EXTRA_LEN).contains(&n) => {
            Ok(Datagram::Response {
                sender: number(bytes, 4),
                receiver: number(bytes, 8),
                noise: &bytes[12..n - 2 * MAC_LEN],
            })
        }
        (Some(&COOKIE), COOKIE_LEN) => Ok(Datagram::Cookie {
            receiver: number(bytes, 4),
            salt: &bytes[8..8 + SALT_LEN],
            sealed: &bytes[8 + SALT_LEN..],
        }),
        _ => Err(LinkRefusal::Malformed),
    }
}

/// An initiation with empty MACs.
pub fn initiation(sender: u32, noise: &[u8]) -> Vec<u8> {
    let mut out = vec![INITIATION, 0, 0, 0];
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(noise);
    out.extend_from_slice(&[0; 2 * MAC_LEN]);
    out
}

/// A response with empty MACs.
pub fn response(sender: u32, receiver: u32, noise: &[u8]) -> Vec<u8> {
    let mut out = vec![RESPONSE, 0, 0, 0];
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(&receiver.to_be_bytes());
    out.extend_from_slice(noise);
    out.extend_from_slice(&[0; 2 * MAC_LEN]);
    out
}

/// A cookie reply.
pub fn cookie(receiver: u32, salt: &[u8; SALT_LEN], sealed: &[u8]) -> Vec<u8> {
    let mut out = vec![COOKIE, 0, 0, 0];
    out.extend_from_slice(&receiver.to_be_bytes());
    out.extend_from_slice(salt);
    out.extend_from_slice(sealed);
    out
}

/// Writes the header of a data datagram into the first [`HEADER_LEN`] bytes.
pub fn write_data_header(out: &mut [u8], receiver: u32, counter: u64) {
    write_header(out, DATA, receiver, counter);
}

/// Writes the header of an envelope into the first [`HEADER_LEN`] bytes.
pub(super) fn write_envelope_header(out: &mut [u8], receiver: u32, counter: u64) {
    write_header(out, ENVELOPE, receiver, counter);
}

fn write_header(out: &mut [u8], kind: u8, receiver: u32, counter: u64) {
    out[..4].copy_from_slice(&[kind, 0, 0, 0]);
    out[4..8].copy_from_slice(&receiver.to_be_bytes());
    out[8..16].copy_from_slice(&counter.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0x80u8..0x87
        ) {
            let _ = parse(&bytes);
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let _ = parse(&bytes);
        }

        #[test]
        fn what_is_written_is_what_is_read(sender: u32, receiver: u32, counter: u64) {
            let noise = [7; NOISE_2_LEN];
            let bytes = response(sender, receiver, &noise);
            prop_assert_eq!(
                parse(&bytes), Ok(Datagram::Response { sender, receiver, noise: &noise })
            );
            let noise = [9; NOISE_1_LEN];
            let bytes = initiation(sender, &noise);
            prop_assert_eq!(parse(&bytes), Ok(Datagram::Initiation { sender, noise: &noise }));
            let mut data = [0; HEADER_LEN + TAG_LEN];
            write_data_header(&mut data, receiver, counter);
            prop_assert_eq!(parse(&data), Ok(Datagram::Data { receiver, counter }));
            let mut envelope = [0; ENVELOPE_LEAST_LEN];
            write_envelope_header(&mut envelope, receiver, counter);
            prop_assert_eq!(parse(&envelope), Ok(Datagram::Envelope { receiver, counter }));
            prop_assert!(
                parse(&envelope[1..]).is_err() && parse(
                    &envelope[..ENVELOPE_LEAST_LEN - 1]
                ).is_err()
            );
        }
    }
}
