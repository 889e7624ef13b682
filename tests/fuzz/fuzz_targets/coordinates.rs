//! Network coordinates of others: one that decodes never moves our own out of bounds.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::coordinates::{Coordinate, Vivaldi};
use std::time::Duration;

fuzz_target!(|bytes: &[u8]| {
    let Some((rtt, rest)) = bytes.split_first_chunk::<8>() else { return };
    if let Ok(remote) = postcard::from_bytes::<Coordinate>(rest) {
        let mut mine = Vivaldi::new(1);
        let _ = mine.observe(Duration::from_micros(u64::from_le_bytes(*rtt)), &remote);
        let again = postcard::to_allocvec(&mine.mine()).expect("a coordinate is plain numbers");
        assert!(postcard::from_bytes::<Coordinate>(&again).is_ok());
    }
});
