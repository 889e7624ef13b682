//! Golden bytes of what members say about notices.

use super::*;
use crate::{
    golden::{self, variants},
    membership::golden_tests::{network, notices, plain, read_plain},
};

#[test]
fn members_of_the_previous_version_read_what_is_said_about_notices() {
    golden::check("notices", |golden| {
        let known: Vec<Notice> = notices().into_iter().map(|(_, notice)| notice).collect();
        let says = variants! {
            NoticeMessage::Digest(_) => { "digest": NoticeMessage::Digest([6; 32]) }
            NoticeMessage::Have(_) => {
                "have": NoticeMessage::Have(known.clone()),
                "have.nothing": NoticeMessage::Have(vec![]),
            }
        };
        golden.messages(says, plain, read_plain);
        let board = Notices::new(Arc::new(Trust::new(network().id)));
        board
            .known
            .write()
            .expect("no thread has panicked")
            .extend(known.into_iter().map(|notice| (notice.key(), notice)));
        golden.bytes("digest-of-notices", &board.digest());
        golden.bytes("service", SERVICE.as_bytes());
    });
}
