//! When the hosts of others' VMs answered last.

use p2pvm_overlay::{MemberId, lock};
use std::{collections::BTreeMap, sync::Mutex, time::Duration};

/// How long a host's answer counts for all its VMs.
/// Reason: a host with many VMs is asked once, not once for each.
const FRESH: Duration = Duration::from_secs(2);
/// When hosts were asked, and when they answered last.
#[derive(Default)]
pub(super) struct Heard(Mutex<BTreeMap<MemberId, Sight>>);

#[derive(Clone, Copy, Default)]
struct Sight {
    asked: Option<Duration>,
    answered: Option<Duration>,
}

impl Heard {
    /// When the host answered last.
    pub(super) fn answered(&self, host: MemberId) -> Option<Duration> {
        lock(&self.0).get(&host).and_then(|sight| sight.answered)
    }

    /// Whether the host answered when it was asked a moment ago; `None`: it was not.
    pub(super) fn lately(&self, host: MemberId, now: Duration) -> Option<bool> {
        let sight = *lock(&self.0).get(&host)?;
        let asked = sight.asked.filter(|asked| now < *asked + FRESH)?;
        Some(sight.answered.is_some_and(|answered| answered >= asked))
    }

    pub(super) fn note(&self, host: MemberId, asked: Duration, answered: Option<Duration>) {
        let mut all = lock(&self.0);
        let sight = all.entry(host).or_default();
        sight.asked = Some(asked);
        sight.answered = answered.or(sight.answered);
    }
}
