//! A quarter of an hour of random events on a host, under a TCP stream, pings of a guest and of two
//! LANs, and look-ups of names. `make test-slow` runs it; `SEED=n make test-slow` with another
//! sequence.

mod common;

use common::{chaos_options, image, measured::Measurement, play_chaos};
use p2pvm_lab::chaos::Options;
use std::path::PathBuf;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn after_any_mishap_all_is_back_within_20_s_without_leftovers() {
    let (seed, minutes) = (
        number("P2PVM_CHAOS_SEED", 1),
        number("P2PVM_CHAOS_MINUTES", 15),
    );
    let measurement = Measurement::begin("chaos", "make test-slow FIGURES=docs/figures");
    let options = Options {
        image: Some(PathBuf::from(image())),
        ..chaos_options("slow-chaos", seed, minutes)
    };
    let Some(report) = play_chaos(&options) else {
        return;
    };
    assert!(report.is_good(), "{report:#?}\nagain: {}", report.again());
    assert!(
        report.steps.len() >= 20,
        "{} events are no chaos",
        report.steps.len()
    );
    measurement.end(&report.figures());
}
