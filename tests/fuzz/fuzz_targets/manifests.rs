//! Chunks as members send them: their stored form, and the trees of files and checkpoints.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_snapshot_sync::{chunk, exchange::wire::Frame, manifest};

fuzz_target!(|bytes: &[u8]| {
    manifest::parse(bytes);
    for magic in [&b"p2pvmN1\n"[..], b"p2pvmP1\n"] {
        manifest::parse(&[magic, bytes].concat());
    }
    chunk::parse(bytes);
    let mut stream = bytes;
    while let Ok(Some(_)) = futures::executor::block_on(Frame::read(&mut stream)) {}
});
