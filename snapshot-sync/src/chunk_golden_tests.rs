//! A chunk's name and its stored forms.

use super::*;
use crate::golden;

const PLAIN_CONTENT: &[u8] = b"p2pvm";

#[test]
fn the_previous_version_reads_chunks_under_the_same_names() {
    golden::check("chunk", |golden| {
        let (plain, zeros) = (ChunkId::of(PLAIN_CONTENT), ChunkId::of(&[0; 4096]));
        golden.bytes("id", &plain.0);
        golden.bytes("id.text", plain.to_string().as_bytes());
        golden.message(
            "plain",
            &PLAIN_CONTENT.to_vec(),
            |content| Encoder::new().encode(content),
            |stored| decode(plain, stored).ok(),
        );
        // Only read: another version of zstd may compress otherwise.
        golden.previous("zstd", &vec![0u8; 4096], |stored| {
            decode(zeros, stored).ok()
        });
    });
}
