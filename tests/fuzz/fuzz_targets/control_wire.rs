//! The messages of admission, gossip, and the framing of the control plane.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::control_wire::{
    AdmitRequest, Contact, Gossip, Hello, MAX_HELLO_BYTES, Reply, decode, read_header, read_value
};

fuzz_target!(|bytes: &[u8]| {
    let _ = decode::<Hello>(bytes);
    let _ = decode::<Reply>(bytes);
    let _ = decode::<Gossip>(bytes);
    let _ = decode::<Vec<Contact>>(bytes);
    let _ = decode::<AdmitRequest>(bytes);
    let _ = futures::executor::block_on(read_header(&mut &*bytes));
    let mut stream = bytes;
    let _ = futures::executor::block_on(read_value::<Hello>(&mut stream, MAX_HELLO_BYTES));
});
