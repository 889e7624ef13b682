//! The ring in virtual time: its promises at scale and under faults, on fewer seeds and members
//! than
//! `p2pvm simulate` takes.

use p2pvm_lab::sim::{
    Sim, cli,
    faults::{self, Outcome},
    queue::SECOND,
    scale,
    survey::Survey,
};
use p2pvm_overlay::ring::RingOptions;

/// Sizes of the networks that the seeds draw.
const SIZES: std::ops::Range<usize> = 8..48;

fn hold(seeds: std::ops::Range<u64>) {
    let broken: Vec<Outcome> = seeds
        .map(|seed| faults::run(seed, SIZES))
        .filter(|o| !o.broken.is_empty())
        .collect();
    let said: Vec<String> = broken.iter().map(|o| cli::said(o, &SIZES)).collect();
    assert!(broken.is_empty(), "{}", said.join("\n"));
}

// Two halves, as the test runner has two threads.
#[test]
fn random_faults_leave_a_ring_that_holds_every_invariant() {
    hold(0..50);
}

#[test]
fn random_faults_of_other_seeds_do_too() {
    hold(1_000_000..1_000_050);
}

#[test]
fn a_seed_reproduces_its_run_to_the_datagram() {
    let fingerprint = |seed| {
        let outcome = faults::run(seed, SIZES);
        (
            outcome.events,
            outcome.datagrams,
            outcome.healed_after.map(f64::to_bits),
            outcome.broken,
        )
    };
    assert_eq!(fingerprint(7), fingerprint(7));
    assert_ne!(fingerprint(7), fingerprint(8));
}

#[test]
fn two_hundred_members_keep_the_aims_of_the_report() {
    let report = scale::run(200, 1, 120 * SECOND, &|_| ());
    assert_eq!(report.broken, Vec::<String>::new());
    assert_eq!(
        report.arrived, 1.0,
        "a path between two members did not arrive"
    );
    assert!(report.hops.mean <= 0.6 * 200f64.log2(), "{:?}", report.hops);
    assert!(report.idle.bytes.mean <= 1000.0, "{:?}", report.idle);
    assert_eq!(
        (report.idle_near, report.idle_lookups),
        (1.0, 1.0),
        "the quiet ring was wrong for a moment"
    );
    for disaster in &report.disasters {
        assert!(
            disaster.repaired_s.is_some_and(|s| s <= 120.0),
            "{} of the members died: {:?}",
            disaster.share,
            disaster.repaired_s
        );
    }
}

/// The tests above could not fail if the observer saw nothing: it must see a death that the ring
/// has not noticed yet.
#[test]
fn the_observer_sees_what_is_wrong() {
    let mut sim = Sim::new(3, RingOptions::default());
    for i in 0..20 {
        let home = sim.home(i == 0);
        sim.add(home, 1.0, &[0], i * SECOND);
    }
    assert!(sim.until_right(200 * SECOND).is_some());
    sim.run(60 * SECOND);
    sim.crash(5);
    let (right, all) = Survey::of(&sim).near_links(&sim);
    assert!(right < all, "{right} of {all}");
    let arrived = Survey::of(&sim).reachable(&mut sim, 500);
    sim.run(120 * SECOND);
    let (right, all) = Survey::of(&sim).near_links(&sim);
    assert_eq!(
        (right, Survey::of(&sim).reachable(&mut sim, 500)),
        (all, 1.0),
        "{arrived} of the lookups arrived at first"
    );
}
