//! The host's side: how long it may run a protected guest, as a state machine without IO.
//!
//! The shell sends the renewals, hands the deadlines to a guardian that freezes the guest without
//! the daemon's help, and reports what happened. One tenure is about one epoch: after a take-back
//! or a take-over a new one begins. Times are of one clock that counts the machine's sleep.

use super::{Mutant, Renewed, Terms};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

/// An event at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenureInput {
    /// Begin to ask for the lease: before a protected guest starts, after the daemon found a guest
    /// again, or after a hand-over that came to nothing.
    Start,
    /// The voters granted or confirmed the epoch for this host, asked at this time: that is a lease
    /// too.
    Granted(Duration),
    /// Time passed.
    Tick,
    /// The renewal with this serial number is about to be sent.
    RenewalSent(u64),
    /// What the voters said to it.
    Answer(u64, Renewed),
    /// The guest began to run, or runs again.
    ThawedOrStarted,
    /// The voters are asked to promise the next epoch to a move's target: they renew this one no
    /// more. What is left of the lease goes on.
    HandingOver,
    /// The guest ended, or is not protected any more.
    Stopped,
}

/// An action that the host has to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenureOutput {
    /// Ask the voters, with this serial number.
    Renew(u64),
    /// The guest may run until then: tell the guardian. The first one lets it start.
    Arm(Duration),
    /// Stop the guest's processors and shut its port: the deadline is near.
    SoftStop,
    /// The deadline passed: the guardian has frozen the guest, or does so now.
    Froze,
    /// The guest may run again, until then.
    Thaw(Duration),
    /// Stop the guest now: its host is another member in a newer epoch, and this copy a branch.
    Lost {
        /// The newest epoch.
        epoch: Epoch,
        /// Its holder.
        holder: MemberId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// It had no lease yet.
    Waiting,
    Running,
    SoftStopped,
    Frozen,
    Over,
}

/// A host's right to run one guest in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    terms: Terms,
    state: State,
    serial: u64,
    /// The renewal that is not answered yet, and when it was sent.
    sent: Option<(u64, Duration)>,
    deadline: Option<Duration>,
    ask_at: Option<Duration>,
}

