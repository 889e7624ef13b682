//! One migration towards this host, as the source's requests and the task that receives the guest
//! share it: how far it is, its window, its spans.

use crate::{
    Error,
    handover::{TargetInput, TargetOutput, TargetState, TargetWindow},
    host::lock,
    hypervisor::{IncomingSockets, Progress},
    migrate::{
        tunnel::Channel,
        wire::{Answer, Offer},
    },
    trace::{Step, Trail},
};
use p2pvm_overlay::MemberId;
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How long a source may stay silent before a target that it has not armed gives up. Reason: longer
/// than a source waits for a silent target.
const SILENCE: Duration = Duration::from_secs(30);

/// How far the preparation is.
enum Stage {
    Preparing,
    /// The guest waits at these sockets.
    Ready(IncomingSockets),
    /// The arrival is over, and nothing of the VM is left here.
    Gone(String),
}

struct State {
    stage: Stage,
    window: TargetWindow,
    /// Why it was given up; none if its window closed.
    reason: Option<String>,
    /// When the source was heard last.
    heard: Duration,
    /// Whether the outcome that the window names has been carried out and written down.
    settled: bool,
}

/// The spans that end with what the source sends.
struct Spans {
    /// The whole arrival, until it is over.
    root: Option<Step>,
    /// Since the first stream of each.
    memory: Option<Step>,
    disk: Option<Step>,
}

/// One migration towards this host.
pub(super) struct Arrival {
    pub(super) offer: Offer,
    pub(super) from: MemberId,
    /// Whether the voters have granted the epoch.
    pub(super) granted: tokio::sync::Mutex<bool>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) trail: Trail,
    state: Mutex<State>,
    spans: Mutex<Spans>,
    news: Notify,
}

impl Arrival {
    pub(super) fn new(offer: Offer, from: MemberId, now: Duration, root: Step) -> Self {
        Self {
            offer,
            from,
            granted: tokio::sync::Mutex::new(false),
            progress: watch::Sender::default(),
            trail: root.trail(),
            state: Mutex::new(State {
                stage: Stage::Preparing,
                window: TargetWindow::default(),
                reason: None,
                heard: now,
                settled: false,
            }),
            spans: Mutex::new(Spans {
                root: Some(root),
                memory: None,
                disk: None,
            }),
            news: Notify::new(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.offer.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What became of the guest, as far as it is settled.
    pub(super) fn answer(&self) -> Answer {
        let state = self.state();
        if let Stage::Gone(reason) = &state.stage {
            return Answer::Gone {
                reason: reason.clone(),
            };
        }
        match (state.window.state(), state.settled) {
            (TargetState::Confirmed, true) => Answer::Confirmed {
                epoch: self.offer.epoch,
            },
            (TargetState::Frozen, _) => Answer::Doubtful,
            (TargetState::Running | TargetState::Confirmed, _) => Answer::Running,
            (TargetState::Waiting | TargetState::GaveUp, _) => Answer::Waiting,
        }
    }

    /// How far the preparation is.
    pub(super) fn progress_answer(&self) -> Answer {
        match &self.state().stage {
            Stage::Preparing => Answer::Preparing(self.progress.borrow().clone()),
            Stage::Ready(sockets) => Answer::Ready {
                export: sockets.export.clone(),
            },
            Stage::Gone(reason) => Answer::Gone {
                reason: reason.clone(),
            },
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state().stage, Stage::Ready(_))
    }

    pub(super) fn set_ready(&self, sockets: IncomingSockets) {
        let mut state = self.state();
        assert!(
            matches!(state.stage, Stage::Preparing),
            "an arrival is prepared once"
        );
        state.stage = Stage::Ready(sockets);
    }

    pub(super) fn set_gone(&self, reason: &str) {
        self.state().stage = Stage::Gone(reason.to_owned());
    }

    pub(super) fn set_settled(&self) {
        self.state().settled = true;
    }

    pub(super) fn note_heard(&self, now: Duration) {
        self.state().heard = now;
    }

    /// Gives the window an input.
    pub(super) fn handle(&self, now: Duration, input: TargetInput) -> Option<TargetOutput> {
        self.state().window.handle(now, input)
    }

    /// When the window's next tick is due.
    pub(super) fn next_tick(&self) -> Option<Duration> {
        self.state().window.next_tick()
    }

    /// Wakes all that wait for news.
    pub(super) fn notify(&self) {
        self.news.notify_waiters();
    }

    /// Waits until the answer differs from `old`.
    pub(super) async fn differs_from(&self, old: &Answer) {
        loop {
            let notified = self.news.notified();
            if self.answer() != *old {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn give_up(&self, now: Duration, reason: &str) {
        {
            let mut state = self.state();
            if state.window.handle(now, TargetInput::Abandon) == Some(TargetOutput::GiveUp) {
                state.reason = Some(reason.to_owned());
            }
        }
        self.notify();
    }

    /// Waits until the migration is given up, by its source or because the source has been silent
    /// for too long; returns the reason.
    pub(super) async fn given_up(&self, now: impl Fn() -> Duration) -> String {
        loop {
            let notified = self.news.notified();
            let (tick, heard) = {
                let state = self.state();
                if state.window.state() == TargetState::GaveUp {
                    let closed = || "its window closed".to_owned();
                    return state.reason.clone().unwrap_or_else(closed);
                }
                (state.window.next_tick(), state.heard)
            };
            let due = tick.unwrap_or(heard + SILENCE);
            tokio::select! {
                () = notified => continue,
                () = tokio::time::sleep(due.saturating_sub(now())) => {}
            }
            if tick.is_some() {
                self.handle(now(), TargetInput::Tick);
            } else if now() >= self.state().heard + SILENCE {
                self.give_up(now(), "the source has been silent for too long");
            }
        }
    }

    /// A stream of the source began; gives the socket that it is for, if the guest waits.
    pub(super) fn begin_stream(&self, channel: Channel) -> Option<PathBuf> {
        let state = self.state();
        let Stage::Ready(sockets) = &state.stage else {
            return None;
        };
        let mut spans = lock(&self.spans);
        let (socket, span, name) = match channel {
            Channel::Ram => (&sockets.ram, &mut spans.memory, "receive memory"),
            Channel::Disk => (&sockets.disk, &mut spans.disk, "receive disk"),
        };
        span.get_or_insert_with(|| self.trail.step(name));
        Some(socket.clone())
    }

    /// The streams are complete, or broken off.
    pub(super) fn end_streams<T>(&self, outcome: &Result<T, Error>) {
        let mut spans = lock(&self.spans);
        let ended = [spans.memory.take(), spans.disk.take()];
        for step in ended.into_iter().flatten() {
            step.ended(outcome);
        }
    }

    /// The arrival is over, for its trace.
    pub(super) fn end(&self, outcome: Result<(), &str>) {
        if let Some(root) = lock(&self.spans).root.take() {
            match outcome {
                Ok(()) => root.done(),
                Err(why) => root.failed(&why),
            }
        }
    }
}
