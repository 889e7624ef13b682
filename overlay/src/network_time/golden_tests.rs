//! Golden bytes of a member's report of its clocks.

use super::{ClockReport, exchange::SERVICE};
use crate::{
    golden,
    membership::golden_tests::{plain, read_plain},
};

#[test]
fn members_of_the_previous_version_read_the_clocks() {
    golden::check("clock", |golden| {
        let report = ClockReport {
            wall_ms: 1_700_000_000_000,
            net_ms: -5,
            clocks: 300,
        };
        golden.message("report", &report, plain, read_plain);
        golden.bytes("service", SERVICE.as_bytes());
    });
}
