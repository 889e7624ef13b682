//! Amounts by the hour, which become sums by the day. Bounded: in each hour and day, and in all.

use p2pvm_authority::Usage;
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// How long hours are kept apart.
const KEPT_HOURS: u64 = 48;
/// How long days are kept.
const KEPT_DAYS: u64 = 400;
/// How many rows an hour or a day has at most, beside the one for all others.
/// Reason: members decide how many there are.
const MAX_ROWS: usize = 64;

/// A row: whose use, or use of whose host, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The other member; `None` in the row of all beyond the bound.
    pub member: Option<MemberId>,
    /// The VM; `None` for replicas.
    pub vm: Option<VmId>,
}

impl Key {
    const OTHERS: Self = Self {
        member: None,
        vm: None,
    };
}

/// Amounts by row.
pub type Rows = BTreeMap<Key, Usage>;

/// Amounts by time and row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// By the hour since 1970.
    hours: BTreeMap<u64, Rows>,
    /// By the day since 1970.
    days: BTreeMap<u64, Rows>,
}

impl Sums {
    /// Adds amounts to the hour of `at`.
    pub fn add(&mut self, at: UnixTime, key: Key, used: Usage) {
        if !used.is_nothing() {
            put(self.hours.entry(at.0 / HOUR).or_default(), key, used);
        }
    }

    /// Makes days of past hours, and forgets the oldest until at most `max_rows` rows are left.
    pub fn tidy(&mut self, now: UnixTime, max_rows: usize) {
        let oldest = (now.0 / HOUR).saturating_sub(KEPT_HOURS);
        let recent = self.hours.split_off(&oldest);
        for (hour, rows) in std::mem::replace(&mut self.hours, recent) {
            let day = self.days.entry(hour * HOUR / DAY).or_default();
            for (key, used) in rows {
                put(day, key, used);
            }
        }
        let oldest = (now.0 / DAY).saturating_sub(KEPT_DAYS);
        self.days = self.days.split_off(&oldest);
        let count = |times: &BTreeMap<u64, Rows>| times.values().map(Rows::len).sum::<usize>();
        while count(&self.days) + count(&self.hours) > max_rows {
            if self.days.pop_first().is_none() {
                self.hours.pop_first();
            }
        }
    }

    /// The sums of the hours and days that `from` is in or before.
    pub fn since(&self, from: UnixTime) -> Rows {
        let hours = self.hours.range(from.0 / HOUR..);
        let days = self.days.range(from.0 / DAY..);
        let mut sums = Rows::new();
        for (key, used) in hours.chain(days).flat_map(|(_, rows)| rows) {
            *sums.entry(*key).or_default() += *used;
        }
        sums
    }

    /// The VMs that are in some row.
    pub fn vms(&self) -> BTreeSet<VmId> {
        let all = self.hours.values().chain(self.days.values());
        all.flat_map(BTreeMap::keys)
            .filter_map(|key| key.vm)
            .collect()
    }
}

/// Adds to a row, or to the one of all others if there are too many.
pub fn put(rows: &mut Rows, key: Key, used: Usage) {
    let fits = rows.len() < MAX_ROWS || rows.contains_key(&key);
    *rows
        .entry(if fits { key } else { Key::OTHERS })
        .or_default() += used;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn key(member: u8) -> Key {
        Key {
            member: Some(MemberId([member; 32])),
            vm: Some(VmId([1; 32])),
        }
    }

    fn cpu(cpu_ms: u64) -> Usage {
        Usage {
            cpu_ms,
            ..Usage::default()
        }
    }

    fn total(rows: &Rows) -> u64 {
        rows.values().map(|used| used.cpu_ms).sum()
    }

    #[test]
    fn hours_become_days_and_days_end() {
        let mut sums = Sums::default();
        sums.add(NOW, key(1), cpu(5));
        let later = NOW.plus(3 * DAY);
        sums.tidy(later, 100);
        assert!(sums.hours.is_empty() && sums.vms().contains(&VmId([1; 32])));
        assert_eq!(total(&sums.since(NOW)), 5);
        assert_eq!(total(&sums.since(NOW.plus(DAY))), 0);
        sums.tidy(NOW.plus((KEPT_DAYS + 2) * DAY), 100);
        assert_eq!(sums, Sums::default());
    }

    #[test]
    fn members_beyond_the_bound_are_the_others_and_the_oldest_go_first() {
        let mut sums = Sums::default();
        for n in 0..200 {
            sums.add(NOW, key(n), cpu(1));
        }
        let rows = sums.since(NOW);
        assert_eq!((rows.len(), total(&rows)), (MAX_ROWS + 1, 200));
        assert_eq!(rows[&Key::OTHERS].cpu_ms, 200 - MAX_ROWS as u64);
        sums.add(NOW.plus(HOUR), key(1), cpu(7));
        sums.tidy(NOW.plus(HOUR), 10);
        assert_eq!(total(&sums.since(NOW)), 7);
    }

    proptest! {
        /// Whenever it is tidied, nothing of the last 400 days is lost or counted twice.
        #[test]
        fn tidying_changes_no_sum(
            steps in proptest::collection::vec((0u64..20, 0u8..9, 1u64..1000, any::<bool>()), 1..80)
        ) {
            let (mut sums, mut now, mut all) = (Sums::default(), NOW, 0);
            for (hours, member, cpu_ms, tidies) in steps {
                now = now.plus(hours * HOUR);
                sums.add(now, key(member), cpu(cpu_ms));
                all += cpu_ms;
                if tidies {
                    sums.tidy(now, usize::MAX);
                }
            }
            prop_assert_eq!(total(&sums.since(NOW)), all);
        }
    }
}
