//! STUN binding requests and answers (RFC 8489), by which a member learns the outside address of
//! its packets. Every member answers on its plane's UDP port; there is no server.

use std::net::SocketAddr;
use stun_rs::{
    DecoderContextBuilder, MessageClass, MessageDecoderBuilder, MessageEncoderBuilder, StunMessage,
    StunMessageBuilder,
    attributes::stun::{Fingerprint, XorMappedAddress},
    methods::BINDING,
};

/// The id of a request and its answer.
pub type TransactionId = [u8; 12];

/// How many bytes a message has at most; a binding request has 28, an answer 52.
const MAX_LEN: usize = 548;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Whether a datagram is STUN: two zero bits, and the magic cookie (RFC 8489 §5).
pub fn is_stun(bytes: &[u8]) -> bool {
    bytes.len() >= 20 && bytes.len() <= MAX_LEN && bytes[0] < 0x40 && bytes[4..8] == MAGIC_COOKIE
}

fn encode(message: &StunMessage) -> Option<Vec<u8>> {
    let mut out = vec![0; 128];
    let len = MessageEncoderBuilder::default()
        .build()
        .encode(&mut out, message)
        .ok()?;
    out.truncate(len);
    Some(out)
}

/// A binding request and its transaction.
pub fn request() -> Option<(TransactionId, Vec<u8>)> {
    let id = new_transaction();
    Some((id, request_of(id)?))
}

pub(crate) fn request_of(id: TransactionId) -> Option<Vec<u8>> {
    let message = StunMessageBuilder::new(BINDING, MessageClass::Request)
        .with_transaction_id(id.into())
        .with_attribute(Fingerprint::default())
        .build();
    encode(&message)
}

fn transaction(bytes: &[u8]) -> Option<TransactionId> {
    bytes.get(8..20)?.try_into().ok()
}

fn decode(bytes: &[u8]) -> Option<StunMessage> {
    if !is_stun(bytes) {
        return None;
    }
    let context = DecoderContextBuilder::default().build();
    MessageDecoderBuilder::default()
        .with_context(context)
        .build()
        .decode(bytes)
        .ok()
        .map(|(message, _)| message)
}

/// The answer to a binding request that came from `from`; `None` for anything else.
pub fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let message = decode(request)?;
    if message.method() != BINDING || message.class() != MessageClass::Request {
        return None;
    }
    let answer = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(*message.transaction_id())
        .with_attribute(XorMappedAddress::from(from))
        .with_attribute(Fingerprint::default())
        .build();
    encode(&answer)
}

/// A new transaction id.
pub fn new_transaction() -> TransactionId {
    rand::random()
}

/// An answer to a request that was never sent: a member sends it on behalf of another, so that `to`
/// learns which packets its NAT lets in (RFC 5780's CHANGE-REQUEST, with members for a server's two
/// addresses).
pub fn unasked(id: TransactionId, to: SocketAddr) -> Option<Vec<u8>> {
    let answer = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(id.into())
        .with_attribute(XorMappedAddress::from(to))
        .with_attribute(Fingerprint::default())
        .build();
    encode(&answer)
}

/// The request that an answer belongs to, and our address as its sender saw it.
pub fn mapped(answer: &[u8]) -> Option<(TransactionId, SocketAddr)> {
    let message = decode(answer)?;
    if message.method() != BINDING || message.class() != MessageClass::SuccessResponse {
        return None;
    }
    let mapped = *message
        .get::<XorMappedAddress>()?
        .as_xor_mapped_address()
        .ok()?
        .socket_address();
    Some((
        transaction(answer)?,
        SocketAddr::new(mapped.ip().to_canonical(), mapped.port()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_asker_learns_the_address_it_was_seen_at() {
        for from in ["198.51.100.7:40001", "[2001:db8::7]:9"] {
            let from: SocketAddr = from.parse().unwrap();
            let (id, request) = request().unwrap();
            assert_eq!(mapped(&answer(&request, from).unwrap()), Some((id, from)));
            assert!(request.len() <= 28, "an answer must not amplify much");
        }
    }

    #[test]
    fn an_answer_is_not_answered() {
        let (_, request) = request().unwrap();
        let reply = answer(&request, ([192, 0, 2, 1], 1).into()).unwrap();
        assert!(answer(&reply, ([192, 0, 2, 1], 1).into()).is_none() && mapped(&request).is_none());
    }

    #[test]
    fn an_answer_nobody_asked_for_names_the_transaction_it_was_given() {
        let to = ([192, 0, 2, 1], 7).into();
        let id = new_transaction();
        assert_eq!(mapped(&unasked(id, to).unwrap()), Some((id, to)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..160), class in 0u8..2
        ) {
            (bytes[0], bytes[1]) = (class, 1);
            bytes[4..8].copy_from_slice(&MAGIC_COOKIE);
            let len = (bytes.len() - 20) as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            let _ = (answer(&bytes, ([192, 0, 2, 1], 1).into()), mapped(&bytes));
        }
    }
}
