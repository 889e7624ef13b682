//! What comes in by UDP before anything is authenticated.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::link::{cookie::mac1_verifies, wire};

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::parse(bytes);
    let _ = mac1_verifies(bytes, &[7; 32]);
});
