//! How a VM's snapshots are kept as backups: the schedule that takes and deletes them, and which of
//! them have lost copies since they were durable. Both go with the VM on moves and restores, as one
//! optional field behind an offer and behind the VM's record.

use p2pvm_overlay::UnixTime;
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

mod plan;

pub use plan::{Plan, Since, is_automatic, newest};

/// The first byte of the optional field.
const FORMAT: u8 = 1;

/// How many seconds lie between two scheduled snapshots at least. Reason: their names have minutes.
pub const MIN_EVERY: u64 = 60;
/// How many seconds lie between two scheduled snapshots at most: a year.
pub const MAX_EVERY: u64 = 366 * 86_400;
/// How many scheduled snapshots a rule keeps at most. Reason: the rest of a VM's 64 is for those
/// made by hand.
pub const MAX_KEPT: usize = 48;

/// How a VM's snapshots are kept as backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backups {
    /// When snapshots are taken and deleted by themselves; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Snapshots that were durable and have lost a copy since.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub degraded: BTreeSet<ManifestId>,
}

/// When snapshots of a VM are taken by themselves, and which of them stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// How many seconds lie between two.
    pub every: u64,
    /// Which stay.
    pub keep: Retention,
    /// Whether they are of the disk alone.
    pub disk_only: bool,
    /// When it was set: the times of snapshots are counted from then.
    pub since: UnixTime,
}

/// Which scheduled snapshots stay: the newest of each of the last so many hours, days and weeks
/// that have one, in UTC, and the newest so many of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest ones.
    pub last: u8,
    /// Of hours.
    pub hours: u8,
    /// Of days.
    pub days: u8,
    /// Of weeks, from Monday on.
    pub weeks: u8,
}

impl Retention {
    /// How many snapshots it keeps at most.
    pub fn most(&self) -> usize {
        [self.last, self.hours, self.days, self.weeks]
            .iter()
            .map(|n| usize::from(*n))
            .sum()
    }
}

impl Schedule {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// A sentence that names the limit.
    pub fn check(&self) -> Result<(), String> {
        if !(MIN_EVERY..=MAX_EVERY).contains(&self.every) {
            return Err(format!(
                "a snapshot every {} s cannot be: choose from one minute to one year",
                self.every
            ));
        }
        match self.keep.most() {
            0 => Err("the rule keeps no snapshot: name at least one, such as 7d".to_owned()),
            most if most > MAX_KEPT => Err(format!(
                "the rule may keep {most} snapshots, and {MAX_KEPT} is the most: a VM needs room \
                    for some made by hand"
            )),
            _ => Ok(()),
        }
    }
}

/// The optional field: which snapshots are degraded as one bit each, by their place in the list.
#[derive(Serialize, Deserialize)]
struct Field {
    schedule: Option<Schedule>,
    degraded: u64,
}

impl Backups {
    /// No schedule, and no snapshot that has lost a copy.
    pub const NONE: Self = Self {
        schedule: None,
        degraded: BTreeSet::new(),
    };

    /// Whether there is nothing to say.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// The field's bytes, at most 255, behind a list of these snapshots; `None` if there is nothing
    /// to say.
    pub fn to_field(&self, snapshots: impl Iterator<Item = ManifestId>) -> Option<Vec<u8>> {
        let listed = snapshots.take(u64::BITS as usize).enumerate();
        let degraded = listed
            .filter(|(_, s)| self.degraded.contains(s))
            .fold(0, |bits, (at, _)| bits | 1 << at);
        let field = Field {
            schedule: self.schedule,
            degraded,
        };
        let is_empty = field.schedule.is_none() && degraded == 0;
        (!is_empty).then(|| {
            postcard::to_extend(&field, vec![FORMAT])
                .expect("plain fields always serialize into memory")
        })
    }

    /// Reads the field behind a list of these snapshots; `None` for another format, or a schedule
    /// that cannot be.
    pub fn from_field(bytes: &[u8], snapshots: impl Iterator<Item = ManifestId>) -> Option<Self> {
        let field: Field = match bytes.split_first()? {
            (&FORMAT, rest) => postcard::from_bytes(rest).ok()?,
            _ => return None,
        };
        if field.schedule.is_some_and(|s| s.check().is_err()) {
            return None;
        }
        let listed = snapshots.take(u64::BITS as usize).enumerate();
        let degraded = listed
            .filter(|(at, _)| field.degraded >> at & 1 == 1)
            .map(|(_, s)| s);
        Some(Self {
            schedule: field.schedule,
            degraded: degraded.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_snapshot_sync::ChunkId;

    /// The checkpoints of some snapshots.
    fn listed(count: u8) -> impl Iterator<Item = ManifestId> {
        (0..count).map(|n| ManifestId(ChunkId([n; 32])))
    }

    fn schedule() -> Schedule {
        Schedule {
            every: 6 * 3600,
            keep: Retention {
                last: 0,
                hours: 8,
                days: 7,
                weeks: 4,
            },
            disk_only: true,
            since: UnixTime(1_796_000_000),
        }
    }

    #[test]
    fn the_field_of_backups_keeps_its_bytes() {
        let backups = Backups {
            schedule: Some(schedule()),
            degraded: BTreeSet::new(),
        };
        let bytes = backups.to_field(listed(3)).unwrap();
        let expected = [
            1, 1, 0xe0, 0xa8, 0x01, 0, 8, 7, 4, 1, 0x80, 0x92, 0xb3, 0xd8, 0x06, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Backups::from_field(&bytes, listed(3)), Some(backups));
        assert_eq!(Backups::NONE.to_field(listed(3)), None);
    }

    #[test]
    fn degraded_snapshots_are_told_by_their_place() {
        let backups = Backups {
            schedule: None,
            degraded: listed(3).skip(1).collect(),
        };
        let bytes = backups.to_field(listed(3)).unwrap();
        assert_eq!(bytes, [1, 0, 6]);
        assert_eq!(Backups::from_field(&bytes, listed(3)), Some(backups));
        let fewer = Backups::from_field(&bytes, listed(2)).unwrap();
        assert_eq!(fewer.degraded.len(), 1);
    }

    #[test]
    fn a_field_that_cannot_be_is_no_field() {
        let bad = Backups {
            schedule: Some(Schedule {
                every: 1,
                ..schedule()
            }),
            degraded: BTreeSet::new(),
        };
        let bytes = bad.to_field(listed(0)).unwrap();
        assert_eq!(Backups::from_field(&bytes, listed(0)), None);
        for junk in [&b""[..], &[1], &[2, 0, 0], &[1, 7, 7], &[0xff; 255]] {
            assert_eq!(Backups::from_field(junk, listed(0)), None);
        }
    }

    #[test]
    fn a_schedule_names_the_limit_that_it_breaks() {
        assert_eq!(schedule().check(), Ok(()));
        let with = |keep| Schedule { keep, ..schedule() }.check().unwrap_err();
        assert!(with(Retention::default()).contains("keeps no snapshot"));
        let many = Retention {
            days: 49,
            ..Retention::default()
        };
        assert!(with(many).contains("48 is the most"));
    }
}
