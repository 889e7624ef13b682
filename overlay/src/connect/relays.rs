//! Which member passes datagrams on between two that cannot reach each other. Any that both reach will do and none is a
//! must; best is the one over which the round trip is shortest, by what both sides have measured to it. Two are tried at a
//! time: the first that answers is used, the other stays warm beside it (the plane's paths measure it now and then), so that
//! a relay that dies is replaced at once. A clearly better one, looked for now and then, takes over; the paths' own
//! hysteresis decides. A member may be unwilling (`relay = false`), and then says so; how much a willing one passes on is
//! its plane's matter ([`crate::plane::RelayOffer`]).

use super::{
    Shared,
    dial::{CALL_LIMIT, PATIENCE, Reach, ask, current, ensure, selected},
    message::{Answer, NatKind, Request, Whereabouts},
};
use crate::{
    id::MemberId,
    plane::{Error, Path},
};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Having a relay ready may take a dial of its own.
const RELAY_LIMIT: Duration = Duration::from_secs(6);
/// Relays tried before a stream.
const MAX_RELAYS: usize = 6;
/// Tried at a time: one to use and one to spare.
const AT_ONCE: usize = 2;
/// A member that would not relay is not asked again within this.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// Links through relays are looked at this often.
const TEND_EVERY: Duration = Duration::from_secs(2);
/// A link that has its spare relay is reviewed for a better one this often.
const REVIEW_EVERY: Duration = Duration::from_secs(30);
/// A relay is better only if it saves a fifth of the round trip and at least this.
const WORTH_MS: u64 = 5;
/// Links that carried nothing for this long are left alone.
const IN_USE: Duration = Duration::from_secs(60);

/// The members through which `member` may be reached, best first: by the sum of both measured legs; then those with one
/// measured leg that stand open; then the others that either side knows.
pub(super) fn candidates(shared: &Shared, member: MemberId, theirs: &Whereabouts) -> Vec<MemberId> {
    let ours = shared.direct_neighbours();
    let connected = shared.fabric.connected();
    let their_legs: HashMap<MemberId, Option<u32>> = theirs.neighbours.iter().copied().collect();
    let state = shared.state();
    let now = Instant::now();
    let willing = |m: &MemberId| {
        let refused = state.refused.get(m).is_some_and(|at| now.saturating_duration_since(*at) < REFUSED_FOR);
        !refused && state.known.get(m).is_none_or(|(_, w)| w.relay && w.nat != NatKind::Blocked)
    };
    let open = |m: &MemberId| state.known.get(m).is_some_and(|(_, w)| w.nat == NatKind::Open);
    let mut ranked = BTreeMap::new();
    for relay in their_legs.keys().chain(&connected).copied() {
        if relay == member || relay == shared.fabric.me() || !willing(&relay) {
            continue;
        }
        let (our_leg, their_leg) = (ours.get(&relay).copied(), their_legs.get(&relay).copied().flatten());
        let common = their_legs.contains_key(&relay) && connected.contains(&relay);
        let (class, rtt) = match (our_leg, their_leg) {
            (Some(a), Some(b)) => (0, u64::from(a) + u64::from(b)),
            (one, other) if common => (if open(&relay) { 1 } else { 2 }, one.or(other).map_or(u64::MAX, u64::from)),
            // Only one side knows it; the other can dial it.
            (one, other) => (if open(&relay) { 3 } else { 4 }, one.or(other).map_or(u64::MAX, u64::from)),
        };
        ranked.insert((class, rtt, relay), relay);
    }
    ranked.into_values().take(MAX_RELAYS).collect()
}

/// The round trip over `relay` as both sides' measurements of their legs give it, milliseconds.
fn predicted(shared: &Shared, theirs: &Whereabouts, relay: MemberId) -> Option<u64> {
    let our_leg = shared.direct_neighbours().get(&relay).copied()?;
    let their_leg = theirs.neighbours.iter().find(|(m, _)| *m == relay)?.1?;
    Some(u64::from(our_leg) + u64::from(their_leg))
}

/// Finds a relay and takes it into use; `None` if none will do.
pub(super) async fn find(shared: &Arc<Shared>, member: MemberId, theirs: &Whereabouts) -> Option<Path> {
    let candidates = candidates(shared, member, theirs);
    for some in candidates.chunks(AT_ONCE) {
        let mut tries = JoinSet::new();
        for relay in some {
            tries.spawn(via(shared.clone(), member, *relay));
        }
        while let Some(tried) = tries.join_next().await {
            if let Ok(Ok(path)) = tried {
                tries.detach_all();
                return Some(path);
            }
        }
        if let Some(path) = current(shared, member, Reach::Edge) {
            return Some(path);
        }
    }
    None
}

/// Has `relay` pass our datagrams on to `member`.
pub(super) fn via(shared: Arc<Shared>, member: MemberId, relay: MemberId) -> BoxFuture<'static, Result<Path, Error>> {
    let tried = async move {
        let (ours, theirs) =
            tokio::join!(ensure(&shared, relay, Reach::WithoutRelay), ask(&shared, relay, Request::Relay(member), RELAY_LIMIT));
        if ours? == Path::Stream {
            // Our own stream to the member is no worse than one to a relay.
            return Err(Error::NoPath(member));
        }
        if let Err(error) = theirs {
            shared.state().refused.insert(relay, Instant::now());
            tracing::debug!(?member, ?relay, %error, "not through this member");
            return Err(error);
        }
        shared.plane.inner().try_paths(member, [Path::Relayed(relay)]);
        selected(&shared, member, Reach::Edge, PATIENCE.1).await.ok_or(Error::NoPath(member))
    };
    tried.boxed()
}

/// Looks after the links that go through relays: each has a spare one, and the better one.
pub(crate) async fn tend(shared: Arc<Shared>) {
    let mut reviewed: HashMap<MemberId, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        let now = Instant::now();
        shared.state().refused.retain(|_, at| now.saturating_duration_since(*at) < REFUSED_FOR);
        let peers = shared.plane.peers();
        reviewed.retain(|member, _| peers.iter().any(|(m, info)| m == member && matches!(info.path, Path::Relayed(_))));
        for (member, info) in peers {
            let peer = shared.plane.inner().peer(member);
            if !matches!(info.path, Path::Relayed(_)) || peer.idle(now) > IN_USE {
                continue;
            }
            let relays = peer.paths().relays();
            let pause = if relays.len() < AT_ONCE { TEND_EVERY * 4 } else { REVIEW_EVERY };
            if reviewed.get(&member).is_some_and(|at| now.saturating_duration_since(*at) < pause) {
                continue;
            }
            reviewed.insert(member, now);
            tokio::spawn(review(shared.clone(), member, relays, info.rtt));
        }
    }
}

/// Tries one more relay if the link has no spare one or a better one is known.
async fn review(shared: Arc<Shared>, member: MemberId, relays: Vec<MemberId>, rtt: Option<Duration>) {
    let Ok(Answer::Here(theirs)) = ask(&shared, member, Request::Where, CALL_LIMIT).await else { return };
    shared.remember(member, &theirs);
    let Some(next) = candidates(&shared, member, &theirs).into_iter().find(|relay| !relays.contains(relay)) else { return };
    let better = predicted(&shared, &theirs, next).zip(rtt).is_some_and(|(new, rtt)| {
        let old = rtt.as_millis() as u64;
        new * 5 <= old * 4 && new + WORTH_MS <= old
    });
    if relays.len() < AT_ONCE || better {
        // The paths measure it and take it if it is better; a failure was noted.
        let _ = via(shared, member, next).await;
    }
}
