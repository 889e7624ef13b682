//! Making one link: handshake over the control plane, direct probes, then a relay, then a stream.

use super::{
    SERVICE, Shared, escape, examine,
    message::{self, Answer, Reachability, Request},
    nat, over_ring, relays,
    state::{
        links::Link,
        settle::{Action, Input, Remedy, Settling, View, remedy},
    },
    stream,
};
use crate::{
    fabric::FabricError,
    id::MemberId,
    plane::{Error, Path},
    ring::Position,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

pub(crate) use super::state::settle::{PATIENCE, Reach};

/// How long a request over the control plane may take, dialling included.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How long one dial may take: meeting, relays and a stream.
const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// How long before the ring is tried beside a control connection. Reason: that may be dead.
const HEDGE: Duration = Duration::from_millis(1200);
/// How long before it is checked again whether there is a ring.
const RING_GLANCE: Duration = Duration::from_millis(20);
/// How long, in milliseconds, before a member that does not serve this yet is asked again. Reason:
/// it may have just started.
const STARTING_MS: [u64; 3] = [100, 200, 400];
/// How many links are made at once.
const MAX_DIALS: usize = 32;
/// How long before the links are checked again.
const TICK: Duration = Duration::from_secs(1);

/// Makes links to the members that the plane wants paths to.
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
            // The ring carries already; a better path is wanted.
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
                tracing::debug!(
                    ?member,
                    error = %p2pvm_host::chain(&error),
                    "the member has no link"
                );
            }
        });
    }
}

/// A path to the member that satisfies `reach`.
pub(crate) async fn ensure(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
) -> Result<Path, Error> {
    ensure_by(shared, member, reach, None).await
}

/// As [`ensure`], calling the member over the ring through our neighbour `via` if needed.
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
        // Another task's dial may wait for a dead connection while the link has come up in another
        // way.
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
    reach.served_by(shared.plane.usable_path(member))
}

/// Waits until a path that satisfies `reach` is selected.
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

/// Exchanges reachability and handshake and starts the direct probes. Returns the member's
/// reachability and the duration of the call. It uses the control connection if there is one, else
/// the ring, because the control plane would have to dial first; each is the fallback of the other.
pub(crate) async fn meet(
    shared: &Arc<Shared>,
    member: MemberId,
    via: Option<Position>,
) -> Result<(Reachability, Duration), Error> {
    let Some(ring) = shared.ring.as_ref() else {
        return meet_by_control(shared, member).await;
    };
    if !ring.net.stands() {
        let connected = shared.fabric.connected().contains(&member);
        tokio::select! {
            met = meet_by_control(shared, member) => return met,
            // Right after the start an edge of the ring is ready before a dial through relays is.
            () = stands(ring), if !connected => {}
        }
    }
    if shared.fabric.connected().contains(&member) {
        match tokio::time::timeout(HEDGE, meet_by_control(shared, member)).await {
            Ok(Ok(met)) => return Ok(met),
            Ok(Err(error)) => tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the member did not answer over the control connection"
            ),
            Err(_) => tracing::debug!(
                ?member,
                "the control connection is slow: over the ring as well"
            ),
        }
    }
    examine::look_at_the_counter(shared).await;
    let asked = Instant::now();
    match over_ring::meet(shared, ring, member, via).await {
        Ok(reachability) => {
            shared.met(member, &reachability);
            Ok((reachability, asked.elapsed()))
        }
        Err(error) => {
            tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the member did not answer over the ring"
            );
            meet_by_control(shared, member).await
        }
    }
}

/// [`meet`] for a punch whose ports have to be guessed again.
pub(crate) fn meet_again(shared: Arc<Shared>, member: MemberId) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = meet(&shared, member, None).await {
            tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the ends agreed on no guessed ports"
            );
        }
    })
}

async fn stands(ring: &over_ring::RingAccess) {
    while !ring.net.stands() {
        tokio::time::sleep(RING_GLANCE).await;
    }
}

async fn meet_by_control(
    shared: &Arc<Shared>,
    member: MemberId,
) -> Result<(Reachability, Duration), Error> {
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
        Request::Link(shared.reachability(), handshake),
        CALL_LIMIT,
    )
    .await?;
    let Answer::Linked(reachability, handshake) = answer else {
        return Err(Error::Handshake(member, "answered something else".into()));
    };
    let took = asked.elapsed();
    shared.plane.finish_link(member, &handshake)?;
    shared.met(member, &reachability);
    if shared.plane.has_ring_neighbours() {
        shared.plane.try_paths(member, [Path::Ring]);
    }
    Ok((reachability, took))
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
    // An open member is reachable whatever our own NAT is.
    if shared.fabric.rtt_of_open(member).is_none() {
        nat::settle(shared, Duration::from_millis(600)).await;
    }
    // A path that worked once may work again, also while the control plane is down.
    shared.plane.try_remembered(member);
    shared.state().retries.hold_off(member, Instant::now());
    let (reachability, took) = meet(shared, member, via).await?;
    if reach == Reach::Any && current(shared, member, reach) == Some(Path::Ring) {
        // The first packet goes at once; the better path is found meanwhile.
        tokio::spawn(settle_behind(shared.clone(), member, reachability, took));
        return Ok(Path::Ring);
    }
    settle_path(shared, member, reach, (&reachability, took)).await
}

