//! The frame in a sealed datagram: what parses is encoded to the same frame.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::link::frame::Frame;

fuzz_target!(|bytes: &[u8]| {
    if let Some(frame) = Frame::parse(bytes) {
        assert_eq!(Frame::parse(&frame.to_bytes()), Some(frame));
    }
});
