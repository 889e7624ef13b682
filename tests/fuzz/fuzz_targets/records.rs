//! Requests to a replica: any bytes, answered over a real (memory) store without a panic.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_dht::{Limits, MemoryStore, replica::Replica, wire};
use p2pvm_overlay::{MemberId, UnixTime};
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::parse::<wire::Reply>(bytes);
    if let Some(request) = wire::parse::<wire::Request>(bytes) {
        let mut replica = Replica::new(
            MemberId([1; 32]), Arc::new(MemoryStore::default()), Limits::default()
        );
        let _ = replica.handle(UnixTime(1_800_000_000), MemberId([2; 32]), request);
    }
});
