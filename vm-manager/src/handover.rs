//! The right to run the guest during a migration, as two small state machines without IO.
//!
//! The target may begin to run within its *window* (ten seconds from its last arming) and must have
//! a majority's confirmation two seconds after it, or freeze. The source, having handed over and
//! heard nothing, counts from the moment in which the last arming was answered; when that time and
//! the clock guard have passed, a target without confirmation is frozen for certain, and the
//! voters' next epoch decides. So the two never run at once, whatever is lost or late, and the
//! hand-over itself waits for no voter.
//!
//! Times are durations since any fixed moment of a clock that goes on while the machine sleeps
//! ([`crate::clock`]).

use std::time::Duration;

/// How long after its last arming a target may begin to run the guest. Reason: the source arms it
/// every three seconds, so that one arming may get lost, and without news after the hand-over the
/// source has to wait this long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How long past the window a target that runs may stay unconfirmed before it freezes itself.
/// Reason: a guest that begins at the window's end still has to be confirmed.
pub const CONFIRM_GRACE: Duration = Duration::from_secs(2);
/// How many times as long as the target's window the source waits. Reason: two clocks may drift
/// apart by this much.
pub const CLOCK_GUARD: f64 = 1.03;
/// How much of the window must be left when the guest is handed over. Reason: the last of memory
/// still has to reach the target.
const FRESH: Duration = Duration::from_secs(4);

/// A target's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// It is not armed, or armed and not whole yet.
    Waiting,
    /// It runs, unconfirmed.
    Running,
    /// It runs for good.
    Confirmed,
    /// It ran unconfirmed until its time was over, and is held still.
    Frozen,
    /// It will never run.
    GaveUp,
}

/// An event at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetInput {
    /// The source armed the target, with the arming's serial number; the voters granted the epoch
    /// before the first.
    Arm(u64),
    /// RAM and disk are complete.
    Whole,
    /// The source asks to take the guest back, or a step failed here.
    Abandon,
    /// A majority confirmed.
    Confirmed,
    /// A voter has promised a newer epoch to another.
    Refused,
    /// Time passed.
    Tick,
}

/// An action that the target has to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetOutput {
    /// Answer that it is armed.
    Armed,
    /// Run the guest and ask for confirmation.
    Resume,
    /// The guest is this host's.
    Settle,
    /// Stop the guest's processors now; the voters decide.
    Freeze,
    /// Destroy the guest: it never ran.
    GiveUp,
}

/// A target's right to run.
#[derive(Clone, Debug)]
pub struct TargetWindow {
    state: TargetState,
    serial: u64,
    closes: Option<Duration>,
}

impl Default for TargetWindow {
    fn default() -> Self {
        Self {
            state: TargetState::Waiting,
            serial: 0,
            closes: None,
        }
    }
}

impl TargetWindow {
    /// The target's state.
    pub fn state(&self) -> TargetState {
        self.state
    }

    /// When [`TargetInput::Tick`] is due next.
    pub fn next_tick(&self) -> Option<Duration> {
        match self.state {
            TargetState::Waiting => self.closes,
            TargetState::Running => self.closes.map(|t| t + CONFIRM_GRACE),
            _ => None,
        }
    }

    /// Takes an input at `now`.
    pub fn handle(&mut self, now: Duration, input: TargetInput) -> Option<TargetOutput> {
        use {TargetInput as In, TargetOutput as Out, TargetState as State};
        // Time first: a late input must find the state that it would have found in time.
        if self.next_tick().is_some_and(|t| now >= t) {
            let (state, output) = match self.state {
                State::Waiting => (State::GaveUp, Out::GiveUp),
                _ => (State::Frozen, Out::Freeze),
            };
            self.state = state;
            return Some(output);
        }
        match (self.state, input) {
            // A serial at or below the last is that of a delayed request: it must not extend the
            // window.
            (State::Waiting, In::Arm(serial)) if serial > self.serial => {
                (self.serial, self.closes) = (serial, Some(now + WINDOW));
                Some(Out::Armed)
            }
            (State::Waiting, In::Whole) if self.closes.is_some() => {
                self.state = State::Running;
                Some(Out::Resume)
            }
            (State::Waiting, In::Abandon | In::Whole) => {
                self.state = State::GaveUp;
                Some(Out::GiveUp)
            }
            (State::Running, In::Refused) => {
                self.state = State::Frozen;
                Some(Out::Freeze)
            }
            (State::Running, In::Confirmed) => {
                self.state = State::Confirmed;
                Some(Out::Settle)
            }
            _ => None,
        }
    }
}

