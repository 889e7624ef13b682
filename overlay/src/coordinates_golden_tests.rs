//! Golden bytes of a network coordinate, and a sample of one for other messages.

use super::*;
use crate::{
    golden,
    membership::golden_tests::{plain, read_plain},
};

/// A coordinate whose fields all differ.
pub(crate) fn coordinate() -> Coordinate {
    Coordinate {
        at: [-1_000, 2_000, 300_000],
        height: 400,
        error: 50,
    }
}

#[test]
fn members_of_the_previous_version_read_coordinates() {
    golden::check("coordinates", |golden| {
        golden.message("known", &coordinate(), plain, read_plain);
        golden.message("origin", &Coordinate::default(), plain, read_plain);
    });
}
