//! The words beside a request that is passed on; its paths and bodies are the API's.

use super::*;
use crate::golden;

#[test]
fn members_of_the_previous_version_know_a_request_that_is_passed_on() {
    golden::check_texts("forward", |golden| {
        golden.bytes("service", SERVICE.as_bytes());
        golden.bytes("header.forwarded", FORWARDED.as_bytes());
        golden.bytes("header.token", HEADER.as_bytes());
        golden.bytes("header.token-for-host", PASSED.as_bytes());
        let chosen = |text: &[u8]| {
            let chosen: HostChoice = serde_json::from_slice(text).ok()?;
            Some(chosen.on)
        };
        golden.previous("chosen", &Some("cellar".to_owned()), chosen);
        golden.previous("chosen.none", &None::<String>, chosen);
    });
}
