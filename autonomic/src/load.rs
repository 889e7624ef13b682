//! A node's load: as it is measured, smoothed, and sent to peers.

use crate::{limits::MAX_TALKS, placement::Placement};
use p2pvm_overlay::{MemberId, VmId, coordinates::Coordinate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A moment in milliseconds of the caller's clock (Unix time in the daemon, virtual time in
/// simulations). Moments of different nodes are never compared.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds since `earlier`, 0 if the clock went back.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment and `ms` more.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A VM's traffic with one member and its guests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    /// The member; for traffic between two guests of one host, that host.
    pub member: MemberId,
    /// Bytes a second, both ways together, as the packet plane has counted over the last seconds.
    pub rate: f64,
    /// The member's network coordinates.
    pub place: Option<Coordinate>,
}

/// One VM as its host measures it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmLoad {
    /// The VM.
    pub vm: VmId,
    /// CPUs that it keeps busy, e.g. 0.5.
    pub cpu: f64,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Whether it may be moved now: running, and no snapshot or migration of it under way.
    pub movable: bool,
    /// Its traffic by member; only those with the most traffic count.
    pub talks: Vec<Talk>,
}

/// A node's own measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalLoad {
    /// The share of its CPUs that is busy with anything, 0 to 1.
    pub cpu: f64,
    /// How many CPUs it has.
    pub cpus: u32,
    /// Memory in use, MiB.
    pub memory_used_mib: u64,
    /// Memory in all, MiB.
    pub memory_total_mib: u64,
    /// The VMs that it holds.
    pub vms: Vec<VmLoad>,
    /// Its network coordinates, once known.
    pub place: Option<Coordinate>,
}

/// A node's load as it is gossiped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadVector {
    /// The node.
    pub member: MemberId,
    /// Grows with each measurement, over restarts too.
    pub seq: u64,
    /// The smoothed share of its CPUs that is busy, with the VMs that it has promised to take in.
    pub cpu: f32,
    /// How many CPUs it has.
    pub cpus: u32,
    /// Memory in use or promised, MiB.
    pub memory_used_mib: u64,
    /// Memory in all, MiB.
    pub memory_total_mib: u64,
    /// How many VMs it holds.
    pub vms: u32,
    /// Its network coordinates, once known.
    pub place: Option<Coordinate>,
}

impl LoadVector {
    /// Whether the figures are possible.
    pub(crate) fn is_sound(&self) -> bool {
        self.cpu.is_finite() && (0.0..=1.0).contains(&self.cpu) && (1..=65_536).contains(&self.cpus)
    }
}

/// A VM's smoothed demand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Demand {
    /// CPUs, the larger of the smoothed use and the fading peak.
    pub(crate) cpu: f64,
    pub(crate) memory_mib: u64,
    pub(crate) movable: bool,
    pub(crate) talks: Vec<Talk>,
    smoothed: f64,
}

/// Smoothed measurements of this node.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) cpu: f64,
    pub(crate) raw: LocalLoad,
    pub(crate) vms: BTreeMap<VmId, Demand>,
    measured: Option<Millis>,
}

impl Meter {
    /// Adds a measurement. Returns the VMs that were not in the previous one, none at the first.
    pub(crate) fn measure(
        &mut self,
        now: Millis,
        placement: &Placement,
        mut load: LocalLoad,
    ) -> Vec<VmId> {
        load.cpu = sane(load.cpu).min(1.0);
        load.cpus = load.cpus.max(1);
        let first = self.measured.is_none();
        let elapsed = self.measured.map_or(u64::MAX, |before| now.since(before));
        let keep = fade(elapsed, placement.load_half_life_ms);
        self.cpu = blend(self.cpu, load.cpu, keep);
        let mut arrived = Vec::new();
        let before = std::mem::take(&mut self.vms);
        for vm in &load.vms {
            let used = sane(vm.cpu);
            let (smoothed, peak) = match before.get(&vm.vm) {
                Some(old) => (
                    blend(old.smoothed, used, keep),
                    old.cpu * fade(elapsed, placement.peak_half_life_ms),
                ),
                None => (used, 0.0),
            };
            if !first && !before.contains_key(&vm.vm) {
                arrived.push(vm.vm);
            }
            let mut talks = vm.talks.clone();
            talks.sort_by(|a, b| b.rate.total_cmp(&a.rate));
            talks.truncate(MAX_TALKS);
            let cpu = smoothed.max(peak);
            self.vms.insert(
                vm.vm,
                Demand {
                    cpu,
                    memory_mib: vm.memory_mib,
                    movable: vm.movable,
                    talks,
                    smoothed,
                },
            );
        }
        self.measured = Some(now);
        self.raw = load;
        arrived
    }

    pub(crate) fn has_measured(&self) -> bool {
        self.measured.is_some()
    }
}

fn sane(value: f64) -> f64 {
    if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    }
}

/// The share of an old value that is left after `elapsed_ms`.
fn fade(elapsed_ms: u64, half_life_ms: u64) -> f64 {
    0.5f64.powf(elapsed_ms as f64 / half_life_ms.max(1) as f64)
}

fn blend(old: f64, new: f64, keep: f64) -> f64 {
    old * keep + new * (1.0 - keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cpu: f64, vm_cpu: f64) -> LocalLoad {
        let vms = vec![VmLoad {
            vm: VmId([1; 32]),
            cpu: vm_cpu,
            memory_mib: 128,
            movable: true,
            talks: Vec::new(),
        }];
        LocalLoad {
            cpu,
            cpus: 2,
            memory_used_mib: 1,
            memory_total_mib: 2,
            vms,
            place: None,
        }
    }

    #[test]
    fn smoothing_halves_the_distance_each_half_life_however_often_it_measures() {
        let placement = Placement {
            load_half_life_ms: 2000,
            ..Placement::default()
        };
        let (mut seldom, mut often) = (Meter::default(), Meter::default());
        seldom.measure(Millis(0), &placement, load(0.0, 0.0));
        often.measure(Millis(0), &placement, load(0.0, 0.0));
        seldom.measure(Millis(2000), &placement, load(1.0, 0.0));
        for t in 1..=20 {
            often.measure(Millis(t * 100), &placement, load(1.0, 0.0));
        }
        assert!((seldom.cpu - 0.5).abs() < 1e-9 && (often.cpu - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_starved_vm_counts_with_what_it_used_before() {
        let placement = Placement::default();
        let mut meter = Meter::default();
        meter.measure(Millis(0), &placement, load(0.5, 1.0));
        meter.measure(Millis(10_000), &placement, load(1.0, 0.1));
        assert!(meter.vms[&VmId([1; 32])].cpu > 0.85);
    }

    #[test]
    fn nonsense_counts_as_nothing() {
        let mut meter = Meter::default();
        meter.measure(
            Millis(0),
            &Placement::default(),
            load(f64::NAN, f64::INFINITY),
        );
        assert_eq!((meter.cpu, meter.vms[&VmId([1; 32])].cpu), (0.0, 0.0));
    }
}
