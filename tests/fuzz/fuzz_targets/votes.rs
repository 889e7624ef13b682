//! Requests to a voter.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = p2pvm_dht::votes::parse_request(bytes);
});
