//! STUN binding requests and answers (RFC 8489), by which a member learns the address that its
//! packets wear outside its NAT. Every member answers on its plane's UDP port; there is no server.
//!
//! | bytes | header (§5) | attribute (§14) |
//! |---|---|---|
//! | 0..2 | method and class | type |
//! | 2..4 | length of the attributes | length of the value |
//! | 4..8 | magic cookie | value, padded to four bytes |
//! | 8..20 | transaction | |
//!
//! Attributes other than XOR-MAPPED-ADDRESS are read past: there is no authentication to check.

use std::net::{IpAddr, SocketAddr};

/// Names a request and its answer.
pub type TransactionId = [u8; 12];

/// The longest message that is looked at; a binding request has 28 bytes, an answer 52.
const MAX_LEN: usize = 548;
const HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
/// What a fingerprint's CRC-32 is XORed with (§14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Whether a datagram is STUN: two zero bits, and the magic cookie (RFC 8489 §5).
pub fn is_stun(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER
        && bytes.len() <= MAX_LEN
        && bytes[0] < 0x40
        && bytes[4..8] == MAGIC_COOKIE
}

/// An address and port, XORed with the cookie and, in IPv6, the transaction (§14.2).
fn xored(address: SocketAddr, id: &TransactionId) -> Vec<u8> {
    let mask = [&MAGIC_COOKIE[..], id].concat();
    let (family, octets) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let port = address.port().to_be_bytes();
    let mut value = vec![0, family];
    for (byte, mask) in port.iter().zip(&mask).chain(octets.iter().zip(&mask)) {
        value.push(byte ^ mask);
    }
    value
}

/// The address in the value of a XOR-MAPPED-ADDRESS.
fn unxored(value: &[u8], id: &TransactionId) -> Option<SocketAddr> {
    let mask = [&MAGIC_COOKIE[..], id].concat();
    let (head, octets) = value.split_at_checked(4)?;
    let port = u16::from_be_bytes([head[2] ^ mask[0], head[3] ^ mask[1]]);
    let octets: Vec<u8> = octets.iter().zip(&mask).map(|(o, m)| o ^ m).collect();
    let ip: IpAddr = match head[1] {
        1 => <[u8; 4]>::try_from(octets.get(..4)?).ok()?.into(),
        2 => <[u8; 16]>::try_from(octets.get(..16)?).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

/// A message with its fingerprint, which is the last attribute and covers what is before it.
fn encode(kind: u16, id: &TransactionId, mapped: Option<SocketAddr>) -> Vec<u8> {
    let mut attributes = Vec::new();
    if let Some(mapped) = mapped {
        push(&mut attributes, XOR_MAPPED_ADDRESS, &xored(mapped, id));
    }
    let len = attributes.len() as u16 + 8;
    let mut message = [
        &kind.to_be_bytes()[..],
        &len.to_be_bytes(),
        &MAGIC_COOKIE,
        id,
    ]
    .concat();
    message.extend(attributes);
    let crc = crc32fast::hash(&message) ^ FINGERPRINT_XOR;
    push(&mut message, FINGERPRINT, &crc.to_be_bytes());
    message
}

/// The transaction and the attributes of a message of this kind; `None` for any other.
fn decode(bytes: &[u8], kind: u16) -> Option<(TransactionId, &[u8])> {
    if !is_stun(bytes) || bytes[..2] != kind.to_be_bytes() {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let attributes = bytes.get(HEADER..HEADER + len)?;
    let mut rest = attributes;
    while !rest.is_empty() {
        (_, _, rest) = attribute(rest)?;
    }
    Some((bytes[8..HEADER].try_into().ok()?, attributes))
}

/// The first attribute's type and value, and what follows it.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(4)?;
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let value = rest.get(..len)?;
    let kind = u16::from_be_bytes([head[0], head[1]]);
    // Padding that the last attribute lacks is not missed.
    let next = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, value, next))
}

