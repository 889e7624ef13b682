//! STUN from anyone: an answer never amplifies more than three times.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::stun;

fuzz_target!(|bytes: &[u8]| {
    if let Some(answer) = stun::answer(bytes, ([192, 0, 2, 1], 7).into()) {
        assert!(answer.len() <= 3 * bytes.len());
    }
    let _ = stun::mapped(bytes);
});
