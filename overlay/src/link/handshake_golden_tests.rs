//! Golden bytes of a handshake whose keys, ephemeral ones too, are fixed.

use super::*;
use crate::{
    golden,
    link::wire::{HEADER_LEN, TAG_LEN},
};

/// Nanoseconds since 1970.
const TIMESTAMP: u128 = 1_700_000_000_123_456_789;
const INDEX: (u32, u32) = (0x0102_0304, 0x0506_0708);

fn keys(seed: u8) -> Keys {
    Keys::new(Zeroizing::new([seed; 32]))
}

fn initiator(own: &Keys, peer: &Keys) -> HandshakeState {
    own.builder()
        .expect("a key")
        .remote_public_key(&peer.public)
        .expect("a key")
        .fixed_ephemeral_key_for_testing_only(&[3; 32])
        .build_initiator()
        .expect("a handshake")
}

fn responder(own: &Keys) -> HandshakeState {
    own.builder()
        .expect("a key")
        .fixed_ephemeral_key_for_testing_only(&[4; 32])
        .build_responder()
        .expect("a handshake")
}

fn sealed(session: &Session) -> Vec<u8> {
    let mut out = [&[0; HEADER_LEN][..], b"frame", &[0; TAG_LEN]].concat();
    assert_eq!(session.seal(&mut out, 5), Some(out.len()));
    out
}

#[test]
fn members_of_the_previous_version_shake_hands() {
    golden::check("handshake", |golden| {
        for (name, cipher) in [
            ("offer.aes-256-gcm", Cipher::Aes256Gcm),
            ("offer.chacha20-poly1305", Cipher::ChaCha20Poly1305),
        ] {
            golden.bytes(name, &offer(cipher, TIMESTAMP, b"extra"));
        }
        // What is chosen must not depend on this machine: AES needs both CPUs.
        let payload = offer(Cipher::ChaCha20Poly1305, TIMESTAMP, b"extra");
        let (here, there, now) = (keys(1), keys(2), Instant::now());
        let (mut pending, first) =
            open_with(initiator(&here, &there), INDEX.0, &payload).expect("an initiation");
        golden.bytes("message-1", &first);
        let opened =
            OpenedInitiation::read_with(responder(&there), INDEX.0, &first).expect("genuine");
        assert_eq!(
            (opened.peer, opened.timestamp, &opened.extra[..]),
            (here.public(), TIMESTAMP, &b"extra"[..])
        );
        let (theirs, second, index) = opened.answer(now, INDEX.1, b"answer").expect("room");
        golden.bytes("message-2", &second);
        let (ours, extra) = pending.finish(now, INDEX.1, &second).expect("genuine");
        assert_eq!((index, &extra[..]), (INDEX.0, &b"answer"[..]));
        let (mut forth, mut back) = (sealed(&ours), sealed(&theirs));
        golden.bytes("data.of-initiator", &forth);
        golden.bytes("data.of-responder", &back);
        assert_eq!(theirs.open(&mut forth, 0).as_deref(), Ok(&b"frame"[..]));
        assert_eq!(ours.open(&mut back, 0).as_deref(), Ok(&b"frame"[..]));
    });
}
