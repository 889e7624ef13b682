//! Which member keeps which snapshot for this host, when it is asked next whether it still does,
//! and what its answer means. Without IO or clock.
//!
//! A keeper that lost chunks gets them again at once. One that has not answered for [`GONE_AFTER`]
//! periods counts as gone, and another member gets its copy. The log remembers a keeper that was
//! replaced: when it answers again, its copy ends.

use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// After how many periods without an answer a keeper counts as gone. Reason: a laptop that is off
/// for a weekend is not gone; with the usual period this is three days.
const GONE_AFTER: u64 = 3;
/// After how many periods a keeper that was replaced and does not answer is forgotten.
const FORGOTTEN_AFTER: u64 = 90;
/// How many times in a period a keeper that did not answer is asked. Reason: a machine that is on
/// in the evening only must be met then.
const TRIES: u64 = 24;
/// How many questions in a row a keeper leaves unanswered before it counts as gone. Reason: time in
/// which this host was off, or could reach nobody, says nothing about the keeper.
const GONE_MISSES: u32 = 36;

/// A snapshot of a VM here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptSnapshot {
    /// The other members that have all of it, as far as is known.
    pub members: Vec<MemberId>,
    /// As many as are wanted have it.
    pub is_durable: bool,
    /// It is being copied at this moment.
    pub is_copied: bool,
}

/// The snapshots of all VMs here.
pub(super) type Kept = BTreeMap<ManifestId, KeptSnapshot>;

/// What is due of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It is to be asked whether it has all of the snapshot.
    Ask,
    /// It was replaced: its copy is to end.
    Release,
}

/// What follows from a keeper's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// It is given again what it lost, or another member is.
    Lost,
    /// Another member replaces it.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Keeper {
    checkpoint: ManifestId,
    member: MemberId,
    /// When it is asked next.
    next: UnixTime,
    /// Since when it has not answered.
    silent_since: Option<UnixTime>,
    /// How many questions since then it has not answered.
    misses: u32,
}

/// The keepers of all snapshots here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeeperLog {
    keepers: Vec<Keeper>,
}

impl KeeperLog {
    /// Takes up new keepers, and forgets those of snapshots that are no longer here: a VM that
    /// moved takes the care for its snapshots along. Returns whether anything changed.
    pub fn take(&mut self, now: UnixTime, period: Duration, kept: &Kept) -> bool {
        let before = self.keepers.len();
        self.keepers.retain(|k| kept.contains_key(&k.checkpoint));
        let mut is_changed = self.keepers.len() != before;
        for (checkpoint, snapshot) in kept {
            for member in &snapshot.members {
                let who = (*checkpoint, *member);
                if self.at(who).is_none() {
                    is_changed = true;
                    self.keepers.push(Keeper {
                        checkpoint: *checkpoint,
                        member: *member,
                        next: now.plus(spread(now, who, period.as_secs())),
                        silent_since: None,
                        misses: 0,
                    });
                }
            }
        }
        is_changed
    }

    fn at(&self, (checkpoint, member): (ManifestId, MemberId)) -> Option<usize> {
        self.keepers
            .iter()
            .position(|k| k.checkpoint == checkpoint && k.member == member)
    }

    /// The keeper that has waited longest, and what is due.
    pub fn due(
        &self,
        now: UnixTime,
        period: Duration,
        kept: &Kept,
    ) -> Option<(ManifestId, MemberId, Due)> {
        // After a clock that was ahead, no keeper waits for it.
        let latest = now.plus(2 * period.as_secs());
        let is_due = |k: &&Keeper| k.next <= now || k.next > latest;
        let what = |k: &Keeper| {
            let snapshot = kept.get(&k.checkpoint).filter(|s| !s.is_copied)?;
            let due = match snapshot.members.contains(&k.member) {
                true => Due::Ask,
                // Until as many as wanted have it, a former keeper's copy counts for something.
                false if snapshot.is_durable => Due::Release,
                false => return None,
            };
            Some((k.next, (k.checkpoint, k.member, due)))
        };
        let all = self.keepers.iter().filter(is_due).filter_map(what);
        all.min_by_key(|(next, _)| *next).map(|(_, due)| due)
    }

