//! The content of a pin's file.

use super::*;
use crate::golden::{self, variants};

#[test]
fn the_next_version_reads_every_pin() {
    let manifest = ManifestId(ChunkId([1; 32]));
    golden::check("pin", |golden| {
        let pins = variants! {
            Pin { owner: None, .. } => { "pin.own": Pin::own(manifest, "image") }
            Pin { owner: Some(_), .. } => {
                "pin.replica": Pin::of(MemberId([2; 32]), manifest, "snapshot-web")
            }
        };
        golden.messages(
            pins,
            |pin| pin.content().into_bytes(),
            |bytes| Some(Pin::parse(manifest, std::str::from_utf8(bytes).ok()?)),
        );
    });
}
