//! What two connectors say to each other.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::connect::message::{Answer, Request, decode, encode};

fuzz_target!(|bytes: &[u8]| {
    if let Some(request) = decode::<Request>(bytes) {
        assert_eq!(decode(&encode(&request)), Some(request));
    }
    if let Some(answer) = decode::<Answer>(bytes) {
        assert_eq!(decode(&encode(&answer)), Some(answer));
    }
});
