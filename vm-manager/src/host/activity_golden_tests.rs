//! The words by which members tell each other what is done with a VM.

use super::*;
use crate::golden;

#[test]
fn members_of_the_previous_version_know_every_activity_by_its_words() {
    golden::check_texts("activity", |golden| {
        let other = Activity::Other("dancing".into());
        let all = Activity::KNOWN.iter().map(|(activity, _)| activity);
        for activity in all.chain([&other]) {
            let name = match activity {
                Activity::Other(_) => "Other".to_owned(),
                known => format!("{known:?}"),
            };
            golden.message(
                &name,
                activity,
                |activity| serde_json::to_vec(activity).expect("a text"),
                |text| serde_json::from_slice(text).ok(),
            );
        }
    });
}
