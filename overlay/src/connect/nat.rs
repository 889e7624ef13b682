//! Runs the survey of the NAT in front of this node ([`super::state::survey`]): sends its questions
//! and returns the answers to it.

use super::{
    Shared,
    dial::ask,
    escape, examine,
    message::{Answer, NatKind, Request},
    state::{
        examine::KnockResult,
        nat::is_private,
        survey::{Action, Input, Survey, View},
    },
};
use crate::plane::Path;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a member may take to send its reachability. Reason: a member that lives answers over
/// the control plane within this.
const WHERE_LIMIT: Duration = Duration::from_secs(3);
/// How long one STUN exchange may take.
pub(crate) const STUN_LIMIT: Duration = Duration::from_millis(1200);

/// Whether a link shows that UDP gets out of this site and back.
fn gets_through(shared: &Shared) -> bool {
    shared
        .plane
        .peers()
        .iter()
        .any(|(_, info)| matches!(info.path, Path::Direct(at) if !is_private(&at.ip())))
}

/// Keeps the reflexive address and the kind of NAT known.
pub(crate) async fn learn(shared: Arc<Shared>) {
    let mut survey = Survey::new(Instant::now());
    let mut doing: FuturesUnordered<BoxFuture<'static, Option<Input>>> = FuturesUnordered::new();
    // A call that arrives while an answer is being processed is not lost.
    let again = shared.learn_again.notified();
    tokio::pin!(again);
    again.as_mut().enable();
    tell(&shared, &mut survey, Input::Tick);
    loop {
        while let Some(action) = survey.poll() {
            doing.push(act(shared.clone(), action));
        }
        let wake = survey.wake_at().map(tokio::time::Instant::from_std);
        let sleep = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now));
        tokio::select! {
            Some(done) = doing.next(), if !doing.is_empty() => {
                if let Some(input) = done {
                    tell(&shared, &mut survey, input);
                }
            }
            () = sleep, if wake.is_some() => tell(&shared, &mut survey, Input::Tick),
            () = &mut again => {
                again.set(shared.learn_again.notified());
                again.as_mut().enable();
                tell(&shared, &mut survey, Input::Again);
            }
        }
    }
}

fn tell(shared: &Arc<Shared>, survey: &mut Survey, input: Input) {
    let connected = shared.fabric.connected();
    let view = View {
        host: &shared.host(),
        connected: &connected,
        gets_through: gets_through(shared),
        wants_better: shared.wants_better(),
        is_linked: &|member| shared.plane.has_peer(member),
    };
    survey.handle(Instant::now(), &mut shared.state(), &view, input);
    shared.act();
}

/// Does what the survey asks for, and returns the event to report to it.
fn act(shared: Arc<Shared>, action: Action) -> BoxFuture<'static, Option<Input>> {
    async move {
        Some(match action {
            Action::AskWhere(member) => {
                let said = ask(&shared, member, Request::Where, WHERE_LIMIT).await;
                let statement = match said {
                    Ok(Answer::Here(reachability)) => Some(shared.statement(&reachability)),
                    _ => None,
                };
                Input::Where(member, statement)
            }
            Action::Stun(query, server) => {
                Input::Stun(query, shared.plane.stun(server, STUN_LIMIT).await)
            }
            Action::AskAlive(member) => {
                let asked = ask(&shared, member, Request::Where, WHERE_LIMIT).await;
                Input::Alive(member, asked.is_ok())
            }
            Action::LookFromSecondPort => Input::SecondPort(escape::from_silence(&shared).await),
            Action::Knock {
                member,
                mapped,
                elsewhere,
            } => {
                let (heard, answer) = examine::knocked(&shared, member, mapped, elsewhere).await;
                Input::Knocked(KnockResult {
                    heard,
                    done: answer.is_some(),
                    port: match answer {
                        Some(Answer::KnockedFrom(port)) => Some(port),
                        _ => None,
                    },
                })
            }
            Action::MapAnew { helper, server } => {
                Input::Mapped(examine::mapped_anew(&shared, helper, server).await)
            }
            Action::Learned => {
                shared.learned.notify_waiters();
                return None;
            }
        })
    }
    .boxed()
}

/// Waits, right after the start, until the first round has a result. Reason: behind a NAT, an
/// address learned now saves a failed try. A node with a public address of its own does not wait.
pub(crate) async fn settle(shared: &Shared, limit: Duration) {
    let told = shared.learned.notified();
    let unknown = shared.state().nat.kind == NatKind::Unknown;
    if unknown && shared.options.stun && shared.host().is_private() {
        let _ = tokio::time::timeout(limit, told).await;
    }
}
