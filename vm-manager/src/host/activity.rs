//! The operations on a VM, each in a few words. They are the control API's, from whose table people
//! read them too: members send each other the same words.

pub use p2pvm_api::ActivityView as Activity;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_activity_travels_as_its_words_and_unknown_ones_pass_through() {
        for (activity, words) in Activity::KNOWN {
            let text = postcard::to_allocvec(&Some(words.to_string())).unwrap();
            assert_eq!(postcard::to_allocvec(&Some(activity)).unwrap(), text);
            let read: Option<Activity> = postcard::from_bytes(&text).unwrap();
            assert_eq!(read.as_ref(), Some(activity));
        }
        let later: Activity = serde_json::from_str("\"dancing\"").unwrap();
        assert_eq!(later, Activity::Other("dancing".into()));
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"dancing\"");
    }
}

#[cfg(test)]
#[path = "activity_golden_tests.rs"]
mod golden_tests;
