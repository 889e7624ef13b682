//! Leases: what lets a member start a VM unasked when its host is gone. The host of a *protected*
//! VM asks its voters every 10 s to renew its lease of 30 s, and holds the guest still when no
//! majority has renewed it in time. A voter that renewed grants no other member an epoch unasked
//! until the lease has run out by its own clock; so of a host that was cut off and an heir that
//! took over at most one runs (Gray, Cheriton 1989).
//!
//! Three pure state machines, which the daemon runs and the model check drives: the voter's rule
//! (`rule`), the host's right to run ([`tenure`]) and the heir's patience ([`heir`]). All times
//! are those of a clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`); nobody compares
//! the clocks of two members. A host counts from when it *sent* its request and stops early by
//! [`CLOCK_GUARD`] and [`FREEZE_MARGIN`]; a voter counts from when the request came.

use std::time::Duration;

mod ask;
mod boot;
pub mod heir;
#[cfg(test)]
mod model;
pub(super) mod rule;
#[cfg(test)]
mod rule_tests;
pub mod tenure;
pub(super) mod voter;
pub(super) mod wire;

pub use boot::BootClock;
pub use heir::{Heir, HeirInput, HeirOutput, Ward};
pub use tenure::{Tenure, TenureInput, TenureOutput};

use super::{NewestEpoch, VoterSet};
use p2pvm_overlay::{Epoch, MemberId};

/// How long a voter grants no unasked take-over after a renewal, by its own clock.
/// Reason: two renewals in a row may be lost.
pub const LEASE: Duration = Duration::from_secs(30);

/// How often a host renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// The part of the lease that a host uses.
/// Reason: two clocks may each be wrong by 1.5 %.
pub const CLOCK_GUARD: f64 = 0.97;

/// How much earlier still a host stops.
/// Reason: without real-time priority the freeze was up to 0.7 s late.
pub const FREEZE_MARGIN: Duration = Duration::from_secs(1);

/// How long before the deadline the host stops the guest by itself.
/// Reason: a guest that its hypervisor stopped keeps its time; one that is frozen sees it jump.
pub const SOFT_STOP: Duration = Duration::from_secs(2);

/// How many VMs one renewal names at most.
pub const MAX_RENEWED: usize = 256;

/// Until when a host may run the guest whose renewal it sent at `sent` (`CLOCK_BOOTTIME`) and a
/// majority answered.
pub fn lease_end(sent: Duration) -> Duration {
    sent + Terms::REAL.held
}

/// The durations of the protocol. The daemon uses [`Terms::REAL`]; the model counts in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// How long a voter counts.
    pub lease: Duration,
    /// How long a host counts, from its sending.
    pub held: Duration,
    /// How often a host asks.
    pub renew_every: Duration,
    /// How soon it asks again when too few answered.
    pub retry: Duration,
    /// How long before the deadline it stops the guest softly.
    pub soft_stop: Duration,
    /// How long an heir waits for each heir before it.
    pub rank_pause: Duration,
    #[cfg(test)]
    pub(crate) mutant: Option<Mutant>,
}

impl Terms {
    /// What every member uses.
    pub const REAL: Self = Self {
        lease: LEASE,
        // 0.97 of the lease, less the margin.
        held: Duration::from_millis(28_100),
        renew_every: RENEW_EVERY,
        retry: Duration::from_secs(3),
        soft_stop: SOFT_STOP,
        rank_pause: Duration::from_secs(2),
        #[cfg(test)]
        mutant: None,
    };

    /// Whether this fault is built in: only the tests of this crate can do that.
    #[cfg(test)]
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    pub(crate) const fn has(&self, _: Mutant) -> bool {
        false
    }
}

/// Faults that the model check must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    /// A voter that restarted gives away what it may have leased before.
    NoQuarantine,
    /// A renewal of an older epoch is still answered with yes.
    RenewAfterNewer,
    /// Voters look at epochs only, and leave the time to the heir's clock.
    IgnoresLease,
    /// A promise ends the lease of the member that hands over.
    PromiseEndsLease,
    /// A protected VM is promised to any member with its key, as an unprotected one.
    UnaskedPromise,
    /// A host counts its lease from the answer.
    FromAnswer,
    /// A host uses the whole lease.
    NoGuard,
    /// A frozen host goes on without a majority's word.
    ThawUnasked,
    /// A source hands over whatever is left of its lease.
    HandOverLate,
}

/// A VM that a host asks to renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The VM and its voters.
    pub set: VoterSet,
    /// The epoch in which the host runs it.
    pub epoch: Epoch,
}

/// What the voters of a VM say to a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// A majority renewed: the lease counts from when the request was sent.
    Ours,
    /// A majority knows newer epochs: this copy has become a branch.
    Newer {
        /// The newest of them.
        epoch: Epoch,
        /// The member that it was promised to.
        holder: MemberId,
    },
    /// Neither. Voters that answered but did not renew have missed the VM's protection or epoch:
    /// [`super::Votes::protect`] tells them.
    Undecided {
        /// How many voters answered.
        answered: usize,
        /// How many there are.
        asked: usize,
    },
}

/// What a majority of voters says about a VM's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The newest epoch, as of [`super::Votes::newest`].
    pub newest: Option<NewestEpoch>,
    /// Whether a majority may have the VM as protected; false: a majority has not.
    pub protected: bool,
    /// How long until each of that majority grants an unasked take-over; zero: now.
    pub free_in: Duration,
}
