//! The streams of a migration, and the checkpoints that it may leave.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::BoxStream;
use p2pvm_vm_manager::{
    checkpoint::SavedVm,
    migrate::{pace, tunnel},
};
use std::io::Cursor;
use tokio::io::{empty, join, sink};

fuzz_target!(|bytes: &[u8]| {
    if let Some(saved) = SavedVm::from_bytes(bytes) {
        assert_eq!(SavedVm::from_bytes(&saved.to_bytes()), Some(saved));
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        let mut stream: BoxStream = Box::new(join(Cursor::new(bytes.to_vec()), sink()));
        let _ = tunnel::read_header(&mut stream).await;
        let _ = pace::join(join(empty(), sink()), join(Cursor::new(bytes.to_vec()), sink())).await;
    });
});
