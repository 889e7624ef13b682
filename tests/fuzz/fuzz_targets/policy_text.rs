//! The policy that a person writes, and the signed notices of members.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::membership::{NetworkPolicy, Notice};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = NetworkPolicy::parse(text);
    }
    let _ = postcard::from_bytes::<Notice>(bytes);
    let _ = p2pvm_overlay::notices::parse(bytes);
});
