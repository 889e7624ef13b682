//! Golden bytes of calls over the ring.

use super::*;
use crate::golden;

#[test]
fn members_of_the_previous_version_read_calls_over_the_ring() {
    golden::check("ring-call", |golden| {
        golden.message(
            "call",
            &(0x0102_0304_0506_0708, b"body".to_vec()),
            |(id, body)| numbered(*id, body),
            |bytes| number_of(bytes).map(|(id, body)| (id, body.to_vec())),
        );
    });
}
