//! Requests to a replica: any bytes, answered over a real (memory) store without a panic.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_dht::{MemoryStore, replica::Replica, wire};
use p2pvm_overlay::UnixTime;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::parse::<wire::Reply>(bytes);
    if let Some(request) = wire::parse::<wire::Request>(bytes) {
        let mut replica = Replica::new(Arc::new(MemoryStore::default()));
        let _ = replica.handle(UnixTime(1_800_000_000), request);
    }
});
