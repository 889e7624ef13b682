//! Making one link: handshake over the control plane, direct probes, then a relay, then a stream.

use super::{
    MAX_DIALS, SERVICE, Shared, escape, examine,
    message::{self, Answer, NatKind, Request, Whereabouts},
    nat, over_ring, relays, stream,
};
use crate::{
    fabric::FabricError,
    id::MemberId,
    plane::{Error, Path, PathInfo},
    ring::Position,
};
use futures::future::BoxFuture;
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// A request over the control plane takes no longer, dialling included.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// All of one dial: meeting, relays and a stream.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// A control connection that has not answered by then may be dead: the ring is tried as well.
const HEDGE: Duration = Duration::from_millis(1200);
/// Direct probes are waited for at least and at most this long before a relay is tried beside them.
pub(crate) const PATIENCE: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_millis(1500));
/// Waited for slow direct probes before a stream is opened.
const BEFORE_STREAM: Duration = Duration::from_millis(1000);
/// First pause between tries of a better path.
pub(crate) const RETRY: Duration = super::retries::FIRST;
/// While there is no ring yet it is looked for this often.
const RING_GLANCE: Duration = Duration::from_millis(20);
/// A member that has just started may not serve this yet: the pauses between questions then.
const STARTING_MS: [u64; 3] = [100, 200, 400];
/// Punches wait so long at most for what the NAT does: nobody may be there who can tell.
pub(crate) const MAPPING_LIMIT: Duration = Duration::from_millis(1000);
/// A better path is sought only for links that carry data.
const WORTH_IMPROVING: Duration = Duration::from_secs(60);

/// Which paths will do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Any.
    Any,
    /// Any that does not itself rest on the ring: the link is to be one of its edges.
    Edge,
    /// Direct or by stream: the link is to relay for others, or leads to a relay.
    WithoutRelay,
}

fn serves(path: Option<Path>, reach: Reach) -> Option<Path> {
    path.filter(|path| match reach {
        Reach::Any => true,
        Reach::Edge => *path != Path::Ring,
        Reach::WithoutRelay => !matches!(path, Path::Ring | Path::Relayed(_)),
    })
}

/// Looks after the members to which the plane wants paths.
pub(crate) async fn wishes(shared: Arc<Shared>) {
    let Some(mut wanted) = shared.plane.take_wanted() else {
        return;
    };
    let room = Arc::new(Semaphore::new(MAX_DIALS));
    while let Some(member) = wanted.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // The ring carries already: what is wanted is something better.
            let over_ring = current(&shared, member, Reach::Any) == Some(Path::Ring);
            let reach = if over_ring { Reach::Edge } else { Reach::Any };
            if over_ring
                && shared
                    .state()
                    .retries
                    .due(member, Instant::now(), false)
                    .is_none()
            {
                return;
            }
            if let Err(error) = ensure(&shared, member, reach).await {
                tracing::debug!(?member, %error, "no link");
            }
        });
    }
}

/// A path to the member that will do.
pub(crate) async fn ensure(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
) -> Result<Path, Error> {
    ensure_by(shared, member, reach, None).await
}

/// The same, calling the member over the ring through our neighbour `via` where need be.
pub(crate) async fn ensure_by(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
    via: Option<Position>,
) -> Result<Path, Error> {
    if let Some(path) = current(shared, member, reach) {
        return Ok(path);
    }
    if member == shared.fabric.me() {
        return Err(Error::NoPath(member));
    }
    let _turn = tokio::select! {
        biased;
        turn = shared.turns.of(member) => turn,
        // Somebody else's dial may hang on a connection that is dead while the link has come up
        // otherwise.
        path = selected(
            shared, member, reach, DIAL_LIMIT
        ) => return path.ok_or(Error::NoPath(member)),
    };
    match current(shared, member, reach) {
        Some(path) => Ok(path),
        None => {
            let dialled =
                tokio::time::timeout(DIAL_LIMIT, Box::pin(dial(shared, member, reach, via))).await;
            dialled.unwrap_or(Err(Error::TimedOut(member, DIAL_LIMIT)))
        }
    }
}

pub(crate) fn current(shared: &Shared, member: MemberId, reach: Reach) -> Option<Path> {
    serves(shared.plane.usable_path(member), reach)
}

/// Waits until a path that will do is selected.
pub(crate) async fn selected(
    shared: &Shared,
    member: MemberId,
    reach: Reach,
    limit: Duration,
) -> Option<Path> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let changed = shared.plane.path_changed();
        if let Some(path) = current(shared, member, reach) {
            return Some(path);
        }
        if tokio::time::timeout_at(deadline, changed).await.is_err() {
            return current(shared, member, reach);
        }
    }
}

