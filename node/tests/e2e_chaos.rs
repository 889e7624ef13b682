//! The short chaos run: the events that befall hosts most, in an order that a fixed seed gives. The
//! long one is `slow_chaos`.

mod common;

use p2pvm_lab::chaos::{self, Options};
use std::path::Path;

/// Two minutes, and the last event's return.
const EVENTS: [&str; 8] = [
    "device deleted",
    "nft flushed",
    "device's addresses flushed",
    "Docker starts or stops",
    "resolv.conf rewritten",
    "daemon killed",
    "address changed",
    "forwarding on and off by somebody else",
];

#[test]
fn after_what_befalls_hosts_most_all_is_back_within_20_s_and_nothing_stays() {
    let options = Options {
        seed: 1,
        minutes: 4,
        only: Vec::new(),
        events: EVENTS.map(str::to_owned).to_vec(),
        list: false,
        image: None,
        name: format!("e2e-chaos-{}", std::process::id()),
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
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.steps.len(), EVENTS.len());
}
