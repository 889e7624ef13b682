//! Counts the results of tries to reach a member directly: how many succeed, how many at the first
//! try, and how soon.
//!
//! Both ends may begin at the same time, and an end that asks in two ways exchanges addresses
//! twice. So exchanges within [`ONE_TRY`] of the first are one try, whose result is not decided
//! earlier.

use crate::id::MemberId;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// How many punches are listed one by one.
const LISTED: usize = 128;
/// How long before the next exchange of addresses is another try. Reason: a dial waits at least as
/// long for direct probes.
const ONE_TRY: Duration = super::settle::PATIENCE.0;
/// How long a punch to a member without a link lasts. The next one is counted again.
pub(crate) const PUNCH_LIFE: Duration = Duration::from_secs(60);
/// How many members may be punched at a time before further ones are not counted.
const MAX_OPEN: usize = 1024;

/// One punch, as a user sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Punch {
    /// The member.
    pub member: MemberId,
    /// How many times addresses were exchanged and tried; exchanges within half a second of each
    /// other are one try.
    pub tries: u32,
    /// From the first try to the direct path, milliseconds; `None` if there is none yet.
    pub direct_ms: Option<f64>,
    /// Whether the two NATs, as far as they are known, allow a direct path.
    pub allowed: bool,
}

/// The results of punches: tries to reach members directly if at least one side has a NAT or a
/// firewall.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Punches {
    /// How many were begun where the NATs allow it.
    pub tried: u64,
    /// How many succeeded.
    pub direct: u64,
    /// How many succeeded at the first try.
    pub first_try: u64,
    /// How many were begun although the NATs, as far as known, do not allow it.
    pub hopeless: u64,
    /// The median time to a direct path of those listed, milliseconds.
    pub median_ms: Option<f64>,
    /// The newest ones.
    pub list: Vec<Punch>,
}

struct OpenPunch {
    began: Instant,
    /// When the last try began.
    tried: Instant,
    punch: Punch,
}

#[derive(Default)]
pub(crate) struct Log {
    counts: Punches,
    open: HashMap<MemberId, OpenPunch>,
    done: VecDeque<Punch>,
}

impl Log {
    /// Notes that a member's addresses are tried now.
    pub fn begin(&mut self, member: MemberId, allowed: bool, now: Instant) {
        if let Some(open) = self.open.get_mut(&member) {
            if now.saturating_duration_since(open.tried) >= ONE_TRY {
                (open.tried, open.punch.tries) = (now, open.punch.tries + 1);
            }
            return;
        }
        if self.open.len() < MAX_OPEN {
            if allowed {
                self.counts.tried += 1;
            } else {
                self.counts.hopeless += 1;
            }
            self.open.insert(
                member,
                OpenPunch {
                    began: now,
                    tried: now,
                    punch: Punch {
                        member,
                        tries: 1,
                        direct_ms: None,
                        allowed,
                    },
                },
            );
        }
    }

    /// Notes that a direct path to the member is used since `since`.
    pub fn direct(&mut self, member: MemberId, since: Instant) {
        let Some(open) = self.open.remove(&member) else {
            return;
        };
        let took = since.saturating_duration_since(open.began);
        let punch = Punch {
            direct_ms: Some(took.as_secs_f64() * 1e3),
            ..open.punch
        };
        if punch.allowed {
            self.counts.direct += 1;
            self.counts.first_try += u64::from(punch.tries == 1);
        }
        if self.done.len() >= LISTED {
            self.done.pop_front();
        }
        self.done.push_back(punch);
    }

    /// Ends the punches of members without a link: they have failed, and the next try is a new
    /// punch.
    pub fn forget(&mut self, is_wanted: impl Fn(&MemberId, Duration) -> bool, now: Instant) {
        self.open
            .retain(|member, open| is_wanted(member, now.saturating_duration_since(open.began)));
    }

    /// The counts, and the newest punches.
    pub fn summary(&self) -> Punches {
        let mut list: Vec<Punch> = self
            .done
            .iter()
            .cloned()
            .chain(self.open.values().map(|open| open.punch.clone()))
            .collect();
        list.drain(..list.len().saturating_sub(LISTED));
        let mut times: Vec<f64> = list.iter().filter_map(|p| p.direct_ms).collect();
        times.sort_by(f64::total_cmp);
        Punches {
            median_ms: times.get(times.len() / 2).copied(),
            list,
            ..self.counts.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_punch_counts_once_and_as_first_only_if_tried_once() {
        let (mut log, start) = (Log::default(), Instant::now());
        let (a, b, c) = (MemberId([1; 32]), MemberId([2; 32]), MemberId([3; 32]));
        log.begin(a, true, start);
        log.begin(b, true, start);
        log.begin(c, false, start);
        // The other end began at the same time.
        log.begin(a, true, start + Duration::from_millis(40));
        log.begin(b, true, start + Duration::from_secs(5));
        log.direct(a, start + Duration::from_millis(80));
        log.direct(b, start + Duration::from_secs(6));
        log.direct(a, start + Duration::from_secs(7));
        let punches = log.summary();
        assert_eq!(
            (
                punches.tried,
                punches.direct,
                punches.first_try,
                punches.hopeless
            ),
            (2, 2, 1, 1)
        );
        let times: Vec<_> = punches
            .list
            .iter()
            .map(|p| (p.member, p.tries, p.direct_ms))
            .collect();
        assert_eq!(
            times,
            [(a, 1, Some(80.0)), (b, 2, Some(6000.0)), (c, 1, None)]
        );
        log.forget(|_, _| false, start);
        assert_eq!(log.summary().list.len(), 2);
    }

    #[test]
    fn memory_is_bounded_however_many_members_there_are() {
        let (mut log, now) = (Log::default(), Instant::now());
        for n in 0..5000u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            log.begin(MemberId(id), true, now);
            if n % 2 == 0 {
                log.direct(MemberId(id), now);
            }
        }
        assert!(
            log.open.len() <= MAX_OPEN
                && log.done.len() <= LISTED
                && log.summary().list.len() <= LISTED
        );
    }
}