/// A binding request and its transaction.
pub fn request() -> Option<(TransactionId, Vec<u8>)> {
    let id = new_transaction();
    Some((id, encode(BINDING_REQUEST, &id, None)))
}

/// The answer to a binding request that came from `from`; `None` for anything else.
pub fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let (id, _) = decode(request, BINDING_REQUEST)?;
    Some(encode(BINDING_SUCCESS, &id, Some(from)))
}

/// A transaction that nobody else has.
pub fn new_transaction() -> TransactionId {
    rand::random()
}

/// An answer to a request that was never sent: what a member sends on behalf of another, so that
/// `to` learns whom its NAT lets in (RFC 5780's CHANGE-REQUEST, with members for a server's two
/// addresses).
pub fn unasked(id: TransactionId, to: SocketAddr) -> Option<Vec<u8>> {
    Some(encode(BINDING_SUCCESS, &id, Some(to)))
}

/// What an answer says: which request it belongs to, and our address as its sender saw it.
pub fn mapped(answer: &[u8]) -> Option<(TransactionId, SocketAddr)> {
    let (id, mut attributes) = decode(answer, BINDING_SUCCESS)?;
    loop {
        let (kind, value, rest) = attribute(attributes)?;
        if kind == XOR_MAPPED_ADDRESS {
            let mapped = unxored(value, &id)?;
            return Some((
                id,
                SocketAddr::new(mapped.ip().to_canonical(), mapped.port()),
            ));
        }
        attributes = rest;
    }
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

    /// RFC 5769 §2.2 and §2.3: answers with SOFTWARE, an address, an integrity and a fingerprint.
    #[test]
    fn the_sample_answers_of_rfc_5769_are_read() {
        let id = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let software = b"\x80\x22\x00\x0btest vector ";
        let v4 = b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let v6 = b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\
            \xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
        let integrity = [&b"\x00\x08\x00\x14"[..], &[0x2b; 20]].concat();
        for (address, expected) in [
            (&v4[..], "192.0.2.1:32853"),
            (&v6[..], "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
        ] {
            let attributes = [&software[..], address, &integrity, b"\x80\x28\x00\x04abcd"].concat();
            let len = (attributes.len() as u16).to_be_bytes();
            let answer = [b"\x01\x01", &len[..], &MAGIC_COOKIE, &id, &attributes].concat();
            assert_eq!(mapped(&answer), Some((id, expected.parse().unwrap())));
            let own = encode(BINDING_SUCCESS, &id, Some(expected.parse().unwrap()));
            assert_eq!(own[HEADER..HEADER + address.len()], *address);
        }
    }

    /// RFC 5769 §2.1.
    #[test]
    fn the_sample_request_of_rfc_5769_is_answered_with_a_right_fingerprint() {
        let request = data_encoding::HEXLOWER
            .decode(
                b"000100582112a442b7e7a701bc34d686fa87dfae\
                802200105354554e207465737420636c69656e74002400046e0001ff\
                80290008932ff9b151263b36000600096576746a3a68367659202020\
                000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
            )
            .unwrap();
        let from = ([192, 0, 2, 1], 32853).into();
        let answer = answer(&request, from).unwrap();
        assert_eq!(mapped(&answer).unwrap().0, request[8..20]);
        for message in [request, answer] {
            let (covered, fingerprint) = message.split_at(message.len() - 8);
            let crc = crc32fast::hash(covered) ^ FINGERPRINT_XOR;
            assert_eq!(fingerprint[4..], crc.to_be_bytes());
        }
    }

    #[test]
    fn what_is_cut_off_or_of_another_kind_is_no_answer() {
        let from = ([192, 0, 2, 1], 1).into();
        let answer = unasked([7; 12], from).unwrap();
        for len in 0..answer.len() {
            assert_eq!(mapped(&answer[..len]), None, "{len} bytes");
        }
        let mut indication = answer.clone();
        indication[0] = 0;
        indication[1] = 0x11;
        assert!(mapped(&indication).is_none() && super::answer(&indication, from).is_none());
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
