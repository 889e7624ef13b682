//! Golden bytes of a link's datagrams and frames, sealed ones with fixed keys. Those of the
//! handshake stand beside it.

use super::{
    cookie,
    frame::{Frame, ROAMED, short_id},
    session::{Cipher, Parts, Session},
    wire::{self, Datagram, ENVELOPE_SEALED_LEN, HEADER_LEN, NOISE_1_LEN, NOISE_2_LEN, TAG_LEN},
};
use crate::{
    golden::{self, variants},
    id::{Epoch, MemberId},
};
use std::time::Instant;

fn frames() -> Vec<(&'static str, Frame)> {
    let ip = |passed_on| Frame::Ip {
        from_epoch: 0x0102_0304,
        to_epoch: 0x0506_0708,
        passed_on,
    };
    let moved = |addr: &str| Frame::Moved {
        addr: addr.parse().expect("an address"),
        member: MemberId([4; 32]),
        epoch: Epoch(300),
    };
    let relayed = short_id(&MemberId([5; 32]));
    variants! {
        Frame::Ip { .. } => { "frame.ip": ip(false), "frame.ip-passed-on": ip(true) }
        Frame::Ping(_) => { "frame.ping": Frame::Ping(7), "frame.roamed": Frame::Ping(ROAMED | 7) }
        Frame::Pong(_) => { "frame.pong": Frame::Pong(7) }
        Frame::Keepalive => { "frame.keepalive": Frame::Keepalive }
        Frame::ForwardTo(_) => { "frame.forward-to": Frame::ForwardTo(relayed) }
        Frame::ForwardFrom(_) => { "frame.forward-from": Frame::ForwardFrom(relayed) }
        Frame::Ring { .. } => {
            "frame.ring": Frame::Ring { flags: 0x10, hops: 31, version: 1, to: 1 << 40 },
        }
        Frame::Piece { .. } => { "frame.piece": Frame::Piece { id: 70_000, index: 1, count: 2 } }
        Frame::Moved { .. } => {
            "frame.moved": moved("10.9.0.7"),
            "frame.moved-v6": moved("fd00::7"),
        }
    }
}

fn datagrams() -> Vec<(&'static str, Datagram<'static>)> {
    let (sender, receiver, counter) = (0x0102_0304, 0x0506_0708, 0x1112_1314_1516_1718);
    variants! {
        Datagram::Initiation { .. } => {
            "initiation": Datagram::Initiation { sender, noise: &[1; NOISE_1_LEN] },
            "initiation.extra": Datagram::Initiation { sender, noise: &[1; NOISE_1_LEN + 5] },
        }
        Datagram::Response { .. } => {
            "response": Datagram::Response { sender, receiver, noise: &[2; NOISE_2_LEN] },
        }
        Datagram::Cookie { .. } => {
            "cookie": Datagram::Cookie { receiver, salt: &[3; 32], sealed: &[4; 32] },
        }
        Datagram::Data { .. } => { "data": Datagram::Data { receiver, counter } }
        Datagram::Envelope { .. } => { "envelope": Datagram::Envelope { receiver, counter } }
    }
}

fn write(datagram: &Datagram<'_>) -> Vec<u8> {
    match *datagram {
        Datagram::Initiation { sender, noise } => wire::initiation(sender, noise),
        Datagram::Response {
            sender,
            receiver,
            noise,
        } => wire::response(sender, receiver, noise),
        Datagram::Cookie {
            receiver,
            salt,
            sealed,
        } => wire::cookie(receiver, salt.try_into().expect("a salt"), sealed),
        Datagram::Data { receiver, counter } => {
            let mut out = vec![0; HEADER_LEN + TAG_LEN];
            wire::write_data_header(&mut out, receiver, counter);
            out
        }
        Datagram::Envelope { receiver, counter } => {
            let mut out = vec![0; HEADER_LEN + ENVELOPE_SEALED_LEN + 2 * TAG_LEN];
            wire::write_envelope_header(&mut out, receiver, counter);
            out
        }
    }
}

#[test]
fn members_of_the_previous_version_read_every_frame_and_datagram() {
    golden::check("link", |golden| {
        golden.messages(frames(), Frame::to_bytes, Frame::parse);
        for (name, datagram) in datagrams() {
            let bytes = write(&datagram);
            golden.bytes(name, &bytes);
            assert_eq!(wire::parse(&bytes), Ok(datagram), "{name}");
        }
    });
}

fn session(cipher: Cipher, initiator: bool) -> Session {
    let (forward, back) = ([1; 32], [2; 32]);
    let (sealing, opening) = if initiator {
        (forward, back)
    } else {
        (back, forward)
    };
    let parts = Parts {
        local: 7,
        remote: 9,
        cipher,
        initiator,
        sealing: &sealing,
        opening: &opening,
    };
    Session::new(parts, Instant::now())
}

/// The second of two datagrams, so that the counter counts too.
fn sealed(session: &Session, plain: &[u8], is_envelope: bool) -> Vec<u8> {
    let seal = || {
        let mut out = [&[0; HEADER_LEN][..], plain, &[0; TAG_LEN]].concat();
        let len = if is_envelope {
            session.seal_envelope(&mut out, plain.len())
        } else {
            session.seal(&mut out, plain.len())
        };
        assert_eq!(len, Some(out.len()));
        out
    };
    drop(seal());
    seal()
}

#[test]
fn members_of_the_previous_version_open_what_is_sealed() {
    golden::check("sealed", |golden| {
        let ciphers = variants! {
            Cipher::Aes256Gcm => { "aes-256-gcm": Cipher::Aes256Gcm }
            Cipher::ChaCha20Poly1305 => { "chacha20-poly1305": Cipher::ChaCha20Poly1305 }
        };
        let plain: Vec<u8> = (0..80).collect();
        for (name, cipher) in ciphers {
            for is_envelope in [false, true] {
                let kind = if is_envelope { "envelope" } else { "data" };
                let mut datagram = sealed(&session(cipher, true), &plain, is_envelope);
                golden.bytes(&format!("{kind}.{name}"), &datagram);
                let far = session(cipher, false);
                let opened = if is_envelope {
                    far.open_envelope(&mut datagram, 1)
                } else {
                    far.open(&mut datagram, 1)
                };
                assert_eq!(
                    opened.map(|plain| plain.to_vec()),
                    Ok(plain.clone()),
                    "{name}"
                );
            }
        }
        let (me, cookie, salt) = ([3; 32], [4; 16], [5; 32]);
        let mut message = vec![9; 100];
        cookie::stamp(&mut message, &me, None);
        golden.bytes("macs", &message);
        assert!(cookie::mac1_verifies(&message, &me));
        let bound_to = cookie::mac1_of(&message).expect("it is stamped");
        cookie::stamp(&mut message, &me, Some(&cookie));
        golden.bytes("macs.with-cookie", &message);
        golden.message(
            "cookie",
            &cookie,
            |cookie| cookie::seal(&salt, cookie, &me, &bound_to).expect("keys of the right length"),
            |sealed| cookie::open(&salt, sealed, &me, &bound_to).ok(),
        );
    });
}
