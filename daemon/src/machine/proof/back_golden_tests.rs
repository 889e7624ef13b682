//! The bytes of the question for the way back and of its answers.

use super::*;
use crate::golden;
use std::fmt::Debug;

fn both<T: Debug + Serialize + for<'a> Deserialize<'a>>(
    golden: &mut golden::Golden,
    name: &str,
    message: &T,
) {
    golden.message(
        name,
        message,
        |message| postcard::to_allocvec(message).expect("plain fields"),
        |bytes| postcard::from_bytes(bytes).ok(),
    );
}

#[test]
fn members_of_the_previous_version_read_questions_for_the_way_back() {
    golden::check("prove", |golden| {
        let question = |addr| Question {
            version: VERSION,
            addr,
        };
        both(golden, "question.v4", &question([10, 1, 2, 3].into()));
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        both(golden, "question.v6", &question(v6));
        let answer = |unproved, its_own| Answer {
            version: VERSION,
            unproved,
            its_own,
        };
        both(golden, "answer.proved", &answer(None, false));
        let silent = Some("no answer".to_owned());
        both(golden, "answer.unproved", &answer(silent.clone(), false));
        both(golden, "answer.its-own", &answer(silent, true));
        golden.bytes("service", SERVICE.as_bytes());
    });
}
