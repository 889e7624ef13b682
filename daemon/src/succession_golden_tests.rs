//! The text of the plan for a new identity.

use super::*;
use crate::golden;

#[test]
fn the_next_version_carries_out_a_plan_for_a_new_identity() {
    golden::check_texts("succession", |golden| {
        let plan = Plan {
            invite: "p2pvm1abc".into(),
            name: "attic-1a2b".into(),
        };
        golden.message(
            "plan",
            &plan,
            |plan| serde_json::to_vec(plan).expect("two texts"),
            |text| serde_json::from_slice(text).ok(),
        );
    });
}
