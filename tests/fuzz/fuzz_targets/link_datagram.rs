//! UDP datagrams before anything is authenticated, and the handshake in them.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::link::{Keys, OpenedInitiation, cookie::mac1_verifies, wire};
use std::sync::LazyLock;

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new([9; 32].into()));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(wire::Datagram::Initiation { sender, noise }) = wire::parse(bytes) {
        let _ = OpenedInitiation::read(&KEYS, sender, noise);
    }
    let _ = mac1_verifies(bytes, &[7; 32]);
});
