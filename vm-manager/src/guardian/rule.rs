//! The guardian's rules, without IO: which deadline stands for which VM, and what a request may
//! change.
//!
//! 1. Time comes first: a request that is handled when a deadline is over finds the guest frozen,
//!    whichever of the two the driver saw first.
//! 2. A renewal never thaws, and moves no deadline to an earlier time. A thaw needs a deadline in
//!    the future.
//! 3. No deadline is further away than [`LONGEST`].
//! 4. An older epoch changes nothing.
//! 5. A daemon's end changes nothing: the deadlines stand, and the next daemon arms again.
//!
//! The driver calls [`Rule::due`] until it gives nothing, then [`Rule::ask`], with one reading of
//! the clock. Nothing here allocates after [`Rule::new`].

use super::message::{Ask, LONGEST, Refusal, Reply};
use p2pvm_overlay::{Epoch, VmId};
use std::time::Duration;

/// How many guests are held at most. Reason: more than any host runs, and small enough to look
/// through at each deadline.
pub(super) const MOST: usize = 1024;

/// One VM's deadline, and the driver's hold on its process.
#[derive(Debug)]
struct Held<H> {
    vm: VmId,
    epoch: Epoch,
    deadline: Duration,
    is_frozen: bool,
    process: (i32, u64),
    hold: H,
}

/// What a driver brings with a request to arm: its hold on the process.
pub(super) struct Offer<H> {
    pub(super) hold: H,
    /// The process stands frozen or stopped already.
    pub(super) stands: bool,
}

/// A guest whose time is over, to be frozen now.
pub(super) struct Due<'a, H> {
    pub(super) vm: VmId,
    pub(super) deadline: Duration,
    pub(super) hold: &'a mut H,
}

/// The answer, and what the driver has to do before it is sent.
pub(super) struct Ruling<'a, H> {
    pub(super) reply: Reply,
    pub(super) deed: Deed<'a, H>,
}

/// What a request makes the driver do.
pub(super) enum Deed<'a, H> {
    Nothing,
    /// Let this guest run.
    Thaw(&'a mut H),
    /// Let go of this process, without a change of what it does.
    Release(H),
}

/// All deadlines of a host.
#[derive(Debug)]
pub(super) struct Rule<H> {
    held: Vec<Held<H>>,
}

impl<H> Rule<H> {
    pub(super) fn new() -> Self {
        Self {
            held: Vec::with_capacity(MOST),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The earliest deadline of a guest that runs.
    pub(super) fn next(&self) -> Option<Duration> {
        let running = self.held.iter().filter(|held| !held.is_frozen);
        running.map(|held| held.deadline).min()
    }

    /// All holds, with their VMs.
    pub(super) fn holds(&self) -> impl Iterator<Item = (VmId, &H)> {
        self.held.iter().map(|held| (held.vm, &held.hold))
    }

    /// A guest whose time is over, the longest first; it counts as frozen from here on.
    pub(super) fn due(&mut self, now: Duration) -> Option<Due<'_, H>> {
        let late = self.held.iter_mut().filter(|held| held.is_late(now));
        let held = late.min_by_key(|held| held.deadline)?;
        held.is_frozen = true;
        Some(Due {
            vm: held.vm,
            deadline: held.deadline,
            hold: &mut held.hold,
        })
    }

    /// Ends all deadlines now: the time of this machine is not to be trusted.
    pub(super) fn alarm(&mut self, now: Duration) {
        for held in &mut self.held {
            held.deadline = held.deadline.min(now);
        }
    }

    /// Whether that process of the VM is held already: then there is nothing to offer.
    pub(super) fn has(&self, vm: VmId, process: (i32, u64)) -> bool {
        let mut held = self.held.iter();
        held.any(|held| held.vm == vm && held.process == process)
    }

    /// Something else stopped that guest: it counts as frozen. False if it did before.
    pub(super) fn stopped(&mut self, vm: VmId) -> bool {
        let held = self.find(vm);
        held.is_some_and(|held| !std::mem::replace(&mut held.is_frozen, true))
    }

    /// Forgets a VM whose process has ended.
    pub(super) fn ended(&mut self, vm: VmId) -> Option<H> {
        let at = self.held.iter().position(|held| held.vm == vm)?;
        Some(self.held.swap_remove(at).hold)
    }

    /// Rules on a request; `offer` comes with one to arm.
    pub(super) fn ask(
        &mut self,
        now: Duration,
        ask: Ask,
        offer: Option<Offer<H>>,
    ) -> Ruling<'_, H> {
        match ask {
            Ask::Hello => Ruling::only(Reply::Ready { lacks: 0 }),
            Ask::Arm {
                vm,
                epoch,
                deadline,
                pid,
                started,
            } => self.arm(now, (vm, epoch, deadline), (pid, started), offer),
            Ask::Renew {
                vm,
                epoch,
                deadline,
            } => self.renew(now, vm, epoch, deadline),
            Ask::Thaw {
                vm,
                epoch,
                deadline,
            } => self.thaw(now, vm, epoch, deadline),
            Ask::Drop { vm } => Ruling {
                reply: Reply::Dropped { vm },
                deed: self.ended(vm).map_or(Deed::Nothing, Deed::Release),
            },
            Ask::Look { vm } => Ruling::only(match self.find(vm) {
                None => Reply::Refused {
                    why: Refusal::Unknown,
                },
                Some(held) => held.reply(now),
            }),
        }
    }