    /// Notes how many chunks a keeper lacks, `None` if it did not answer.
    pub fn answered(
        &mut self,
        now: UnixTime,
        period: Duration,
        who: (ManifestId, MemberId),
        lacks: Option<usize>,
    ) -> Verdict {
        let Some(at) = self.at(who) else {
            return Verdict::Fine;
        };
        let (keeper, period) = (&mut self.keepers[at], period.as_secs());
        let soon = now.plus((period / TRIES).max(1));
        if lacks.is_some() {
            (keeper.silent_since, keeper.misses) = (None, 0);
        }
        match lacks {
            Some(0) => {
                keeper.next = now.plus(period * 3 / 4 + spread(now, who, period / 2));
                Verdict::Fine
            }
            Some(_) => {
                keeper.next = soon;
                Verdict::Lost
            }
            None => {
                keeper.next = soon;
                keeper.misses = keeper.misses.saturating_add(1);
                let is_long = keeper.silent_for(now) >= GONE_AFTER * period;
                match is_long && keeper.misses >= GONE_MISSES {
                    true => Verdict::Gone,
                    false => Verdict::Fine,
                }
            }
        }
    }

    /// Notes whether a keeper that was replaced has ended its copy.
    pub fn released(
        &mut self,
        now: UnixTime,
        period: Duration,
        who: (ManifestId, MemberId),
        is_released: bool,
    ) {
        let Some(at) = self.at(who) else { return };
        let period = period.as_secs();
        let keeper = &mut self.keepers[at];
        keeper.next = now.plus((period / TRIES).max(1));
        if is_released || keeper.silent_for(now) >= FORGOTTEN_AFTER * period {
            self.keepers.swap_remove(at);
        }
    }
}

impl Keeper {
    /// For how many seconds it has not answered, now included.
    fn silent_for(&mut self, now: UnixTime) -> u64 {
        let since = *self.silent_since.get_or_insert(now);
        now.0.saturating_sub(since.0)
    }
}