/// Exchanges whereabouts and handshake, starts the direct probes; what the member said, and how
/// long the call took. Over a control connection if there is one, else over the ring, where the
/// control plane would have to dial first; each makes up for the other.
pub(crate) async fn meet(
    shared: &Arc<Shared>,
    member: MemberId,
    via: Option<Position>,
) -> Result<(Whereabouts, Duration), Error> {
    let Some(ring) = shared.ring.as_ref() else {
        return meet_by_control(shared, member).await;
    };
    if !ring.net.stands() {
        let connected = shared.fabric.connected().contains(&member);
        tokio::select! {
            met = meet_by_control(shared, member) => return met,
            // Right after the start an edge of the ring is there before a dial through relays is
            // over.
            () = stands(ring), if !connected => {}
        }
    }
    if shared.fabric.connected().contains(&member) {
        match tokio::time::timeout(HEDGE, meet_by_control(shared, member)).await {
            Ok(Ok(met)) => return Ok(met),
            Ok(Err(error)) => tracing::debug!(?member, %error, "not over the control connection"),
            Err(_) => tracing::debug!(
                ?member,
                "the control connection is slow: over the ring as well"
            ),
        }
    }
    examine::look_at_the_counter(shared).await;
    let asked = Instant::now();
    match over_ring::meet(shared, ring, member, via).await {
        Ok(whereabouts) => {
            shared.punch(member, &whereabouts);
            Ok((whereabouts, asked.elapsed()))
        }
        Err(error) => {
            tracing::debug!(?member, %error, "not over the ring");
            meet_by_control(shared, member).await
        }
    }
}

/// [`meet`] for a punch whose ports have to be guessed anew.
pub(crate) fn meet_again(shared: Arc<Shared>, member: MemberId) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = meet(&shared, member, None).await {
            tracing::debug!(?member, %error, "guessed ports were not agreed on");
        }
    })
}

async fn stands(ring: &over_ring::OverRing) {
    while !ring.net.stands() {
        tokio::time::sleep(RING_GLANCE).await;
    }
}

async fn meet_by_control(
    shared: &Arc<Shared>,
    member: MemberId,
) -> Result<(Whereabouts, Duration), Error> {
    let key = match shared.fabric.link_key(member) {
        Some(key) => key,
        None => {
            ask(shared, member, Request::Where, CALL_LIMIT).await?;
            let missing = || Error::Handshake(member, "its link key is not known".into());
            shared.fabric.link_key(member).ok_or_else(missing)?
        }
    };
    examine::look_at_the_counter(shared).await;
    let handshake = shared.plane.open_link(member, key, &[])?;
    let asked = Instant::now();
    let answer = ask(
        shared,
        member,
        Request::Link(shared.whereabouts(), handshake),
        CALL_LIMIT,
    )
    .await?;
    let Answer::Linked(whereabouts, handshake) = answer else {
        return Err(Error::Handshake(member, "answered something else".into()));
    };
    let took = asked.elapsed();
    shared.plane.finish_link(member, &handshake)?;
    shared.punch(member, &whereabouts);
    if shared.plane.has_ring_neighbours() {
        shared.plane.try_paths(member, [Path::Ring]);
    }
    Ok((whereabouts, took))
}

pub(crate) async fn ask(
    shared: &Shared,
    member: MemberId,
    request: Request,
    limit: Duration,
) -> Result<Answer, Error> {
    let body = message::encode(&request);
    let mut pauses = STARTING_MS.into_iter();
    let answer = loop {
        match (
            shared
                .fabric
                .call(member, SERVICE, body.clone(), limit)
                .await,
            pauses.next(),
        ) {
            (Err(FabricError::NoSuchService(..)), Some(pause)) => {
                tokio::time::sleep(Duration::from_millis(pause)).await
            }
            (answered, _) => break answered?,
        }
    };
    message::decode(&answer).ok_or_else(|| Error::Handshake(member, "unreadable answer".into()))
}

async fn dial(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
    via: Option<Position>,
) -> Result<Path, Error> {
    // Whoever stands open is reached whatever our own NAT is.
    if shared.fabric.rtt_of_open(member).is_none() {
        nat::settle(shared, Duration::from_millis(600)).await;
    }
    // What once worked may work again, also while the control plane is away.
    shared.plane.try_remembered(member);
    shared.state().retries.hold_off(member, Instant::now());
    let (whereabouts, took) = meet(shared, member, via).await?;
    if reach == Reach::Any && current(shared, member, reach) == Some(Path::Ring) {
        // The first packet goes at once; the rest is found behind it.
        tokio::spawn(settle_behind(shared.clone(), member, whereabouts, took));
        return Ok(Path::Ring);
    }
    settle_path(shared, member, reach, (&whereabouts, took)).await
}

/// [`settle_path`] while the ring carries already.
fn settle_behind(
    shared: Arc<Shared>,
    member: MemberId,
    whereabouts: Whereabouts,
    took: Duration,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = settle_path(&shared, member, Reach::Edge, (&whereabouts, took)).await {
            tracing::debug!(?member, %error, "it stays on the ring");
        }
    })
}