    fn find(&mut self, vm: VmId) -> Option<&mut Held<H>> {
        self.held.iter_mut().find(|held| held.vm == vm)
    }

    fn arm(
        &mut self,
        now: Duration,
        (vm, epoch, deadline): (VmId, Epoch, Duration),
        process: (i32, u64),
        offer: Option<Offer<H>>,
    ) -> Ruling<'_, H> {
        if self.has(vm, process) {
            return self.renew(now, vm, epoch, deadline);
        }
        if self.find(vm).is_some() {
            return Ruling {
                reply: Reply::Refused { why: Refusal::Busy },
                deed: offer.map_or(Deed::Nothing, |offer| Deed::Release(offer.hold)),
            };
        }
        let Some(offer) = offer else {
            return Ruling::refuse(Refusal::NoProcess);
        };
        let is_over = deadline <= now && !offer.stands;
        let refusal = match () {
            () if deadline > now + LONGEST => Some(Refusal::TooFar),
            () if is_over => Some(Refusal::Past),
            () if self.held.len() >= MOST => Some(Refusal::Full),
            () => None,
        };
        if let Some(why) = refusal {
            return Ruling {
                reply: Reply::Refused { why },
                deed: Deed::Release(offer.hold),
            };
        }
        self.held.push(Held {
            vm,
            epoch,
            deadline,
            is_frozen: offer.stands,
            process,
            hold: offer.hold,
        });
        Ruling::only(match offer.stands {
            true => Reply::Frozen { vm },
            false => Reply::Armed { vm },
        })
    }

    fn renew(
        &mut self,
        now: Duration,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    ) -> Ruling<'_, H> {
        let Some(held) = self.find(vm) else {
            return Ruling::refuse(Refusal::Unknown);
        };
        if let Some(why) = held.objection(now, epoch, deadline) {
            return Ruling::refuse(why);
        }
        if !held.is_frozen && !held.is_late(now) {
            held.epoch = epoch;
            held.deadline = held.deadline.max(deadline);
        }
        Ruling::only(held.reply(now))
    }

    fn thaw(&mut self, now: Duration, vm: VmId, epoch: Epoch, deadline: Duration) -> Ruling<'_, H> {
        let Some(held) = self.find(vm) else {
            return Ruling::refuse(Refusal::Unknown);
        };
        let over = (deadline <= now).then_some(Refusal::Past);
        if let Some(why) = held.objection(now, epoch, deadline).or(over) {
            return Ruling::refuse(why);
        }
        held.epoch = epoch;
        let was_frozen = std::mem::take(&mut held.is_frozen);
        held.deadline = match was_frozen {
            true => deadline,
            false => held.deadline.max(deadline),
        };
        Ruling {
            reply: Reply::Armed { vm },
            deed: match was_frozen {
                true => Deed::Thaw(&mut held.hold),
                false => Deed::Nothing,
            },
        }
    }
}

impl<H> Held<H> {
    fn is_late(&self, now: Duration) -> bool {
        !self.is_frozen && self.deadline <= now
    }

    fn objection(&self, now: Duration, epoch: Epoch, deadline: Duration) -> Option<Refusal> {
        if deadline > now + LONGEST {
            return Some(Refusal::TooFar);
        }
        (epoch < self.epoch).then_some(Refusal::Stale)
    }

    fn reply(&self, now: Duration) -> Reply {
        match self.is_frozen || self.is_late(now) {
            true => Reply::Frozen { vm: self.vm },
            false => Reply::Armed { vm: self.vm },
        }
    }
}

impl<H> Ruling<'_, H> {
    fn only(reply: Reply) -> Self {
        Self {
            reply,
            deed: Deed::Nothing,
        }
    }

    fn refuse(why: Refusal) -> Self {
        Self::only(Reply::Refused { why })
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
