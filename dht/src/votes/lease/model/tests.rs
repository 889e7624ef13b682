//! The runs. The first ones are those of one fault each, which must be found.

use super::*;
use stateright::{Checker, Model};

/// How many states one run looks at, unless `P2PVM_MODEL_STATES` says otherwise.
/// Reason: all runs together take less than a minute on two processors.
const STATES: usize = 150_000;
/// How many states a fault is looked for in.
const FAULT_STATES: usize = 4_000_000;
const ALWAYS: &str = "at most one runs";

fn states() -> usize {
    let wanted = std::env::var("P2PVM_MODEL_STATES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(STATES)
}

/// Looks at the cluster; all of `reached` must come about.
fn holds(cluster: Cluster, reached: &[&'static str]) {
    let checker = cluster
        .checker()
        .threads(2)
        .target_state_count(states())
        .spawn_bfs()
        .join();
    println!(
        "{} states, {} unique, to depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    if let Some(path) = checker.discovery(ALWAYS) {
        panic!("two copies run after {:#?}", path.into_actions());
    }
    for name in reached {
        assert!(checker.discovery(name).is_some(), "{name}: never");
    }
}

fn is_found(cluster: Cluster) {
    let checker = cluster
        .checker()
        .threads(2)
        .target_state_count(FAULT_STATES)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let path = checker.discovery(ALWAYS);
    let what = (cluster.terms.mutant, cluster.fault);
    let path = path.unwrap_or_else(|| panic!("{what:?} is not found"));
    println!("{what:?}: found after {} steps", path.into_actions().len());
}

fn mutant(mutant: Mutant) -> Cluster {
    Cluster::new(Some(mutant))
}

fn fault(fault: Fault) -> Cluster {
    Cluster {
        fault: Some(fault),
        ..Cluster::new(None)
    }
}

#[test]
fn faults_of_the_hosts_clock_and_of_thawing_are_found() {
    let drifts = |m| Cluster {
        drifts: true,
        ..mutant(m)
    };
    is_found(Cluster {
        renews: false,
        ..drifts(Mutant::NoGuard)
    });
    is_found(drifts(Mutant::FromAnswer));
    is_found(mutant(Mutant::ThawUnasked));
    is_found(Cluster {
        renews: false,
        ..fault(Fault::NoGuardian)
    });
}

#[test]
fn faults_of_voters_are_found() {
    is_found(mutant(Mutant::RenewAfterNewer));
    is_found(mutant(Mutant::IgnoresLease));
    for restarted in [mutant(Mutant::NoQuarantine), fault(Fault::Forgetful)] {
        is_found(Cluster {
            restarts: 1,
            ..restarted
        });
    }
    is_found(Cluster {
        has_old_member: true,
        heirs: 0,
        renews: false,
        ..mutant(Mutant::UnaskedPromise)
    });
}

#[test]
fn faults_of_moves_are_found() {
    let moves = |cluster| Cluster {
        moves: 1,
        renews: false,
        ..cluster
    };
    is_found(moves(mutant(Mutant::PromiseEndsLease)));
    is_found(moves(fault(Fault::TakeBackAtOnce)));
    is_found(Cluster {
        drifts: true,
        ..moves(mutant(Mutant::HandOverLate))
    });
}

const TAKEN: &str = "an heir takes over";
const RENEWED: &str = "the host runs on after its first lease";

#[test]
fn a_take_over_never_meets_a_running_host_with_slow_clocks() {
    let slow = Cluster {
        drifts: true,
        epochs: 2,
        ..Cluster::new(None)
    };
    holds(slow, &[TAKEN, RENEWED]);
    holds(
        Cluster {
            stales: 1,
            restarts: 1,
            ..slow
        },
        &[],
    );
}

#[test]
fn of_two_heirs_and_a_host_that_returns_one_runs() {
    let two = Cluster {
        heirs: 0b110,
        crashes: 1,
        ..Cluster::new(None)
    };
    holds(two, &[TAKEN, RENEWED]);
    holds(Cluster { restarts: 1, ..two }, &[]);
    let returns = Cluster {
        heirs: 0b101,
        restarts: 2,
        ..Cluster::new(None)
    };
    holds(returns, &[TAKEN]);
}

#[test]
fn a_move_and_a_take_over_never_run_two_copies() {
    let moves = Cluster {
        moves: 1,
        ..Cluster::new(None)
    };
    let ends = ["a move ends well", "a source takes back", TAKEN];
    holds(
        Cluster {
            renews: false,
            ..moves
        },
        &ends,
    );
    for cluster in [
        moves,
        Cluster {
            crashes: 1,
            ..moves
        },
        Cluster {
            drifts: true,
            ..moves
        },
        Cluster {
            restarts: 1,
            stales: 1,
            ..moves
        },
    ] {
        holds(cluster, &[]);
    }
}

#[test]
fn five_voters_are_as_safe_as_three() {
    let five = Cluster {
        voters: 5,
        heirs: 0b110,
        ..Cluster::new(None)
    };
    holds(five, &[TAKEN]);
    holds(Cluster { moves: 1, ..five }, &[]);
}

#[test]
fn a_member_of_the_previous_release_takes_no_protected_vm() {
    let old = Cluster {
        has_old_member: true,
        heirs: 0,
        ..Cluster::new(None)
    };
    holds(old, &[RENEWED]);
}
