//! After the hand-over: the guest is paused here and may be whole at the target. The target's word
//! settles where it runs; without one the doubt is written down and settled as after a restart of
//! this daemon ([`crate::migrate::doubt`]).

use super::{Ending, Move, phases::Tunnels, refused};
use crate::{
    Error,
    error::peer,
    handover::{CONFIRM_GRACE, SourceClaim, WINDOW, longest_run},
    host::{Host, Operation, Role, RunningSide, Side, Slot},
    hypervisor::MigrationReport,
    migrate::wire::{Answer, Request, SHORT},
    trace::{Step, Trail},
};
use p2pvm_overlay::{Epoch, chain};
use std::{sync::Arc, time::Duration};

/// How long a caller waits for a hand-over in doubt to be settled before the outcome is undecided.
/// Reason: an unconfirmed target has frozen long before, and the voters have been asked several
/// times since.
const VERDICT: Duration = Duration::from_secs(90);

/// The last of the guest was sent, or sending it failed.
pub(super) struct HandedOver<'m> {
    pub(super) this: &'m Move,
    /// Open until the target has all.
    pub(super) tunnels: Tunnels,
    pub(super) claim: SourceClaim,
    pub(super) paused_at: Duration,
    pub(super) sent: Result<MigrationReport, Error>,
    pub(super) news: News,
}

/// What the target has reported of the guest since its pause.
pub(super) enum News {
    /// Nothing yet.
    Nothing {
        /// Begun at the pause.
        switching: Step,
    },
    /// The guest runs at the target, by post-copy: the rest of its memory follows.
    Running {
        /// From the guest's pause to that word.
        pause: Duration,
    },
    /// The guest runs at the target, and all of it was sent: the voters' confirmation is missing.
    Confirming {
        /// From the guest's pause to that word.
        pause: Duration,
        /// Begun when both were known.
        step: Step,
    },
}

impl News {
    fn pause(&self) -> Option<Duration> {
        match self {
            Self::Nothing { .. } => None,
            Self::Running { pause } | Self::Confirming { pause, .. } => Some(*pause),
        }
    }

    /// All of the guest was sent.
    fn all_sent(self, trail: &Trail) -> Self {
        match self {
            Self::Running { pause } => Self::Confirming {
                pause,
                step: trail.step("confirm"),
            },
            other => other,
        }
    }

    /// The target says that the guest runs, `pause` after it was paused.
    fn runs(self, trail: &Trail, pause: Duration) -> Self {
        match self {
            Self::Nothing { switching } => {
                switching.done();
                Self::Confirming {
                    pause,
                    step: trail.step("confirm"),
                }
            }
            other => other,
        }
    }

    /// Ends the step that waits for the target's word.
    fn end(self, outcome: Result<(), &str>) {
        if let Self::Nothing { switching: step } | Self::Confirming { step, .. } = self {
            match outcome {
                Ok(()) => step.done(),
                Err(why) => step.failed(&why),
            }
        }
    }
}

impl HandedOver<'_> {
    /// Waits until it is known which side runs the guest.
    pub(super) async fn settle(self, operation: Operation) -> Ending {
        let Self {
            this,
            tunnels,
            claim,
            paused_at,
            sent,
            news,
        } = self;
        let report = sent.as_ref().ok().copied();
        let (news, confirmed) = match sent {
            Ok(_) => {
                this.forward_packets().await;
                this.rename_phase("confirm");
                this.confirm(news.all_sent(&this.trail), paused_at).await
            }
            Err(e) => {
                this.hold_guest().await;
                (news, Err(format!("handing the guest over: {}", chain(&e))))
            }
        };
        let mut pause = news.pause();
        let (runs_on, failure) = match confirmed {
            Ok(epoch) => {
                pause.get_or_insert(this.host.now() - paused_at);
                // A target may confirm without having told before that the guest runs.
                news.end(Ok(()));
                let cleaning = this.trail.step("clean up");
                this.host.gone_to(&this.slot, this.to, epoch).await;
                cleaning.done();
                drop(operation);
                (RunningSide::Target, None)
            }
            Err(failure) => {
                tracing::warn!(failure, "the hand-over is in doubt");
                news.end(Err(&failure));
                let runs_on = this.settle_doubt(&claim, operation).await;
                (runs_on, (runs_on != RunningSide::Target).then_some(failure))
            }
        };
        drop(tunnels);
        Ending {
            runs_on,
            failure,
            cancelled: false,
            ended: false,
            pause,
            report,
        }
    }
}

impl Move {
    /// QEMU lets a guest run on by itself when its last bytes could not be written, though the
    /// target may have had all that matters: it has to stand still until it is known which side
    /// runs it.
    async fn hold_guest(&self) {
        if let Some(machine) = self.slot.machine()
            && let Err(error) = machine.pause().await
        {
            tracing::debug!(error = %chain(&error), "the guest was not held");
        }
    }

    async fn forward_packets(&self) {
        let address = &self.entry.definition.address;
        let port = &self.host.parts.port;
        if let Err(e) = port.forward(address, self.to, self.epoch).await {
            tracing::warn!(error = %chain(&e), "packets that still arrive are not passed on");
        }
    }

    /// Asks the target until the VM is its own for good; gives the epoch, or why that is in doubt.
    async fn confirm(&self, mut news: News, paused_at: Duration) -> (News, Result<Epoch, String>) {
        loop {
            let request = Request::Settle {
                id: self.id,
                vm: self.vm(),
                running: news.pause().is_some(),
            };
            let answer = self.ask(&request, SHORT).await;
            let since = self.host.now() - paused_at;
            match answer {
                Ok(Answer::Waiting) if since <= WINDOW + CONFIRM_GRACE => {}
                Ok(Answer::Running) => news = news.runs(&self.trail, since),
                Ok(Answer::Confirmed { epoch }) => return (news, Ok(epoch)),
                Ok(other) => {
                    let why = refused("handing the guest over", &other);
                    return (news, Err(chain(&why)));
                }
                Err(e) => {
                    let why = peer("hearing from the target after the hand-over")(e);
                    return (news, Err(chain(&why)));
                }
            }
        }
    }

    /// Writes the doubt down and waits for a while until it is settled, as after a restart of this
    /// daemon.
    async fn settle_doubt(&self, claim: &SourceClaim, operation: Operation) -> RunningSide {
        let (host, slot) = (&self.host, &self.slot);
        let settling = self.trail.step("settle the doubt");
        let role = Role::Doubtful {
            id: self.id,
            side: Side::Source,
            other: self.to,
        };
        if let Err(e) = host.update(slot, |e| e.role = role) {
            tracing::error!(error = %chain(&e), "the doubt could not be written down; the next \
                start finds it out");
        }
        let wait = claim
            .target_is_frozen_from()
            .map_or(longest_run(1), |t| t.saturating_sub(host.now()));
        drop(operation);
        host.settle_in_background(slot, wait);
        let runs_on = host.verdict(slot).await;
        match runs_on {
            RunningSide::Undecided => {
                settling.failed(&"no majority of the VM's voters has answered yet")
            }
            RunningSide::Source | RunningSide::Target => settling.done(),
        }
        runs_on
    }
}

impl Host {
    /// Waits until a VM in doubt is settled, or [`VERDICT`] is over.
    async fn verdict(&self, slot: &Arc<Slot>) -> RunningSide {
        let until = self.now() + VERDICT;
        while self.now() < until {
            match slot.entry().role {
                Role::Held => return RunningSide::Source,
                Role::Branch { .. } => return RunningSide::Target,
                _ if !self.lists(slot) => return RunningSide::Target,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        RunningSide::Undecided
    }
}