/// The source's bound on the target's right to run.
#[derive(Clone, Debug, Default)]
pub struct SourceClaim {
    serial: u64,
    sent: Duration,
    /// When the last answered arming was sent, and when its answer came.
    answered: Option<(Duration, Duration)>,
    /// Armings sent after that one.
    unanswered: u32,
}

impl SourceClaim {
    /// An arming is sent; returns its serial number.
    pub fn arm(&mut self, now: Duration) -> u64 {
        self.serial += 1;
        self.sent = now;
        self.unanswered += 1;
        self.serial
    }

    /// The newest arming was answered.
    pub fn armed(&mut self, now: Duration) {
        assert!(self.serial > 0, "an answer follows an arming");
        self.answered = Some((self.sent, now));
        self.unanswered = 0;
    }

    /// Whether enough of the window is left to hand the guest over now.
    pub fn may_hand_over(&self, now: Duration) -> bool {
        self.answered
            .is_some_and(|(sent, _)| now + FRESH <= sent + WINDOW)
    }

    /// From when on a target without a majority's confirmation certainly does not run. `None`: it
    /// was never armed.
    ///
    /// The target's window began no later than its answer came. Each unanswered arming may still
    /// have reached it, but only while its window was open, and so have added one window at most.
    pub fn target_is_frozen_from(&self) -> Option<Duration> {
        let (_, came) = self.answered?;
        Some(came + longest_run(self.unanswered))
    }
}

