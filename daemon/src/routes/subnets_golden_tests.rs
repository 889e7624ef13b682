//! The text of the saved routes.

use super::*;
use crate::golden;

#[test]
fn the_next_version_reads_the_saved_routes() {
    golden::check_texts("routes", |golden| {
        let cidr = |text: &str| text.parse::<Cidr>().expect("a subnet");
        let saved = |accept| SavedRoutes {
            offers: vec![cidr("192.168.7.0/24"), cidr("fd00:7::/48")],
            since: 1_796_000_000,
            accept,
            refused: vec![cidr("10.9.0.0/16")],
        };
        for (name, accept) in [("asked", None), ("on", Some(true)), ("off", Some(false))] {
            golden.message(
                name,
                &saved(accept),
                |saved| serde_json::to_vec(saved).expect("plain fields"),
                |text| serde_json::from_slice(text).ok(),
            );
        }
        golden.previous("empty", &SavedRoutes::default(), |text| {
            serde_json::from_slice(text).ok()
        });
    });
}
