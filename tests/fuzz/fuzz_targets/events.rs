//! Events as hosts keep them in files, and proofs that come from anywhere.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_authority::{EventProof, Frame, KeptEvent, frames, write_frame};

fuzz_target!(|bytes: &[u8]| {
    let (found, good) = frames(bytes);
    assert!(good <= bytes.len());
    let mut again = Vec::new();
    for frame in &found {
        write_frame(&mut again, frame);
        if let Frame::Event(kept) = frame {
            let _ = kept.event();
        }
    }
    assert_eq!(frames(&again), (found, again.len()));
    if let Ok(kept) = KeptEvent::from_bytes(bytes) {
        assert_eq!(KeptEvent::from_bytes(&kept.to_bytes()), Ok(kept.clone()));
        let _ = kept.event();
    }
    if let Ok(proof) = EventProof::from_bytes(bytes) {
        assert_eq!(proof.to_bytes(), bytes);
        let _ = proof.check();
    }
});
