//! When a VM's disk is replicated next, and how far the newest replica is behind: a pure state
//! machine, told the time. The rounds themselves are `crate::guard`'s.
//!
//! The *recovery point* is the beginning of the newest round of which the replica is whole at its
//! holders. What the guest wrote after it is lost with its host.

use crate::protection::{Protection, Replica};
use p2pvm_overlay::UnixTime;
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long after a round that failed or had to wait the next one is tried, at first.
const RETRY: Duration = Duration::from_secs(5);
/// The same at most, after many failures.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// How many times its period a replica may be old before that is reported.
const LATE: u64 = 2;

/// How well a VM's disk is replicated, for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// How long between two rounds, seconds.
    pub every_s: u64,
    /// How old the recovery point is, seconds: what a loss of the host would cost. `None`: there is
    /// no replica.
    pub age_s: Option<u64>,
    /// How many other members hold the newest replica.
    pub copies: u32,
    /// How many should.
    pub wanted: u32,
    /// The recovery point is older than twice the period.
    pub is_late: bool,
    /// Why there is no newer one, if the last round did not succeed.
    pub why: Option<String>,
    /// How many rounds succeeded since the guest came to this host or its daemon started.
    pub rounds: u64,
    /// How many bytes of chunks these rounds made, which each holder has to fetch.
    pub new_bytes: u64,
    /// The same of the last one.
    pub last_new_bytes: u64,
}

impl ReplicationStatus {
    /// What the network's record says of a VM elsewhere; `None` if it is not replicated.
    pub fn of_record(
        protection: &Protection,
        replica: Option<&Replica>,
        now: UnixTime,
    ) -> Option<Self> {
        let every = protection.replicate_every?;
        let age = replica.map(|replica| replica.age(now).as_secs());
        Some(Self {
            every_s: every.as_secs(),
            age_s: age,
            copies: replica.map_or(0, Replica::copies),
            wanted: protection.replicas as u32,
            is_late: age.is_some_and(|age| age > LATE * every.as_secs()),
            why: None,
            rounds: 0,
            new_bytes: 0,
            last_new_bytes: 0,
        })
    }
}

impl std::fmt::Display for ReplicationStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.age_s, &self.why) {
            (Some(age), None) => write!(f, "RPO {age} s"),
            (Some(age), Some(why)) => write!(f, "RPO {age} s ({why})"),
            (None, Some(why)) => write!(f, "not replicated: {why}"),
            (None, None) => f.write_str("not replicated: the first round is under way"),
        }
    }
}

/// The rounds of one incarnation, in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replication {
    /// A round is under way, or its copies.
    is_under_way: bool,
    /// When the first look was.
    since: Option<Duration>,
    /// When the next round begins.
    next: Option<Duration>,
    /// How many rounds in a row failed.
    failures: u32,
    /// The replica that the next round's changes follow; `None`: it copies all.
    base: Option<ManifestId>,
    /// Up to when the newest replica is still what the disk holds.
    unchanged: Option<UnixTime>,
    /// When its holders last showed that they have all of it.
    shown: Option<Duration>,
    why: Option<String>,
    is_late: bool,
    rounds: u64,
    new_bytes: u64,
    last_new_bytes: u64,
}

impl Replication {
    /// Begins a round if one is due.
    pub(crate) fn begin(&mut self, now: Duration) -> bool {
        self.since.get_or_insert(now);
        if self.is_under_way || self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.is_under_way = true;
        true
    }

    /// Whether a round is under way, or its copies.
    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// The replica that the changes of the round under way follow.
    pub(crate) fn base(&self) -> Option<ManifestId> {
        self.base
    }

    /// What was copied is stored, as that checkpoint with so many bytes of new chunks.
    pub(crate) fn stored(&mut self, checkpoint: ManifestId, new_bytes: u64) {
        self.base = Some(checkpoint);
        self.unchanged = None;
        // Its holders have to fetch what they lack of it.
        self.shown = None;
        self.last_new_bytes = new_bytes;
        self.new_bytes += new_bytes;
    }

    /// What was copied is lost: the next round copies all.
    pub(crate) fn lost(&mut self) {
        self.base = None;
    }

    /// The disk is still that of the newest replica, as of `asked`.
    pub(crate) fn unchanged(&mut self, asked: UnixTime) {
        self.unchanged = Some(asked);
    }

    /// Whether the holders of a replica that stays the newest one are asked again whether they have
    /// all of it: they were not for `period`.
    pub(crate) fn must_ask(&mut self, now: Duration, period: Duration) -> bool {
        let shown = *self.shown.get_or_insert(now);
        let is_due = now.saturating_sub(shown) >= period;
        if is_due {
            self.shown = Some(now);
        }
        is_due
    }

    /// The round that began at `begun` succeeded.
    pub(crate) fn succeeded(&mut self, begun: Duration, every: Duration) {
        self.is_under_way = false;
        self.next = Some(begun + every);
        self.failures = 0;
        self.why = None;
        self.rounds += 1;
    }

    /// The round did not succeed: it is repeated soon.
    pub(crate) fn failed(&mut self, now: Duration, why: String) {
        self.is_under_way = false;
        let pause = RETRY * 2u32.saturating_pow(self.failures.min(8));
        self.next = Some(now + pause.min(MAX_RETRY));
        self.failures = self.failures.saturating_add(1);
        self.why = Some(why);
    }

