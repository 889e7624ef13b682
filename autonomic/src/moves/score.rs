//! What a move would be worth. A VM gains the difference between the load of its node and the load
//! of the peer with the VM. A move is worth making if that beats a threshold: then each move lowers
//! the sum of squared loads, so that selfish moves come to an end (Even-Dar, Kesselman and Mansour
//! 2003), and the threshold keeps noise from starting new ones. Among the peers that are worth it,
//! traffic counts too ([`super::affinity`]).

use super::affinity::{NodePlace, affinity};
use crate::{
    gossip::Entry,
    load::{Demand, LoadVector},
    placement::Placement,
};
use p2pvm_overlay::{MemberId, coordinates::Coordinate};
use serde::{Deserialize, Serialize};

/// How much the scores of two peers differ before one is better.
/// Reason: one of the equally good peers is drawn, so that nodes with the same view do not all ask
/// the same one.
const SAME_GAIN: f64 = 0.05;

/// How many CPUs a VM counts as at least.
/// Reason: a VM that uses hardly any may be starved.
const LEAST_CPU: f64 = 0.05;

/// What moving a GiB of memory costs, in gain times CPUs.
const COST_OF_A_GIB: f64 = 0.002;

/// A peer that a VM could move to, by its last load report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The peer.
    #[serde(with = "crate::explain::text")]
    pub member: MemberId,
    /// Its load with the VM, 0 and up.
    pub predicted: f64,
    /// How much lower that is than the load here.
    pub gain: f64,
    /// How much nearer the VM would be to the members it exchanges traffic with: from 1 (all of its
    /// traffic would stay on the host) to -1 (all does now).
    pub affinity: f64,
}

impl Candidate {
    /// The figure by which candidates are compared: the gain, and a bounded share for the traffic.
    fn score(&self, placement: &Placement) -> f64 {
        self.gain + self.affinity * placement.affinity_weight
    }
}

/// The node that a VM is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) load: f64,
    pub(crate) standing: NodePlace,
}

/// A node's load once a VM has arrived.
pub(crate) fn predict(load: f64, cpus: u32, vm_cpu: f64) -> f64 {
    load + vm_cpu / f64::from(cpus.max(1))
}

/// Whether a VM's memory fits beside what is in use.
pub(crate) fn memory_fits(
    used_mib: u64,
    total_mib: u64,
    vm_mib: u64,
    placement: &Placement,
) -> bool {
    used_mib.saturating_add(vm_mib) as f64 <= total_mib as f64 * placement.memory_limit
}

fn candidate(load: &LoadVector, here: Source, demand: &Demand, placement: &Placement) -> Candidate {
    let predicted = predict(f64::from(load.cpu), load.cpus, demand.cpu);
    let there = NodePlace {
        member: load.member,
        place: load.place.filter(Coordinate::is_known),
    };
    let affinity = affinity(
        &demand.talks,
        here.standing,
        there,
        placement.affinity_above as f64,
    );
    Candidate {
        member: load.member,
        predicted,
        gain: here.load - predicted,
        affinity,
    }
}

/// The known peers with room in memory for a VM, best first.
pub(crate) fn candidates<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    here: Source,
    demand: &Demand,
    placement: &Placement,
) -> Vec<Candidate> {
    let fits = |load: &&LoadVector| {
        memory_fits(
            load.memory_used_mib,
            load.memory_total_mib,
            demand.memory_mib,
            placement,
        )
    };
    let mut candidates: Vec<Candidate> = entries
        .map(|e| &e.load)
        .filter(fits)
        .map(|load| candidate(load, here, demand, placement))
        .collect();
    candidates.sort_by(|a, b| {
        b.score(placement)
            .total_cmp(&a.score(placement))
            .then(a.member.cmp(&b.member))
    });
    candidates
}

/// Whether a move there is worth making and likely to be accepted.
pub(crate) fn is_worthwhile(candidate: &Candidate, placement: &Placement) -> bool {
    candidate.gain >= placement.min_gain && candidate.predicted <= placement.low_watermark
}

/// Those of `candidates` that are nearly as good as the first.
pub(crate) fn equally_good<'a>(
    candidates: &'a [Candidate],
    placement: &Placement,
) -> &'a [Candidate] {
    let count = candidates
        .iter()
        .take_while(|p| candidates[0].score(placement) - p.score(placement) < SAME_GAIN)
        .count();
    &candidates[..count]
}

/// What a move is worth: the score times the CPUs that the VM takes along, less the cost of moving
/// its memory.
pub(crate) fn worth(candidate: &Candidate, demand: &Demand, placement: &Placement) -> f64 {
    candidate.score(placement) * (demand.cpu + LEAST_CPU)
        - demand.memory_mib as f64 / 1024.0 * COST_OF_A_GIB
}