/// A number of seconds below `most`, another one for each keeper and time.
fn spread(now: UnixTime, (checkpoint, member): (ManifestId, MemberId), most: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&now.0.to_be_bytes());
    hasher.update(&checkpoint.0.0).update(&member.0);
    let hash = hasher.finalize();
    let (first, _) = hash.as_bytes().split_at(8);
    u64::from_be_bytes(first.try_into().expect("eight bytes")) % most.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_snapshot_sync::ChunkId;

    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR: u64 = 3600;
    const NOW: UnixTime = UnixTime(1_796_000_000);

    fn who(n: u8) -> (ManifestId, MemberId) {
        (ManifestId(ChunkId([9; 32])), MemberId([n; 32]))
    }

    fn kept(members: &[u8]) -> Kept {
        let snapshot = KeptSnapshot {
            members: members.iter().map(|n| MemberId([*n; 32])).collect(),
            is_durable: true,
            is_copied: false,
        };
        Kept::from([(who(0).0, snapshot)])
    }

    fn log(members: &[u8]) -> KeeperLog {
        let mut log = KeeperLog::default();
        assert!(log.take(NOW, DAY, &kept(members)));
        assert!(!log.take(NOW, DAY, &kept(members)));
        log
    }

    #[test]
    fn each_keeper_is_asked_about_once_a_day_at_its_own_time() {
        let (mut log, kept) = (log(&[1, 2]), kept(&[1, 2]));
        let mut asked: BTreeMap<MemberId, Vec<u64>> = BTreeMap::new();
        for minute in 0..10 * 24 * 60 {
            let now = NOW.plus(minute * 60);
            if let Some((checkpoint, member, due)) = log.due(now, DAY, &kept) {
                assert_eq!(due, Due::Ask);
                let verdict = log.answered(now, DAY, (checkpoint, member), Some(0));
                assert_eq!(verdict, Verdict::Fine);
                asked.entry(member).or_default().push(minute);
            }
        }
        assert_eq!(asked.len(), 2);
        let times: Vec<_> = asked.into_values().collect();
        assert!(
            times.iter().all(|t| (8..=14).contains(&t.len())),
            "{times:?}"
        );
        assert_ne!(times[0], times[1]);
    }

    #[test]
    fn a_keeper_is_gone_after_three_days_without_an_answer() {
        let mut log = log(&[1]);
        let at = |hours| NOW.plus(hours * HOUR);
        for hours in 0..72 {
            let verdict = log.answered(at(hours), DAY, who(1), None);
            assert_eq!(verdict, Verdict::Fine, "{hours} h");
        }
        log.answered(at(72), DAY, who(1), Some(0));
        for hours in 73..73 + 72 {
            let verdict = log.answered(at(hours), DAY, who(1), None);
            assert_eq!(verdict, Verdict::Fine, "{hours} h");
        }
        assert_eq!(log.answered(at(73 + 72), DAY, who(1), None), Verdict::Gone);
    }

    #[test]
    fn while_this_host_is_off_no_keeper_becomes_gone() {
        let mut log = log(&[1]);
        assert_eq!(log.answered(NOW, DAY, who(1), None), Verdict::Fine);
        let after_a_week = NOW.plus(7 * 24 * HOUR);
        let verdict = log.answered(after_a_week, DAY, who(1), None);
        assert_eq!(verdict, Verdict::Fine);
    }

    #[test]
    fn a_keeper_that_lost_chunks_is_asked_again_soon() {
        let mut log = log(&[1]);
        let later = NOW.plus(24 * HOUR);
        assert_eq!(log.answered(later, DAY, who(1), Some(3)), Verdict::Lost);
        assert_eq!(log.due(later, DAY, &kept(&[1])), None);
        let due = log.due(later.plus(HOUR), DAY, &kept(&[1]));
        assert_eq!(due, Some((who(1).0, who(1).1, Due::Ask)));
    }

    #[test]
    fn a_replaced_keeper_is_released_once_others_have_the_snapshot() {
        let mut log = log(&[1, 2]);
        let later = NOW.plus(2 * 24 * HOUR);
        log.answered(later, DAY, who(2), Some(0));
        let mut now_kept = kept(&[2, 3]);
        let snapshot = now_kept.get_mut(&who(0).0).expect("it is there");
        snapshot.is_durable = false;
        log.take(later, DAY, &now_kept);
        assert_eq!(log.due(later, DAY, &now_kept), None);
        let now_kept = kept(&[2, 3]);
        let due = log.due(later, DAY, &now_kept);
        assert_eq!(due, Some((who(1).0, who(1).1, Due::Release)));
        log.released(later, DAY, who(1), false);
        let much_later = later.plus(HOUR);
        let due = log.due(much_later, DAY, &now_kept);
        assert_eq!(due.map(|due| due.2), Some(Due::Release));
        log.released(much_later, DAY, who(1), true);
        assert_eq!(log.at(who(1)), None);
    }

    #[test]
    fn keepers_of_a_snapshot_that_is_no_longer_here_are_forgotten() {
        let mut log = log(&[1, 2]);
        assert!(log.take(NOW, DAY, &Kept::new()));
        assert_eq!(log, KeeperLog::default());
    }

    #[test]
    fn a_clock_that_was_ahead_delays_no_question() {
        let mut log = KeeperLog::default();
        log.take(NOW.plus(3650 * 24 * HOUR), DAY, &kept(&[1]));
        assert!(log.due(NOW, DAY, &kept(&[1])).is_some());
    }
}