/// [`settle_path`] while the ring carries already.
fn settle_behind(
    shared: Arc<Shared>,
    member: MemberId,
    reachability: Reachability,
    took: Duration,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = settle_path(&shared, member, Reach::Edge, (&reachability, took)).await {
            tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the link stays on the ring"
            );
        }
    })
}

/// Brings the link to the best path. `met` has the member's reachability and the duration of the
/// call.
async fn settle_path(
    shared: &Arc<Shared>,
    member: MemberId,
    reach: Reach,
    met: (&Reachability, Duration),
) -> Result<Path, Error> {
    let settling = {
        let (host, state) = (shared.host(), shared.state());
        let met = (met.0.clone(), met.1);
        Settling::new(Instant::now(), &state, &host, reach, met)
    };
    settle_by(shared, member, met.0, settling).await
}

/// Finds a relay and starts to use it.
async fn find_relay(
    shared: &Arc<Shared>,
    member: MemberId,
    theirs: &Reachability,
) -> Result<Path, Error> {
    let settling = Settling::by_relay(theirs.clone());
    settle_by(shared, member, theirs, settling).await
}

async fn settle_by(
    shared: &Arc<Shared>,
    member: MemberId,
    theirs: &Reachability,
    mut settling: Settling,
) -> Result<Path, Error> {
    let mut failure = Error::NoPath(member);
    // Unfinished tries go on: a relay that is still being tried becomes the spare one.
    let mut doing = FuturesUnordered::new();
    loop {
        while let Some(action) = settling.poll() {
            doing.push(act(shared, member, theirs, action));
        }
        if let Some(path) = settling.outcome() {
            return path.ok_or(failure);
        }
        let input = match doing.next().await {
            Some(Ok(None)) => continue,
            Some(Ok(Some(input))) => input,
            Some(Err(error)) => {
                failure = error;
                Input::Stream(false)
            }
            None => return Err(failure),
        };
        let host = shared.host();
        let view = View {
            host: &host,
            path: shared.plane.usable_path(member),
            is_edge: shared.plane.is_edge(member),
        };
        settling.handle(Instant::now(), &shared.state(), &view, input);
    }
}

/// Does what the settling asks for, and returns the event to report to it.
async fn act(
    shared: &Arc<Shared>,
    member: MemberId,
    theirs: &Reachability,
    action: Action,
) -> Result<Option<Input>, Error> {
    Ok(match action {
        Action::AwaitMapping => {
            // The direct probes start only then.
            shared.mapping_known().await;
            Some(Input::MappingKnown)
        }
        Action::AwaitPath(reach, limit) => {
            Some(Input::Path(selected(shared, member, reach, limit).await))
        }
        Action::ListRelays => {
            let ranked = relays::ranked(shared, member, theirs);
            let relays = ranked.into_iter().map(|(relay, _)| relay);
            Some(Input::Relays(relays.collect()))
        }
        Action::TryRelay(relay) => {
            // A task of its own outlives this dial.
            let tried = tokio::spawn(relays::via(shared.clone(), member, relay)).await;
            Some(Input::Relayed(tried.ok().and_then(Result::ok)))
        }
        Action::PreferStream => {
            shared.plane.prefer_stream(member);
            None
        }
        Action::OpenStream => {
            stream::open(shared, member).await?;
            Some(Input::Stream(true))
        }
    })
}

/// Maintains the links that stand, each second.
pub(crate) async fn tend(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        let links = links(&shared);
        shared.handle(super::state::Input::Tick {
            host: &shared.host(),
            links: &links,
            connected: &shared.fabric.connected(),
        });
    }
}

fn links(shared: &Shared) -> Vec<Link> {
    let (plane, now) = (&shared.plane, Instant::now());
    let link = |(member, info): (MemberId, crate::plane::PathInfo)| Link {
        member,
        path: info.path,
        rtt: info.rtt,
        since: info.since,
        idle: plane.idle(member, now),
        from_second_port: match info.path {
            Path::Direct(to) => plane.is_sent_from_second_port(&to),
            _ => false,
        },
        relays: match info.path {
            Path::Relayed(_) => plane.relays_of(member),
            _ => Vec::new(),
        },
    };
    plane.peers().into_iter().map(link).collect()
}

/// One try to get a link off `path`.
pub(crate) fn improve(
    shared: Arc<Shared>,
    member: MemberId,
    path: Path,
    number: u32,
    is_hopeless: bool,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        escape::prepare(&shared, member, number, is_hopeless).await;
        let Ok((theirs, _)) = meet(&shared, member, None).await else {
            return;
        };
        let ours = shared.state().nat.kind;
        match remedy(path, ours, theirs.nat) {
            Remedy::Relay => drop(find_relay(&shared, member, &theirs).await),
            Remedy::Stream => {
                shared.plane.prefer_stream(member);
                let _ = stream::open(&shared, member).await;
            }
            Remedy::Probes => {}
        }
    })
}