impl Tenure {
    /// Without a lease, and before anything was asked.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Waiting,
            serial: 0,
            sent: None,
            deadline: None,
            ask_at: None,
        }
    }

    /// Whether the guest may run now.
    pub fn may_run(&self, now: Duration) -> bool {
        self.state == State::Running && self.deadline.is_some_and(|t| now < t)
    }

    /// Until when the guest may run, if it may.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Whether the guest may be handed over to a target that runs unconfirmed for at most `longest`
    /// from now, the clock guard included: all of that time must lie within this lease, which every
    /// heir waits for.
    pub fn may_hand_over(&self, now: Duration, longest: Duration) -> bool {
        let is_enough = self.deadline.is_some_and(|t| now + longest <= t);
        self.may_run(now) && (is_enough || self.terms.has(Mutant::HandOverLate))
    }

    /// When [`TenureInput::Tick`] is due next.
    pub fn next_tick(&self) -> Option<Duration> {
        let stop = match self.state {
            State::Running => self
                .deadline
                .map(|t| t.saturating_sub(self.terms.soft_stop)),
            State::SoftStopped => self.deadline,
            _ => None,
        };
        stop.into_iter().chain(self.ask_at).min()
    }

    /// Takes an input at `now`.
    pub fn handle(&mut self, now: Duration, input: TenureInput) -> Vec<TenureOutput> {
        let mut outputs = Vec::new();
        // Time first: a late input must find the state that it would have found in time.
        self.pass(now, &mut outputs);
        self.take(now, input, &mut outputs);
        outputs
    }

    fn pass(&mut self, now: Duration, outputs: &mut Vec<TenureOutput>) {
        if let Some(deadline) = self.deadline {
            if now >= deadline {
                self.deadline = None;
                self.state = State::Frozen;
                outputs.push(TenureOutput::Froze);
            } else if self.state == State::Running && now + self.terms.soft_stop >= deadline {
                self.state = State::SoftStopped;
                outputs.push(TenureOutput::SoftStop);
            }
        }
        if self.ask_at.is_some_and(|t| now >= t) {
            self.serial += 1;
            self.ask_at = Some(now + self.terms.renew_every);
            outputs.push(TenureOutput::Renew(self.serial));
        }
    }

    fn take(&mut self, now: Duration, input: TenureInput, outputs: &mut Vec<TenureOutput>) {
        use TenureInput as In;
        if self.state == State::Over {
            return;
        }
        match input {
            In::Tick => {}
            In::Start => {
                if self.ask_at.is_none() {
                    self.ask_at = Some(now);
                    self.pass(now, outputs);
                }
            }
            In::Granted(sent) => {
                self.ask_at = Some(sent + self.terms.renew_every);
                self.renewed(now, sent, outputs);
            }
            In::RenewalSent(serial) if serial == self.serial => self.sent = Some((serial, now)),
            In::Answer(serial, renewed) => {
                if let Some((_, sent)) = self.sent.take_if(|(s, _)| *s == serial) {
                    self.answered(now, sent, renewed, outputs);
                }
            }
            // An answer to an older request says nothing that a newer one will not say.
            In::RenewalSent(_) => {}
            In::ThawedOrStarted => {
                if matches!(self.state, State::Waiting | State::Frozen) {
                    outputs.push(TenureOutput::Froze);
                }
            }
            In::HandingOver => self.ask_at = None,
            In::Stopped => self.end(),
        }
    }

    fn answered(
        &mut self,
        now: Duration,
        sent: Duration,
        renewed: Renewed,
        outputs: &mut Vec<TenureOutput>,
    ) {
        match renewed {
            Renewed::Ours => self.renewed(now, sent, outputs),
            // Voters that promised the next epoch to the target of a move know a newer one.
            Renewed::Newer { epoch, holder } if self.ask_at.is_some() => {
                self.end();
                outputs.push(TenureOutput::Lost { epoch, holder });
            }
            Renewed::Undecided { .. } if self.terms.has(Mutant::ThawUnasked) => {
                self.renewed(now, sent, outputs);
            }
            Renewed::Newer { .. } | Renewed::Undecided { .. } => {
                self.ask_at = self.ask_at.map(|t| t.min(now + self.terms.retry));
            }
        }
    }

    /// A lease counts from the sending of what was granted: an answer that comes late is worth
    /// less, and one that comes after its lease nothing.
    fn renewed(&mut self, now: Duration, sent: Duration, outputs: &mut Vec<TenureOutput>) {
        let begins = if self.terms.has(Mutant::FromAnswer) {
            now
        } else {
            sent
        };
        let held = if self.terms.has(Mutant::NoGuard) {
            self.terms.lease
        } else {
            self.terms.held
        };
        let deadline = (begins + held).max(self.deadline.unwrap_or_default());
        if deadline <= now {
            return;
        }
        self.deadline = Some(deadline);
        outputs.push(match self.state {
            State::SoftStopped | State::Frozen => TenureOutput::Thaw(deadline),
            _ => TenureOutput::Arm(deadline),
        });
        self.state = State::Running;
    }

    fn end(&mut self) {
        self.state = State::Over;
        (self.sent, self.deadline, self.ask_at) = (None, None, None);
    }

    /// The newest renewal's serial number.
    #[cfg(test)]
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Moves the origin of its clock: times older than `floor` count as `floor`, and the serial
    /// numbers begin anew.
    #[cfg(test)]
    pub(crate) fn rebase(&mut self, by: Duration, floor: Duration) {
        let moved = |t: Duration| t.saturating_sub(by).max(floor);
        self.sent = self.sent.map(|(_, t)| (1, moved(t)));
        self.serial = u64::from(self.sent.is_some());
        self.deadline = self.deadline.map(moved);
        self.ask_at = self.ask_at.map(moved);
    }
}

#[cfg(test)]
#[path = "tenure_tests.rs"]
mod tests;
