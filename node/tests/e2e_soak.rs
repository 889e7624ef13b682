//! A daemon under hostile datagrams, for a short while; `p2pvm testbed soak` does it for as long as
//! one likes.

mod common;

use common::measured::Measurement;
use p2pvm_lab::figures::Figure;
use std::{path::Path, time::Duration};

#[test]
fn a_daemon_stands_malformed_replayed_and_forged_datagrams_and_amplifies_none() {
    let command = "cargo nextest run -p p2pvm --test e2e_soak";
    let measurement = Measurement::begin("soak", command);
    let seed = rand::random();
    let name = format!("e2e-soak-{}", std::process::id());
    let report = p2pvm_lab::soak::soak(
        Path::new(env!("CARGO_BIN_EXE_p2pvm")),
        &name,
        4000,
        Duration::from_secs(15),
        seed,
    )
    .unwrap();
    println!("seed {seed}: {report:?}");
    assert!(
        report.same_daemon && report.panics.is_empty(),
        "seed {seed}: {report:?}"
    );
    assert!(
        report.outcome.worst_amplification <= 3.0,
        "seed {seed}: {report:?}"
    );
    let grown = report.resident_after.saturating_sub(report.resident_before);
    assert!(
        grown < 8 << 20,
        "seed {seed}: {grown} bytes more resident memory after {:?}",
        report.outcome.sent
    );
    // Some probes may be lost while two processors carry the attack as well; the link is not.
    assert!(
        report.pings.0 * 2 > report.pings.1,
        "seed {seed}: {report:?}"
    );
    assert!(
        report.outcome.seen > 100
            && report.outcome.sent.values().all(|n| *n > 0)
            && report.outcome.sent.len() >= 8,
        "seed {seed}: {report:?}"
    );
    // The long soak's figures stand in the same set.
    let figures = report.figures().into_iter().map(|figure| Figure {
        name: format!("test-{}", figure.name),
        of: "the end-to-end test".into(),
        ..figure
    });
    measurement.end(&figures.collect::<Vec<_>>());
}
