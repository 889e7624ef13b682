//! When the offer is open, and when the VMs of other members are to go: a state machine without IO
//! and clock.
//!
//! The offer closes at once, since a VM that came now would soon have to go again. VMs that are
//! here get a grace period first, so that one pressed key moves none. The offer of a machine that
//! was busy opens again only after it has been idle for a while, so that VMs do not come and go
//! with each pause.

use p2pvm_vm_manager::offer::Closed;
use std::time::Duration;

/// How long the offer is closed before the VMs are moved away.
/// Reason: a short use of the machine, or hours that begin again, is over by then.
const GRACE: Duration = Duration::from_secs(60);
/// How long a machine that was busy is idle before the offer opens again.
const CALM: Duration = Duration::from_secs(120);
/// How long before VMs that could not be moved away are tried again.
const AGAIN: Duration = Duration::from_secs(300);

/// What is observed at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The offer is switched off.
    pub off: bool,
    /// The hours of the offer, if the time is outside of them.
    pub not_in: Option<String>,
    /// The sign that the machine is busy, if the offer is for idle time only.
    pub busy: Option<String>,
    /// VMs of other members run here.
    pub has_tenants: bool,
}

impl Facts {
    fn reason(&self) -> Option<Closed> {
        if self.off {
            return Some(Closed::Off);
        }
        let hours = self.not_in.clone().map(Closed::Hours);
        hours.or_else(|| self.busy.clone().map(Closed::Busy))
    }
}

/// What the host does about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Why no VM of another member may come.
    pub closed: Option<Closed>,
    /// Whether VMs of other members are to be moved away now.
    pub evacuate: bool,
    /// Whether the offer has just opened.
    pub opened: bool,
}

#[derive(Clone, Debug)]
struct Shut {
    why: Closed,
    /// When VMs are moved away next.
    due: Duration,
    /// Since when the machine has been idle again.
    calm: Option<Duration>,
}

/// The state of the offer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Option<Shut>);

impl Gate {
    /// Takes the facts at `now`. The caller asks again every few seconds; `now` never goes back.
    pub(crate) fn handle(&mut self, now: Duration, facts: &Facts) -> Verdict {
        let was_shut = self.0.take();
        self.0 = match facts.reason() {
            Some(why) => Some(shut(now, was_shut.as_ref(), why)),
            None => was_shut.clone().and_then(|was| still_shut(now, was)),
        };
        let Some(shut) = &mut self.0 else {
            return Verdict {
                opened: was_shut.is_some(),
                ..Verdict::default()
            };
        };
        // 'offer off' moves them away by itself and reports how that goes.
        let evacuate =
            shut.why != Closed::Off && shut.calm.is_none() && facts.has_tenants && now >= shut.due;
        if evacuate {
            shut.due = now + AGAIN;
        }
        Verdict {
            closed: Some(shut.why.clone()),
            evacuate,
            opened: false,
        }
    }
}

fn shut(now: Duration, was: Option<&Shut>, why: Closed) -> Shut {
    let due = match was {
        // The grace is not given twice.
        Some(was) if was.why != Closed::Off && was.calm.is_none() => was.due,
        _ => now + GRACE,
    };
    Shut {
        why,
        due,
        calm: None,
    }
}

/// The state after `was` once its reason is gone: after use the offer stays closed for [`CALM`].
fn still_shut(now: Duration, was: Shut) -> Option<Shut> {
    if !matches!(was.why, Closed::Busy(_)) {
        return None;
    }
    let calm = was.calm.unwrap_or(now);
    let left = CALM.checked_sub(now.saturating_sub(calm))?;
    if left.is_zero() {
        return None;
    }
    Some(Shut {
        why: Closed::Busy(format!(
            "it was in use until {} s ago",
            now.saturating_sub(calm).as_secs()
        )),
        calm: Some(calm),
        ..was
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn open() -> Facts {
        Facts {
            has_tenants: true,
            ..Facts::default()
        }
    }

    fn busy() -> Facts {
        Facts {
            busy: Some("a key".into()),
            ..open()
        }
    }

    fn night() -> Facts {
        Facts {
            not_in: Some("18:00-08:00".into()),
            ..open()
        }
    }

    #[test]
    fn it_closes_at_once_and_moves_vms_after_the_grace_and_again() {
        for facts in [busy(), night()] {
            let mut gate = Gate::default();
            assert_eq!(gate.handle(at(0), &open()), Verdict::default());
            let mut moved = Vec::new();
            for second in 1..=800 {
                let verdict = gate.handle(at(second), &facts);
                assert!(verdict.closed.is_some());
                if verdict.evacuate {
                    moved.push(second);
                }
            }
            assert_eq!(moved, [61, 361, 661]);
        }
    }

    #[test]
    fn a_short_use_moves_nothing_and_opens_after_a_calm() {
        let mut gate = Gate::default();
        assert!(gate.handle(at(0), &busy()).closed.is_some());
        for second in 30..150 {
            let verdict = gate.handle(at(second), &open());
            assert!(verdict.closed.is_some() && !verdict.evacuate, "{second}");
        }
        assert!(gate.handle(at(150), &open()).opened);
        assert_eq!(gate.handle(at(151), &open()), Verdict::default());
    }

    #[test]
    fn use_in_pauses_begins_a_new_grace_but_never_opens() {
        let mut gate = Gate::default();
        for second in 0..600 {
            let facts = if second % 100 < 50 { busy() } else { open() };
            let verdict = gate.handle(at(second), &facts);
            assert!(verdict.closed.is_some() && !verdict.evacuate, "{second}");
        }
    }

    #[test]
    fn hours_open_at_their_first_minute_and_off_moves_nothing_by_itself() {
        let mut gate = Gate::default();
        assert!(gate.handle(at(0), &night()).closed.is_some());
        assert!(gate.handle(at(10), &open()).opened);
        let off = Facts {
            off: true,
            ..busy()
        };
        for second in 20..900 {
            let verdict = gate.handle(at(second), &off);
            assert_eq!(
                (verdict.closed, verdict.evacuate),
                (Some(Closed::Off), false)
            );
        }
        // It is switched on while the machine is busy: a grace, as ever.
        assert!(!gate.handle(at(900), &busy()).evacuate);
        assert!(gate.handle(at(960), &busy()).evacuate);
    }

    #[test]
    fn a_host_without_tenants_has_nothing_to_move() {
        let mut gate = Gate::default();
        let empty = Facts {
            has_tenants: false,
            ..busy()
        };
        for second in 0..600 {
            assert!(!gate.handle(at(second), &empty).evacuate);
        }
    }

    proptest! {
        /// Whatever comes, a reason closes at once, and VMs are moved only while there is one.
        #[test]
        fn no_vm_moves_without_a_reason_and_none_comes_with_one(
            steps in proptest::collection::vec((0u64..200, any::<[bool; 4]>()), 1..60)
        ) {
            let (mut gate, mut now) = (Gate::default(), 0);
            for (passed, [off, not_in, busy, has_tenants]) in steps {
                now += passed;
                let facts = Facts {
                    off,
                    not_in: not_in.then(|| "18:00-08:00".to_owned()),
                    busy: busy.then(|| "a key".to_owned()),
                    has_tenants,
                };
                let verdict = gate.handle(at(now), &facts);
                prop_assert!(verdict.closed.is_some() || facts.reason().is_none());
                prop_assert!(!verdict.evacuate || (!off && (not_in || busy) && has_tenants));
                prop_assert!(!(verdict.opened && verdict.closed.is_some()));
            }
        }
    }
}
