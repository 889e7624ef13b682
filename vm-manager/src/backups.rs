//! How a VM's snapshots are kept as backups: the schedule that takes and deletes them, and which of
//! them have lost copies since they were durable. Both go with the VM on moves and restores, as one
//! optional field behind an offer and behind the VM's record.

use crate::directory::{MAX_SNAPSHOTS, Snapshot};
use p2pvm_overlay::{Epoch, UnixTime};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

mod plan;

pub use plan::{Plan, Since, is_automatic};

/// The first byte of the optional field.
const FORMAT: u8 = 1;

/// How many seconds lie between two scheduled snapshots at least. Reason: their names have minutes.
pub const MIN_EVERY: u64 = 60;
/// How many seconds lie between two scheduled snapshots at most: a year.
pub const MAX_EVERY: u64 = 366 * 86_400;
/// How many scheduled snapshots a rule keeps at most. Reason: the rest of [`MAX_SNAPSHOTS`] is for
/// those made by hand.
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
                "the rule may keep {most} snapshots, and {MAX_KEPT} is the most: a VM has \
                    {MAX_SNAPSHOTS} at most, those made by hand included"
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

    /// The field's bytes, at most 255; `None` if there is nothing to say.
    pub fn to_field(&self, snapshots: &[Snapshot]) -> Option<Vec<u8>> {
        let listed = snapshots.iter().take(MAX_SNAPSHOTS).enumerate();
        let degraded = listed
            .filter(|(_, s)| self.degraded.contains(&s.checkpoint))
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

    /// Reads the field; `None` for another format, or a schedule that cannot be.
    pub fn from_field(bytes: &[u8], snapshots: &[Snapshot]) -> Option<Self> {
        let field: Field = match bytes.split_first()? {
            (&FORMAT, rest) => postcard::from_bytes(rest).ok()?,
            _ => return None,
        };
        if field.schedule.is_some_and(|s| s.check().is_err()) {
            return None;
        }
        let listed = snapshots.iter().take(MAX_SNAPSHOTS).enumerate();
        let degraded = listed
            .filter(|(at, _)| field.degraded >> at & 1 == 1)
            .map(|(_, s)| s.checkpoint);
        Some(Self {
            schedule: field.schedule,
            degraded: degraded.collect(),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::golden_tests::snapshots;

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
        let all: Vec<Snapshot> = snapshots().into_iter().map(|(_, one)| one).collect();
        let backups = Backups {
            schedule: Some(schedule()),
            degraded: BTreeSet::new(),
        };
        let bytes = backups.to_field(&all).unwrap();
        let expected = [
            1, 1, 0xe0, 0xa8, 0x01, 0, 8, 7, 4, 1, 0x80, 0x92, 0xb3, 0xd8, 0x06, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Backups::from_field(&bytes, &all), Some(backups));
        assert_eq!(Backups::NONE.to_field(&all), None);
    }

    #[test]
    fn degraded_snapshots_are_told_by_their_place() {
        let mut all: Vec<Snapshot> = snapshots().into_iter().map(|(_, one)| one).collect();
        for (at, one) in all.iter_mut().enumerate() {
            one.checkpoint.0.0 = [at as u8; 32];
        }
        let backups = Backups {
            schedule: None,
            degraded: [all[1].checkpoint, all[2].checkpoint].into(),
        };
        let bytes = backups.to_field(&all).unwrap();
        assert_eq!(bytes, [1, 0, 6]);
        assert_eq!(Backups::from_field(&bytes, &all), Some(backups));
        let fewer = Backups::from_field(&bytes, &all[..2]).unwrap();
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
        let bytes = bad.to_field(&[]).unwrap();
        assert_eq!(Backups::from_field(&bytes, &[]), None);
        for junk in [&b""[..], &[1], &[2, 0, 0], &[1, 7, 7], &[0xff; 255]] {
            assert_eq!(Backups::from_field(junk, &[]), None);
        }
    }

    #[test]
    fn the_newest_is_of_the_highest_epoch_whatever_clocks_said() {
        let (_, one) = snapshots().remove(0);
        let of = |name: &str, epoch, taken| Snapshot {
            name: name.into(),
            epoch: Epoch(epoch),
            taken: UnixTime(taken),
            ..one.clone()
        };
        let all = [
            of("a", 1, 900),
            of("b", 3, 100),
            of("c", 3, 50),
            of("d", 2, 999),
        ];
        assert_eq!(newest(&all).unwrap().name, "c");
        assert_eq!(newest([]), None);
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
