//! The bytes of a sealed chunk.

use super::*;
use crate::golden;

#[test]
fn later_versions_open_a_sealed_chunk() {
    golden::check("seal", |golden| {
        let key = SealKey::derive(&[7; 32]);
        golden.message(
            "chunk",
            &b"page".to_vec(),
            |content| key.seal(&mut Encoder::new(), content).split_off(1),
            |sealed| key.open(ChunkId([0; 32]), sealed.to_vec()).ok(),
        );
        golden.bytes("note", format!("{NOTE} {NOTE_VALUE}").as_bytes());
    });
}