/// How long after an answered arming, followed by `unanswered` ones, a target may run unconfirmed,
/// with the clock guard.
pub fn longest_run(unanswered: u32) -> Duration {
    (WINDOW * (1 + unanswered) + CONFIRM_GRACE).mul_f64(CLOCK_GUARD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_unconfirmed_target_freezes_when_its_grace_is_over() {
        let mut target = TargetWindow::default();
        assert_eq!(
            target.handle(MS, TargetInput::Arm(1)),
            Some(TargetOutput::Armed)
        );
        assert_eq!(
            target.handle(2 * MS, TargetInput::Whole),
            Some(TargetOutput::Resume)
        );
        let due = target.next_tick().unwrap();
        assert_eq!(due, MS + WINDOW + CONFIRM_GRACE);
        assert_eq!(target.handle(due - MS, TargetInput::Tick), None);
        assert_eq!(
            target.handle(due, TargetInput::Confirmed),
            Some(TargetOutput::Freeze)
        );
        assert_eq!(target.handle(due + MS, TargetInput::Confirmed), None);
    }

    #[test]
    fn a_target_that_slept_freezes_before_anything_else() {
        let mut target = TargetWindow::default();
        target.handle(MS, TargetInput::Arm(1));
        target.handle(2 * MS, TargetInput::Whole);
        let woke = Duration::from_secs(60);
        let mut woken = target.clone();
        assert_eq!(
            target.handle(woke, TargetInput::Tick),
            Some(TargetOutput::Freeze)
        );
        assert_eq!(
            woken.handle(woke, TargetInput::Confirmed),
            Some(TargetOutput::Freeze)
        );
    }

    #[test]
    fn a_late_or_repeated_arming_extends_nothing() {
        let mut target = TargetWindow::default();
        target.handle(MS, TargetInput::Arm(2));
        let closes = target.next_tick().unwrap();
        assert_eq!(target.handle(5 * MS, TargetInput::Arm(1)), None);
        assert_eq!(target.handle(5 * MS, TargetInput::Arm(2)), None);
        assert_eq!(target.next_tick(), Some(closes));
        assert_eq!(
            target.handle(closes, TargetInput::Arm(3)),
            Some(TargetOutput::GiveUp)
        );
    }

    #[test]
    fn a_target_that_was_asked_to_give_up_never_runs() {
        let mut target = TargetWindow::default();
        target.handle(MS, TargetInput::Arm(1));
        assert_eq!(
            target.handle(2 * MS, TargetInput::Abandon),
            Some(TargetOutput::GiveUp)
        );
        assert_eq!(target.handle(3 * MS, TargetInput::Whole), None);
        let mut ran = TargetWindow::default();
        ran.handle(MS, TargetInput::Arm(1));
        ran.handle(2 * MS, TargetInput::Whole);
        assert_eq!(
            ran.handle(3 * MS, TargetInput::Abandon),
            None,
            "one that runs says so instead"
        );
    }

    /// What reaches a target, and when by its clock.
    type Inputs = Vec<(Duration, TargetInput)>;

    /// Whether the target answers the last arming that has reached it by `at`.
    fn answers(inputs: &Inputs, at: Duration, serial: u64) -> bool {
        let mut probe = TargetWindow::default();
        let last = inputs
            .iter()
            .filter(|(arrives, _)| *arrives <= at)
            .map(|(arrives, input)| probe.handle(*arrives, *input))
            .next_back();
        last == Some(Some(TargetOutput::Armed)) && probe.serial == serial
    }

    /// A source that arms its target up to seven times, some requests late or unanswered, and may
    /// hand the guest over: the source, what reaches the target, and the moment of the hand-over.
    /// All in the target's time, which the source reads as `theirs` says.
    fn arm_at_random(
        rng: &mut StdRng,
        theirs: impl Fn(Duration) -> Duration,
    ) -> (SourceClaim, Inputs, Option<Duration>) {
        let (mut source, mut inputs) = (SourceClaim::default(), Inputs::new());
        let mut at = Duration::ZERO;
        for _ in 0..rng.random_range(1..8) {
            at += Duration::from_millis(rng.random_range(100..4000));
            let serial = source.arm(theirs(at));
            let slow = if rng.random_bool(0.3) { 25_000 } else { 300 };
            let arrives = at + Duration::from_millis(rng.random_range(1..slow));
            inputs.push((arrives, TargetInput::Arm(serial)));
            inputs.sort_by_key(|(arrives, _)| *arrives);
            let back = arrives + Duration::from_millis(rng.random_range(1..300));
            let in_time = back < at + Duration::from_secs(3);
            if rng.random_bool(0.7) && in_time && answers(&inputs, arrives, serial) {
                source.armed(theirs(back));
                at = back;
            }
            if source.may_hand_over(theirs(at)) && rng.random_bool(0.3) {
                return (source, inputs, Some(at));
            }
        }
        (source, inputs, None)
    }

    /// Until when an unconfirmed target runs that takes these inputs; `None`: it never runs.
    fn runs_until(inputs: Inputs) -> Option<Duration> {
        let (mut target, mut ran_until) = (TargetWindow::default(), None);
        for (at, input) in inputs {
            while let Some(due) = target.next_tick().filter(|due| *due <= at) {
                if target.handle(due, TargetInput::Tick) == Some(TargetOutput::Freeze) {
                    ran_until = Some(due);
                }
            }
            target.handle(at, input);
        }
        match target.state() {
            TargetState::Running => target.next_tick(),
            _ => ran_until,
        }
    }

    /// Random armings that arrive late, out of order or never, random answers, clocks that differ
    /// by up to 2.9 %, the source's being the faster: an unconfirmed target has stopped by the time
    /// from which the source counts on it.
    #[test]
    fn the_source_never_counts_on_a_target_that_still_runs() {
        for seed in 0..20_000u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let drift = rng.random_range(1.0..1.029);
            let theirs = |t: Duration| t.mul_f64(drift);
            let (source, mut inputs, handed) = arm_at_random(&mut rng, theirs);
            let Some(handed) = handed else { continue };
            let whole = handed + Duration::from_millis(rng.random_range(1..30_000));
            inputs.push((whole, TargetInput::Whole));
            inputs.sort_by_key(|(arrives, _)| *arrives);
            if let (Some(until), Some(from)) = (runs_until(inputs), source.target_is_frozen_from())
            {
                assert!(
                    theirs(until) <= from,
                    "seed {seed}: ran until {:?}, source resumes at {from:?}",
                    theirs(until)
                );
            }
        }
    }
}
