//! The text of every question to the whole cluster. The answers are types of the control API.

use super::*;
use crate::golden::{self, variants};

#[test]
fn members_of_the_previous_version_know_every_question_to_the_cluster() {
    golden::check_texts("cluster", |golden| {
        let questions = variants! {
            Question::Members => { "members": Question::Members }
            Question::Vms => { "vms": Question::Vms }
            Question::Load => { "load": Question::Load }
            Question::Metrics => { "metrics": Question::Metrics }
            Question::Sight => { "sight": Question::Sight }
            Question::Records => { "records": Question::Records }
        };
        golden.messages(
            questions,
            |question| serde_json::to_vec(question).expect("a word"),
            |text| serde_json::from_slice(text).ok(),
        );
    });
}
