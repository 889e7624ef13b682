//! IP packets and Ethernet frames of guests and members.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::plane::{look_at, packet};

fuzz_target!(|bytes: &[u8]| {
    look_at(bytes);
    let _ = packet::addresses(bytes);
    let _ = packet::sort_guest_frame(bytes);
    if let [start, offset, rest @ ..] = bytes {
        let _ = packet::complete_checksum(
            &mut rest.to_vec(), usize::from(*start), usize::from(*offset)
        );
    }
});