/// Waits for the direct probes, then tries relays, then a stream. `met`: what the member said, and
/// how long it took.
async fn settle_path(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
    met: (&Whereabouts, Duration),
) -> Result<Path, Error> {
    let (whereabouts, took) = met;
    if !shared.knows_enough_to_punch(whereabouts.nat) {
        // The direct probes begin only then.
        shared.mapping_known().await;
    }
    let ours = shared.state().nat;
    let blocked = [ours, whereabouts.nat].contains(&NatKind::Blocked);
    let patience = if shared.may_reach(whereabouts) {
        (took * 3).clamp(PATIENCE.0, PATIENCE.1)
    } else {
        Duration::ZERO
    };
    if let Some(path) = selected(shared, member, reach, patience).await {
        return Ok(path);
    }
    if reach != Reach::WithoutRelay
        && !blocked
        && let Some(path) = relays::find(shared, member, whereabouts).await
    {
        return Ok(path);
    }
    // A stream is the last resort: unless UDP is known not to get through, the last direct probes
    // are waited for.
    let last = if blocked {
        Duration::ZERO
    } else {
        BEFORE_STREAM
    };
    if let Some(path) = selected(shared, member, reach, last).await {
        return Ok(path);
    }
    if blocked {
        // One hop by stream is better than several of which the first is a stream too.
        shared.plane.prefer_stream(member);
    }
    if !blocked
        && !shared.plane.is_edge(member)
        && current(shared, member, Reach::Any) == Some(Path::Ring)
    {
        return Ok(Path::Ring);
    }
    stream::open(shared, member).await?;
    selected(shared, member, reach, CALL_LIMIT)
        .await
        .ok_or(Error::NoPath(member))
}

/// Tries again to get links off relays and streams: soon, then less often, and at once when there
/// is news.
pub(crate) async fn improve(shared: Arc<Shared>) {
    let mut connected: HashSet<MemberId> = HashSet::new();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = Instant::now();
        shared.note_punches();
        let before = std::mem::replace(
            &mut connected,
            shared.fabric.connected().into_iter().collect(),
        );
        let peers = shared.plane.peers();
        {
            let mut state = shared.state();
            let is_off = |member: &MemberId| {
                peers
                    .iter()
                    .any(|(m, info)| m == member && !matches!(info.path, Path::Direct(_)))
            };
            state.retries.retain(is_off);
            // Who is reached directly is met by the port that this goes by.
            let is_aside = |info: &PathInfo| match info.path {
                Path::Direct(to) => shared.plane.is_sent_from_second_port(&to),
                _ => true,
            };
            state
                .aside
                .retain(|member| peers.iter().any(|(m, info)| m == member && is_aside(info)));
            // With whom addresses could not be exchanged so well before.
            connected
                .difference(&before)
                .for_each(|member| state.retries.begin_anew(*member, now));
        }
        for (member, info) in peers {
            let keep_alive = shared.keeps_alive(member);
            shared.plane.set_keep_alive(member, keep_alive);
            if matches!(info.path, Path::Direct(_))
                || shared.plane.idle(member, now) > WORTH_IMPROVING
            {
                continue;
            }
            let theirs = shared
                .state()
                .known
                .get(&member)
                .map(|(_, whereabouts)| whereabouts.clone());
            let hopeless = theirs.is_some_and(|theirs| !shared.may_reach(&theirs));
            let due = {
                let mut state = shared.state();
                state.retries.hold_off(member, now);
                state.retries.due(member, now, hopeless)
            };
            if let Some(number) = due {
                tokio::spawn(try_better(
                    shared.clone(),
                    member,
                    info.path,
                    number,
                    hopeless,
                ));
            }
        }
    }
}

/// Whether some link in use is not direct.
pub(crate) fn wants_better(shared: &Shared) -> bool {
    let links = shared.plane.link_uses(Instant::now());
    links.iter().any(|link| {
        link.idle <= WORTH_IMPROVING && !matches!(link.path, None | Some(Path::Direct(_)))
    })
}

/// One try to get a link off `path`.
fn try_better(
    shared: Arc<Shared>,
    member: MemberId,
    path: Path,
    number: u32,
    hopeless: bool,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        escape::prepare(&shared, member, number, hopeless).await;
        let Ok((whereabouts, _)) = meet(&shared, member, None).await else {
            return;
        };
        let blocked = [shared.state().nat, whereabouts.nat].contains(&NatKind::Blocked);
        match path {
            // A stream is a last resort: a relay that has appeared since is better.
            Path::Ring | Path::Stream if !blocked => {
                let _ = relays::find(&shared, member, &whereabouts).await;
            }
            // Where UDP turned out not to get through, a relay's last leg is a stream too: one of
            // our own is shorter.
            Path::Ring | Path::Relayed(_) if blocked => {
                shared.plane.prefer_stream(member);
                let _ = stream::open(&shared, member).await;
            }
            _ => {}
        }
    })
}
