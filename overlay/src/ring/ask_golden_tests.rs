//! Golden bytes of questions to all members and of their answers.

use super::*;
use crate::golden;

#[test]
fn members_of_the_previous_version_read_questions_to_all_members() {
    golden::check("ask", |golden| {
        let range = Range {
            after: Position(1),
            before: Position(1 << 40),
        };
        let request = Request {
            id: 0x0102_0304_0506_0708,
            range,
            depth_left: 31,
            millis: 5000,
            avoid: vec![MemberId([4; 32])],
            question: b"load".to_vec(),
        };
        golden.message("request", &request, Request::encode, Request::decode);
        let answers = Answers {
            items: vec![(MemberId([1; 32]), b"7".to_vec())],
            dead: vec![DeadBranch {
                member: MemberId([4; 32]),
                range,
                covered: true,
            }],
            truncated: 300,
            depth: 2,
            asked: 9,
        };
        let encode = |answers: &Answers| encode_answers(answers).expect("plain fields");
        golden.message("answers", &answers, encode, decode_answers);
        golden.bytes("service", SERVICE.as_bytes());
    });
}
