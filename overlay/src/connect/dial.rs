//! Making one link: handshake over the control plane, direct probes, then a relay, then a stream.

use super::{
    MAX_DIALS, SERVICE, Shared, examine,
    message::{self, Answer, NatKind, Request, Whereabouts},
    nat, relays, stream,
};
use crate::{
    id::MemberId,
    plane::{Error, Path},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// A request over the control plane takes no longer, dialling included.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Direct probes are waited for at least and at most this long before a relay is tried beside them.
pub(crate) const PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(1500));
/// Waited for slow direct probes before a stream is opened.
const BEFORE_STREAM: Duration = Duration::from_millis(1000);
/// First and last pause between tries of a better path.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// A better path is sought only for links that carry data.
const WORTH_IMPROVING: Duration = Duration::from_secs(60);

/// Which paths will do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Any.
    Any,
    /// Direct or by stream: the link is to relay for others, or leads to a relay.
    WithoutRelay,
}

fn serves(path: Option<Path>, reach: Reach) -> Option<Path> {
    path.filter(|p| reach == Reach::Any || !matches!(p, Path::Relayed(_)))
}

/// Looks after the members to which the plane wants paths.
pub(crate) async fn wishes(shared: Arc<Shared>) {
    let Some(mut wanted) = shared.plane.inner().take_wanted() else { return };
    let room = Arc::new(Semaphore::new(MAX_DIALS));
    while let Some(member) = wanted.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = ensure(&shared, member, Reach::Any).await {
                tracing::debug!(?member, %error, "no link");
            }
        });
    }
}

/// A path to the member that will do.
pub(crate) async fn ensure(shared: &Arc<Shared>, member: MemberId, reach: Reach) -> Result<Path, Error> {
    if let Some(path) = current(shared, member, reach) {
        return Ok(path);
    }
    if member == shared.fabric.me() {
        return Err(Error::NoPath(member));
    }
    let turn = shared.state().dials.entry(member).or_default().clone();
    let _turn = turn.lock().await;
    if let Some(path) = current(shared, member, reach) {
        return Ok(path);
    }
    let made = Box::pin(dial(shared, member, reach)).await;
    shared.state().dials.retain(|_, turn| Arc::strong_count(turn) > 2);
    made
}

pub(crate) fn current(shared: &Shared, member: MemberId, reach: Reach) -> Option<Path> {
    let peer = shared.plane.inner().peers.load().get(&member)?.clone();
    if peer.ready() { serves(peer.path(), reach) } else { None }
}

/// Waits until a path that will do is selected.
pub(crate) async fn selected(shared: &Shared, member: MemberId, reach: Reach, limit: Duration) -> Option<Path> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let changed = shared.plane.inner().path_changed.notified();
        if let Some(path) = current(shared, member, reach) {
            return Some(path);
        }
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return current(shared, member, reach);
        }
    }
}

/// Exchanges whereabouts and handshake, starts the direct probes; what the member said, and how long the call took.
pub(crate) async fn meet(shared: &Arc<Shared>, member: MemberId) -> Result<(Whereabouts, Duration), Error> {
    let key = match shared.fabric.link_key(member) {
        Some(key) => key,
        None => {
            ask(shared, member, Request::Where, CALL_LIMIT).await?;
            let missing = || Error::Handshake(member, "its link key is not known".into());
            shared.fabric.link_key(member).ok_or_else(missing)?
        }
    };
    examine::look_at_the_counter(shared).await;
    let handshake = shared.plane.inner().open_link(member, key)?;
    let asked = Instant::now();
    let answer = ask(shared, member, Request::Link(shared.whereabouts(), handshake), CALL_LIMIT).await?;
    let Answer::Linked(whereabouts, handshake) = answer else {
        return Err(Error::Handshake(member, "answered something else".into()));
    };
    let took = asked.elapsed();
    shared.plane.inner().finish_link(member, &handshake)?;
    shared.punch(member, &whereabouts);
    Ok((whereabouts, took))
}

pub(crate) async fn ask(shared: &Shared, member: MemberId, request: Request, limit: Duration) -> Result<Answer, Error> {
    let answer = shared.fabric.call(member, SERVICE, message::encode(&request), limit).await?;
    message::decode(&answer).ok_or_else(|| Error::Handshake(member, "unreadable answer".into()))
}

async fn dial(shared: &Arc<Shared>, member: MemberId, reach: Reach) -> Result<Path, Error> {
    nat::settle(shared, Duration::from_millis(600)).await;
    // What once worked may work again, also while the control plane is away.
    shared.plane.inner().try_remembered(member);
    let (whereabouts, took) = meet(shared, member).await?;
    let ours = shared.state().nat;
    let blocked = [ours, whereabouts.nat].contains(&NatKind::Blocked);
    let patience = if shared.may_reach(&whereabouts) { (took * 3).clamp(PATIENCE.0, PATIENCE.1) } else { Duration::ZERO };
    if let Some(path) = selected(shared, member, reach, patience).await {
        return Ok(path);
    }
    if reach == Reach::Any
        && !blocked
        && let Some(path) = relays::find(shared, member, &whereabouts).await
    {
        return Ok(path);
    }
    // A stream is the last resort: unless UDP is known not to get through, the last direct probes are waited for.
    let last = if blocked { Duration::ZERO } else { BEFORE_STREAM };
    if let Some(path) = selected(shared, member, reach, last).await {
        return Ok(path);
    }
    stream::open(shared, member).await?;
    selected(shared, member, reach, CALL_LIMIT).await.ok_or(Error::NoPath(member))
}

/// Tries again to get links off relays and streams, ever less often.
pub(crate) async fn improve(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = Instant::now();
        shared.note_punches();
        let peers = shared.plane.peers();
        shared.state().retries.retain(|member, _| peers.iter().any(|(m, info)| m == member && !matches!(info.path, Path::Direct(_))));
        for (member, info) in peers {
            let keep_alive = shared.keeps_alive(member);
            shared.plane.inner().peer(member).keep_alive.store(keep_alive, std::sync::atomic::Ordering::Relaxed);
            if matches!(info.path, Path::Direct(_)) || shared.plane.inner().peer(member).idle(now) > WORTH_IMPROVING {
                continue;
            }
            let due = {
                let mut state = shared.state();
                let (next, pause) = state.retries.entry(member).or_insert((now + RETRY.0, RETRY.0));
                let due = *next <= now;
                if due {
                    *pause = (*pause * 2).min(RETRY.1);
                    *next = now + *pause;
                }
                due
            };
            if due {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let met = meet(&shared, member).await;
                    // A stream is a last resort: a relay that has appeared since is better.
                    if let (Ok((whereabouts, _)), Path::Stream) = (met, info.path)
                        && shared.state().nat != NatKind::Blocked
                        && whereabouts.nat != NatKind::Blocked
                    {
                        let _ = relays::find(&shared, member, &whereabouts).await;
                    }
                });
            }
        }
    }
}