    /// Something else works on the VM, or it stands still: the round is made after that.
    pub(crate) fn put_off(&mut self, now: Duration, why: String) {
        self.is_under_way = false;
        self.next = Some(now + RETRY);
        self.why = Some(why);
    }

    /// How well the disk is replicated now.
    pub(crate) fn status(
        &self,
        (protection, replica): (&Protection, Option<&Replica>),
        wall: UnixTime,
    ) -> Option<ReplicationStatus> {
        let of_record = ReplicationStatus::of_record(protection, replica, wall)?;
        let fresh = self.unchanged.map(|at| wall.0.saturating_sub(at.0));
        let age = of_record.age_s.map(|age| age.min(fresh.unwrap_or(age)));
        Some(ReplicationStatus {
            age_s: age,
            is_late: self.is_late,
            why: self.why.clone(),
            rounds: self.rounds,
            new_bytes: self.new_bytes,
            last_new_bytes: self.last_new_bytes,
            ..of_record
        })
    }

    /// Looks whether the recovery point is too old; tells a change.
    pub(crate) fn look(
        &mut self,
        now: Duration,
        age: Option<u64>,
        every: Duration,
    ) -> Option<bool> {
        let since = *self.since.get_or_insert(now);
        // Without a replica the guest has been unprotected since it came.
        let behind = age.unwrap_or_else(|| now.saturating_sub(since).as_secs());
        let is_late = behind > LATE * every.as_secs();
        (std::mem::replace(&mut self.is_late, is_late) != is_late).then_some(is_late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_snapshot_sync::ChunkId;
    use proptest::prelude::*;

    const EVERY: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn protection() -> Protection {
        Protection {
            replicate_every: Some(EVERY),
            ..Protection::default()
        }
    }

    fn replica(taken: u64) -> Replica {
        Replica {
            taken: UnixTime(taken),
            ..crate::protection::tests::replica(3)
        }
    }

    #[test]
    fn rounds_begin_a_period_apart_and_never_overlap() {
        let mut rounds = Replication::default();
        assert!(rounds.begin(at(100)));
        assert!(!rounds.begin(at(500)), "one is under way");
        rounds.succeeded(at(100), EVERY);
        // It took longer than the period: the next one begins at once.
        assert!(rounds.begin(at(500)));
        rounds.succeeded(at(500), EVERY);
        assert!(!rounds.begin(at(559)));
        assert!(rounds.begin(at(560)));
    }

    #[test]
    fn the_age_is_that_of_the_newest_rounds_beginning() {
        let (mut rounds, newest) = (Replication::default(), replica(1000));
        let status = |rounds: &Replication, replica, wall| {
            let protection = protection();
            rounds
                .status((&protection, replica), UnixTime(wall))
                .unwrap()
        };
        let shown = status(&rounds, Some(&newest), 1038);
        assert_eq!((shown.to_string(), shown.copies), ("RPO 38 s".into(), 2));
        rounds.unchanged(UnixTime(1090));
        assert_eq!(status(&rounds, Some(&newest), 1095).age_s, Some(5));
        rounds.stored(ManifestId(ChunkId([1; 32])), 7);
        assert_eq!(status(&rounds, Some(&newest), 1095).age_s, Some(95));
        rounds.failed(at(9), "no room".into());
        assert_eq!(
            status(&rounds, None, 1095).to_string(),
            "not replicated: no room"
        );
        assert_eq!(
            rounds.status((&Protection::default(), None), UnixTime(0)),
            None
        );
    }

    #[test]
    fn holders_of_an_unchanged_replica_are_asked_once_a_period() {
        let (mut rounds, day) = (Replication::default(), at(86_400));
        let asked: Vec<bool> = (0..5)
            .map(|half_days| rounds.must_ask(day * half_days / 2, day))
            .collect();
        assert_eq!(asked, [false, false, true, false, true]);
        rounds.stored(ManifestId(ChunkId([1; 32])), 7);
        assert!(!rounds.must_ask(day * 9, day), "they have just fetched it");
    }

    #[test]
    fn a_recovery_point_older_than_two_periods_is_reported_once() {
        let mut rounds = Replication::default();
        assert_eq!(rounds.look(at(0), Some(120), EVERY), None);
        assert_eq!(rounds.look(at(1), Some(121), EVERY), Some(true));
        assert_eq!(rounds.look(at(2), Some(122), EVERY), None);
        assert_eq!(rounds.look(at(3), Some(0), EVERY), Some(false));
        assert_eq!(
            rounds.look(at(121), None, EVERY),
            Some(true),
            "none since the start"
        );
    }

    proptest! {
        #[test]
        fn a_round_is_due_again_within_its_period_or_the_longest_pause(
            steps in prop::collection::vec((0u64..200, 0u8..4), 1..40),
        ) {
            let (mut rounds, mut now) = (Replication::default(), at(0));
            for (passed, how) in steps {
                now += at(passed);
                if !rounds.begin(now) {
                    continue;
                }
                prop_assert!(!rounds.begin(now));
                match how {
                    0 => rounds.succeeded(now, EVERY),
                    1 => rounds.failed(now, String::new()),
                    2 => rounds.put_off(now, String::new()),
                    _ => {
                        rounds.lost();
                        rounds.failed(now, String::new());
                        prop_assert_eq!(rounds.base(), None);
                    }
                }
                prop_assert!(rounds.clone().begin(now + EVERY.max(MAX_RETRY)));
                prop_assert!(!rounds.clone().begin(now));
            }
        }
    }
}
