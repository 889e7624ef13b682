//! Messages between two connectors, over the control plane and over the ring.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::connect::message::{
    Answer, Introduction, Request, RingAnswer, RingRequest, decode, encode
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(request) = decode::<Request>(bytes) {
        assert_eq!(decode(&encode(&request)), Some(request));
    }
    if let Some(answer) = decode::<Answer>(bytes) {
        assert_eq!(decode(&encode(&answer)), Some(answer));
    }
    if let Some(request) = decode::<RingRequest>(bytes) {
        assert_eq!(decode(&encode(&request)), Some(request));
    }
    let _ = decode::<RingAnswer>(bytes);
    let _ = decode::<Introduction>(bytes);
});
