//! Receipts as hosts send them, and the answers of owners.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_authority::{Receipt, Reply, Size};
use p2pvm_overlay::UnixTime;

fuzz_target!(|bytes: &[u8]| {
    if let Some(reply) = Reply::from_bytes(bytes) {
        assert_eq!(Reply::from_bytes(&reply.to_bytes()), Some(reply));
    }
    let Ok(receipt) = Receipt::from_bytes(bytes) else { return };
    assert_eq!(Receipt::from_bytes(&receipt.to_bytes()), Ok(receipt.clone()));
    let Ok(terms) = receipt.terms() else { return };
    let _ = receipt.open(terms.host, terms.owner);
    let _ = terms.check_period(terms.to, UnixTime(0));
    let size = Size { cpus: u32::MAX, ..Size::default() };
    let _ = terms.check_amounts(|_| Some((size, terms.from)));
});
