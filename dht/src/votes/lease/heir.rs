//! An heir's patience, as a state machine without IO: when it looks after the host, when it looks
//! at the voters, and when it asks for the next epoch. It never judges whether the lease has run
//! out: voters do, each by its own clock. Its waiting only keeps heirs from blocking each other,
//! since a promise of a minority blocks that voter for a whole lease.

use super::{super::after, LeaseView, Terms};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

/// How often at most an heir asks the host.
/// Reason: the host's connection may come back within a second.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// What an heir is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeirInput {
    /// The host answered, or was heard of otherwise.
    HostAnswers,
    /// The host did not answer.
    HostSilent,
    /// What a majority of voters said; `None`: too few answered.
    View(Option<LeaseView>),
    /// The take-over was granted.
    Granted,
    /// The take-over was refused, or too few voters answered.
    Refused,
    /// Time passed.
    Tick,
}

/// An action that an heir has to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeirOutput {
    /// Ask the host whether it is there.
    AskHost,
    /// Look at the voters: [`super::super::Votes::lease`].
    AskVoters,
    /// Ask for this epoch: [`super::super::Votes::take_over`].
    TakeOver(Epoch),
    /// Nothing to do until then, when [`HeirInput::Tick`] is due.
    Wait(Duration),
    /// Another member than the host has confirmed a newer epoch: this heir's task is over.
    Elsewhere {
        /// The newest epoch.
        epoch: Epoch,
        /// Its holder.
        holder: MemberId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// It looks after the host, which has been silent since.
    Watching(Option<Duration>),
    /// The voters were asked.
    Looking,
    /// It asks the voters again at that time.
    Waiting,
    /// It has asked for an epoch.
    Asking,
    Over,
}

/// What an heir is told of its VM, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ward {
    /// The heir itself.
    pub me: MemberId,
    /// The VM's host.
    pub host: MemberId,
    /// How long the host is silent before the heir looks at the voters.
    pub lost_after: Duration,
    /// How many heirs come before this one.
    pub rank: u32,
}

/// One heir of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heir {
    terms: Terms,
    ward: Ward,
    state: State,
    due: Option<Duration>,
    /// From when on it may ask for the epoch, as of the last look at the voters.
    ready_at: Option<Duration>,
}

impl Heir {
    /// It begins with the first [`HeirInput::Tick`].
    pub fn new(terms: Terms, ward: Ward) -> Self {
        Self {
            terms,
            ward,
            state: State::Watching(None),
            due: Some(Duration::ZERO),
            ready_at: None,
        }
    }

    /// When [`HeirInput::Tick`] is due next.
    pub fn next_tick(&self) -> Option<Duration> {
        self.due
    }

    /// Whether it has the VM, or another member has.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Takes an input at `now`.
    pub fn handle(&mut self, now: Duration, input: HeirInput) -> Vec<HeirOutput> {
        use {HeirInput as In, State as S};
        match (self.state, input) {
            (S::Over, _) => Vec::new(),
            (S::Asking, In::Granted) => {
                (self.state, self.due) = (S::Over, None);
                Vec::new()
            }
            (S::Asking, In::Refused) => {
                self.ready_at = None;
                self.wait(now + self.terms.retry * (1 + self.ward.rank))
            }
            // What it has asked for may be granted, whatever else it hears.
            (S::Asking, _) => Vec::new(),
            (_, In::HostAnswers) => {
                (self.state, self.ready_at) = (S::Watching(None), None);
                self.pause(now + self.watch_pause())
            }
            (S::Watching(since), In::HostSilent) => self.silent(now, since.unwrap_or(now)),
            (S::Looking, In::View(view)) => match view {
                Some(view) => self.looked(now, &view),
                None => self.wait(now + self.terms.retry),
            },
            (S::Watching(_), In::Tick) if self.is_due(now) => {
                self.due = Some(now + self.watch_pause());
                vec![HeirOutput::AskHost]
            }
            (S::Waiting, In::Tick) if self.is_due(now) => {
                self.look();
                vec![HeirOutput::AskHost, HeirOutput::AskVoters]
            }
            _ => Vec::new(),
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|t| now >= t)
    }

    fn watch_pause(&self) -> Duration {
        (self.ward.lost_after / 3).max(LEAST_PAUSE)
    }

    fn silent(&mut self, now: Duration, since: Duration) -> Vec<HeirOutput> {
        let lost_at = since + self.ward.lost_after;
        if now >= lost_at {
            self.look();
            return vec![HeirOutput::AskVoters];
        }
        self.state = State::Watching(Some(since));
        self.pause(lost_at.min(now + self.watch_pause()))
    }

    fn look(&mut self) {
        (self.state, self.due) = (State::Looking, None);
    }

    fn looked(&mut self, now: Duration, view: &LeaseView) -> Vec<HeirOutput> {
        let Some(newest) = view.newest.filter(|_| view.protected) else {
            return self.wait(now + self.terms.retry);
        };
        // An epoch of its own, whose grant got lost on the way, is followed by the next one.
        let is_elsewhere = ![self.ward.host, self.ward.me].contains(&newest.holder);
        if newest.confirmed && newest.granted && is_elsewhere {
            (self.state, self.due) = (State::Over, None);
            let (epoch, holder) = (newest.epoch, newest.holder);
            return vec![HeirOutput::Elsewhere { epoch, holder }];
        }
        let turn = self.terms.rank_pause * self.ward.rank;
        if view.free_in > Duration::ZERO {
            let ready = now + view.free_in + turn;
            self.ready_at = Some(ready);
            return self.wait(ready);
        }
        let ready = *self.ready_at.get_or_insert(now + turn);
        if now < ready {
            return self.wait(ready);
        }
        let Ok(epoch) = after(newest.epoch) else {
            // No epoch is left: only a new VM can take its place.
            return self.wait(now + self.terms.lease);
        };
        (self.state, self.due) = (State::Asking, None);
        vec![HeirOutput::TakeOver(epoch)]
    }

    fn wait(&mut self, until: Duration) -> Vec<HeirOutput> {
        self.state = State::Waiting;
        self.pause(until)
    }

    fn pause(&mut self, until: Duration) -> Vec<HeirOutput> {
        self.due = Some(until);
        vec![HeirOutput::Wait(until)]
    }

    /// Moves the origin of its clock: times older than `floor` count as `floor`.
    #[cfg(test)]
    pub(crate) fn rebase(&mut self, by: Duration, floor: Duration) {
        let moved = |t: Duration| t.saturating_sub(by).max(floor);
        self.due = self.due.map(moved);
        self.ready_at = self.ready_at.map(moved);
        if let State::Watching(Some(since)) = &mut self.state {
            *since = moved(*since);
        }
    }
}

#[cfg(test)]
#[path = "heir_tests.rs"]
mod tests;
