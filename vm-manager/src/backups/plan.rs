//! What a schedule asks for now: which snapshot to take, which to delete. Without IO or clock.
//!
//! Time is counted in periods from the schedule's begin; a period without a snapshot gets one, also
//! if many before it were missed. Snapshots are in order by epoch and place in the list, so that a
//! clock that jumps changes neither which is the newest nor deletes one early. What was made by
//! hand, and the newest durable one, never goes.

use super::Schedule;
use crate::{
    directory::{MAX_SNAPSHOTS, Snapshot},
    vault::Durability,
};
use p2pvm_overlay::{Epoch, UnixTime};
use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// The first Monday of Unix time: 1970-01-05.
const MONDAY: u64 = 4 * DAY;
/// How long after a snapshot that failed the next is tried, at most.
const RETRY: Duration = Duration::from_secs(10 * 60);
/// What scheduled snapshots' names begin with.
const PREFIX: &str = "auto-";

/// The last attempt of this run of the daemon, by a clock that never jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// How long it is ago.
    pub passed: Duration,
    /// Whether it failed.
    pub has_failed: bool,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The name of the snapshot to take.
    pub take: Option<String>,
    /// The snapshots to delete, those that are to go first before others.
    pub delete: Vec<String>,
    /// A snapshot is due and there is no room in the VM's list, whatever goes.
    pub is_full: bool,
}

/// Whether a snapshot of that name is a schedule's: `auto-YYYYMMDD-HHMM`, with `-2` and so on where
/// a clock passed a minute twice. No other snapshot may have such a name.
pub fn is_automatic(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let mut parts = rest.split('-');
    let is_number = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())
    };
    parts.next().is_some_and(|date| is_number(date, 8))
        && parts.next().is_some_and(|time| is_number(time, 4))
        && parts
            .next()
            .is_none_or(|n| !n.is_empty() && is_number(n, n.len()))
        && parts.next().is_none()
}

impl Schedule {
    /// What is to be done `now` for a VM with these snapshots.
    pub fn plan(&self, now: UnixTime, snapshots: &[Snapshot], last: Option<Since>) -> Plan {
        let delete: Vec<String> = self.expired(snapshots);
        if !self.is_due(now, snapshots, last) {
            return Plan {
                delete,
                ..Plan::default()
            };
        }
        let is_full = snapshots.len() - delete.len() >= MAX_SNAPSHOTS;
        Plan {
            take: (!is_full).then(|| free_name(now, snapshots)),
            delete,
            is_full,
        }
    }

    fn is_due(&self, now: UnixTime, snapshots: &[Snapshot], last: Option<Since>) -> bool {
        if let Some(last) = last {
            let period = Duration::from_secs(self.every);
            // A clock that jumps to and fro brings no more than two in a period.
            let least = match last.has_failed {
                true => RETRY.min(period),
                false => period / 2,
            };
            if last.passed < least {
                return false;
            }
        }
        let scheduled = snapshots.iter().filter(|s| is_automatic(&s.name));
        newest(scheduled).is_none_or(|s| self.period_of(s.taken) != self.period_of(now))
    }

    /// In which period of the schedule a time lies.
    fn period_of(&self, time: UnixTime) -> i128 {
        let passed = i128::from(time.0) - i128::from(self.since.0);
        passed.div_euclid(i128::from(self.every.max(1)))
    }

    /// The scheduled snapshots that no rule keeps, oldest first.
    fn expired(&self, snapshots: &[Snapshot]) -> Vec<String> {
        let durable = snapshots
            .iter()
            .filter(|s| s.durability == Durability::Durable);
        let durable = newest(durable).map(|s| s.checkpoint);
        let mut scheduled: Vec<(usize, &Snapshot)> = snapshots
            .iter()
            .enumerate()
            .filter(|(_, s)| is_automatic(&s.name))
            .collect();
        scheduled.sort_by_key(|(at, s)| std::cmp::Reverse((s.epoch, *at)));
        let kept = self.kept(scheduled.iter().map(|(_, s)| *s));
        scheduled.reverse();
        let goes = |s: &Snapshot| !kept.contains(&s.name) && Some(s.checkpoint) != durable;
        let gone = scheduled.iter().filter(|(_, s)| goes(s));
        gone.map(|(_, s)| s.name.clone()).collect()
    }

    /// The names that the rules keep of snapshots that come newest first.
    fn kept<'s>(&self, newest_first: impl Iterator<Item = &'s Snapshot>) -> BTreeSet<String> {
        let (keep, mut kept) = (&self.keep, BTreeSet::new());
        let rules = [
            (keep.hours, HOUR, 0),
            (keep.days, DAY, 0),
            (keep.weeks, WEEK, MONDAY),
        ];
        let mut seen: [HashSet<u64>; 3] = Default::default();
        for (at, snapshot) in newest_first.enumerate() {
            let mut stays = at < usize::from(keep.last);
            for ((most, length, begin), seen) in rules.iter().zip(&mut seen) {
                // Times before the first Monday fall into one week.
                let part = snapshot.taken.0.saturating_sub(*begin) / length;
                if seen.len() < usize::from(*most) {
                    stays |= seen.insert(part);
                }
            }
            // The newest one stays in any case: the next rule may want it.
            if stays || at == 0 {
                kept.insert(snapshot.name.clone());
            }
        }
        kept
    }
}

/// The newest of a VM's snapshots: that of the highest epoch, and of one epoch the last in the
/// list. The clocks of its hosts say nothing.
pub fn newest<'s>(snapshots: impl IntoIterator<Item = &'s Snapshot>) -> Option<&'s Snapshot> {
    let counted = snapshots.into_iter().enumerate();
    counted
        .max_by_key(|(at, s): &(usize, &Snapshot)| -> (Epoch, usize) { (s.epoch, *at) })
        .map(|(_, s)| s)
}

/// The name for a snapshot taken now, which none of these has.
fn free_name(now: UnixTime, snapshots: &[Snapshot]) -> String {
    let (days, minutes) = (now.0 / DAY, now.0 % DAY / 60);
    let (year, month, day) = date(days);
    let name = format!(
        "{PREFIX}{year:04}{month:02}{day:02}-{:02}{:02}",
        minutes / 60,
        minutes % 60
    );
    let is_free = |name: &String| snapshots.iter().all(|s| s.name != *name);
    if is_free(&name) {
        return name;
    }
    let numbered = (2..).map(|n: u32| format!("{name}-{n}")).find(is_free);
    numbered.expect("a VM has fewer snapshots than there are numbers")
}

/// The date of a day since 1970-01-01, in the Gregorian calendar (Hinnant's `civil_from_days`,
/// <https://howardhinnant.github.io/date_algorithms.html>).
fn date(days: u64) -> (u64, u64, u64) {
    // Beyond the year 9999 the name would have more digits.
    let days = days.min(2_932_896) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
