//! The exchange of chunks between members: requests, answers and frames.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_snapshot_sync::exchange::wire::{Answer, Frame, Request};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = Request::parse(bytes) {
        assert!(Request::parse(&request.to_bytes()).is_ok());
    }
    let _ = Answer::parse(bytes);
    if let Some((kind, rest)) = bytes.split_first() {
        let _ = Frame::parse(*kind, rest.to_vec());
    }
});
