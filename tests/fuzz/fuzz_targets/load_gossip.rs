//! Load vectors and offers of the autonomic managers: what decodes can be encoded and decoded
//! again.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_autonomic::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert!(Message::decode(&message.encode()).is_ok());
    }
});
