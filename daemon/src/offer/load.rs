//! The processor load of all programs but the guests: what this machine's owner does with it.

use crate::placement::load::Meter;
use p2pvm_overlay::VmId;
use p2pvm_vm_manager::host::Host;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Measures between two calls of [`OwnLoad::sample`].
pub(super) struct OwnLoad {
    meter: Meter,
    last: Option<(Instant, HashMap<VmId, Duration>)>,
}

impl OwnLoad {
    /// A meter for this host; `cpus` is its capacity, 0 for all processors of the machine.
    pub(super) fn new(cpus: u32) -> Self {
        Self {
            meter: Meter::new(cpus),
            last: None,
        }
    }

    /// The load since the last call, 0 to 1 of this host's capacity. The first call measures
    /// nothing yet.
    pub(super) async fn sample(&mut self, host: &Host) -> f64 {
        let stats = host.stats().await.vms.into_iter();
        let used: HashMap<_, _> = stats.map(|vm| (vm.vm, vm.machine.cpu_time)).collect();
        let now = Instant::now();
        let guests = match &self.last {
            Some((then, before)) => busy(before, &used, now - *then),
            None => 0.0,
        };
        self.last = Some((now, used));
        let load = self.meter.sample(guests);
        (load.cpu - guests / load.cpus).clamp(0.0, 1.0)
    }
}

/// How many processors the guests kept busy.
fn busy(
    before: &HashMap<VmId, Duration>,
    after: &HashMap<VmId, Duration>,
    passed: Duration,
) -> f64 {
    if passed.is_zero() {
        return 0.0;
    }
    let used = after.iter().filter_map(|(vm, time)| {
        let before = before.get(vm)?;
        Some(time.saturating_sub(*before))
    });
    used.sum::<Duration>().as_secs_f64() / passed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_count_by_what_they_used_since_they_were_seen_first() {
        let [a, b] = [1, 2].map(|n| VmId([n; 32]));
        let seconds = Duration::from_secs;
        let before = HashMap::from([(a, seconds(10))]);
        let after = HashMap::from([(a, seconds(14)), (b, seconds(900))]);
        assert_eq!(busy(&before, &after, seconds(2)), 2.0);
        assert_eq!(busy(&before, &after, Duration::ZERO), 0.0);
    }
}
