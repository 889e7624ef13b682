//! The first bytes of a migration's streams.

use super::*;
use crate::golden::{self, variants};
use std::io::Cursor;

const ID: u64 = 0x0102_0304_0506_0708;

fn read(bytes: &[u8]) -> Option<(u64, Channel)> {
    let mut stream: BoxStream = Box::new(Cursor::new(bytes.to_vec()));
    futures::executor::block_on(read_header(&mut stream)).ok()
}

#[test]
fn members_of_the_previous_version_know_what_a_stream_carries() {
    golden::check("tunnel", |golden| {
        let heads = variants! {
            (_, Channel::Ram) => { "ram": (ID, Channel::Ram) }
            (_, Channel::Disk) => { "disk": (ID, Channel::Disk) }
        };
        golden.messages(heads, |(id, channel)| header(*id, *channel).to_vec(), read);
    });
}
