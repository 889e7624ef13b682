//! The names of the services; the messages are `p2pvm_autonomic`'s and the control API's.

use super::*;
use crate::golden;

#[test]
fn members_of_the_previous_version_find_the_manager() {
    golden::check_texts("placement", |golden| {
        golden.bytes("service.load", SERVICE.as_bytes());
        golden.bytes("service.why", EXPLAIN.as_bytes());
    });
}
