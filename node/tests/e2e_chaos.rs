//! The short chaos run: the events that befall hosts most, in an order that a fixed seed gives. The
//! long one is `slow_chaos`.

mod common;

use common::{chaos_options, play_chaos};
use p2pvm_lab::chaos::Options;

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
fn after_common_mishaps_all_is_back_within_20_s_without_leftovers() {
    let options = Options {
        events: EVENTS.map(str::to_owned).to_vec(),
        ..chaos_options("e2e-chaos", 1, 4)
    };
    let Some(report) = play_chaos(&options) else {
        return;
    };
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.steps.len(), EVENTS.len());
}
