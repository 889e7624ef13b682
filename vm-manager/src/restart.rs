//! Whether a guest that ended is started again, and when. Without IO or clock: the caller gives the
//! time and does what is decided.
//!
//! The first restart comes after a second, each further one after twice as long, at most a minute.
//! A guest that was restarted five times within ten minutes stays stopped: what ends it will not go
//! away by itself, and a person should look. The restarts are counted in memory: a daemon that
//! starts anew begins to count anew.

use crate::{hypervisor::Halt, protection::Restart};
use std::{collections::VecDeque, time::Duration};

/// How long before the first restart.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long before a restart at most.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How many restarts within [`WINDOW`] there are at most.
pub(crate) const MOST: usize = 5;
/// How long a restart counts.
const WINDOW: Duration = Duration::from_secs(600);

/// How a guest ended without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It powered itself off.
    PoweredOff,
    /// Its kernel panicked.
    Panicked,
    /// Its process ended.
    ProcessEnded,
    /// It could not be started again.
    StartFailed,
}

impl Ending {
    /// The end of a guest that its machine describes so.
    pub fn of(halt: Option<Halt>) -> Self {
        match halt {
            Some(Halt::PoweredOff) => Self::PoweredOff,
            Some(Halt::Panicked) => Self::Panicked,
            Some(Halt::DiskFull | Halt::DiskError) | None => Self::ProcessEnded,
        }
    }

    /// What happened, after the VM's name.
    pub fn words(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered itself off",
            Self::Panicked => "crashed: its kernel panicked",
            Self::ProcessEnded => "crashed: its process ended",
            Self::StartFailed => "could not be started again",
        }
    }
}

/// What follows from a guest's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is started again.
    Start {
        /// After so long.
        wait: Duration,
        /// The number of the restart within the window, from 1 on.
        attempt: usize,
    },
    /// It stays stopped, as its policy says.
    Stay,
    /// It stays stopped, because it ended too often.
    GiveUp,
}

/// The restarts of one VM.
#[derive(Debug, Default)]
pub(crate) struct Restarts(VecDeque<Duration>);

impl Restarts {
    /// Decides about a guest that ended at the time `now`.
    pub fn ended(&mut self, now: Duration, policy: Restart, ending: Ending) -> Next {
        let wanted = match policy {
            Restart::Always => true,
            Restart::OnFailure => ending != Ending::PoweredOff,
            Restart::Never => false,
        };
        if !wanted {
            return Next::Stay;
        }
        while self.0.front().is_some_and(|at| *at + WINDOW <= now) {
            self.0.pop_front();
        }
        if self.0.len() >= MOST {
            return Next::GiveUp;
        }
        let wait = FIRST_WAIT * (1 << self.0.len());
        self.0.push_back(now);
        Next::Start {
            wait: wait.min(LONGEST_WAIT),
            attempt: self.0.len(),
        }
    }

    /// Begins to count anew: a person started the VM.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CRASH: Ending = Ending::ProcessEnded;

    fn wait(next: Next) -> Option<u64> {
        match next {
            Next::Start { wait, .. } => Some(wait.as_secs()),
            Next::Stay | Next::GiveUp => None,
        }
    }

    #[test]
    fn a_guest_that_crashes_at_once_is_given_up_after_five_restarts() {
        let (mut restarts, mut now) = (Restarts::default(), Duration::ZERO);
        let mut waits = Vec::new();
        loop {
            let next = restarts.ended(now, Restart::OnFailure, CRASH);
            let Some(seconds) = wait(next) else {
                assert_eq!(next, Next::GiveUp);
                break;
            };
            waits.push(seconds);
            now += Duration::from_secs(seconds);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        now += WINDOW;
        let later = restarts.ended(now, Restart::OnFailure, CRASH);
        assert_eq!(wait(later), Some(1), "old crashes count no more");
    }

    #[test]
    fn only_always_restarts_a_guest_that_powered_itself_off() {
        let ended = |policy, ending| {
            let mut restarts = Restarts::default();
            wait(restarts.ended(Duration::ZERO, policy, ending)).is_some()
        };
        for (policy, off, crashed) in [
            (Restart::Always, true, true),
            (Restart::OnFailure, false, true),
            (Restart::Never, false, false),
        ] {
            assert_eq!(ended(policy, Ending::PoweredOff), off, "{policy:?}");
            for crash in [CRASH, Ending::Panicked, Ending::StartFailed] {
                assert_eq!(ended(policy, crash), crashed, "{policy:?} {crash:?}");
            }
        }
    }

    #[test]
    fn a_person_that_starts_the_vm_begins_a_new_count() {
        let mut restarts = Restarts::default();
        while wait(restarts.ended(Duration::ZERO, Restart::Always, CRASH)).is_some() {}
        restarts.forget();
        let next = restarts.ended(Duration::ZERO, Restart::Always, CRASH);
        assert_eq!(wait(next), Some(1));
    }

    proptest! {
        #[test]
        fn no_window_has_more_restarts_than_the_limit(
            gaps in prop::collection::vec(0u64..400, 1..60),
        ) {
            let (mut restarts, mut now) = (Restarts::default(), Duration::ZERO);
            let mut begun: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_secs(gap);
                if let Next::Start { wait, attempt } =
                    restarts.ended(now, Restart::OnFailure, CRASH)
                {
                    prop_assert!((FIRST_WAIT..=LONGEST_WAIT).contains(&wait));
                    prop_assert!((1..=MOST).contains(&attempt));
                    begun.push(now);
                }
                let recent = begun.iter().filter(|at| **at + WINDOW > now);
                prop_assert!(recent.count() <= MOST);
            }
        }
    }
}
