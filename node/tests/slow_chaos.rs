//! A quarter of an hour of random events on a host, under a TCP stream, pings of a guest and of two
//! LANs, and look-ups of names. `make test-slow` runs it; `SEED=n make test-slow` with another
//! sequence.

mod common;

use p2pvm_lab::chaos::{self, Options};
use std::path::{Path, PathBuf};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn whatever_happens_to_a_host_all_is_back_within_20_s_and_nothing_stays_at_the_end() {
    let options = Options {
        seed: number("P2PVM_CHAOS_SEED", 1),
        minutes: number("P2PVM_CHAOS_MINUTES", 15),
        only: Vec::new(),
        events: Vec::new(),
        list: false,
        image: Some(PathBuf::from(common::image())),
        name: format!("slow-chaos-{}", std::process::id()),
        keep_going: true,
        program: None,
    };
    let report = match chaos::run(
        &options,
        Path::new(env!("CARGO_BIN_EXE_p2pvm")),
        &options.name,
        |line| println!("{line}"),
    ) {
        Err(chaos::ChaosError::NoTree(why)) => {
            return println!("NOT RUN: no Debian tree can be made here: {why}");
        }
        report => report.unwrap(),
    };
    assert!(report.is_good(), "{report:#?}\nagain: {}", report.again());
    assert!(
        report.steps.len() >= 20,
        "{} events are no chaos",
        report.steps.len()
    );
}
