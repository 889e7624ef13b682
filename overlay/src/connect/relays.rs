//! Adds relays to a link. Two are tried at a time: the first that answers is used, the other is the
//! spare (the plane's paths measure it now and then), so that a dead relay is replaced at once. A
//! clearly better relay, looked for now and then, replaces the one in use; the paths' own
//! hysteresis decides that. [`super::state::relays`] selects the relays to try.

use super::{
    Shared,
    dial::{CALL_LIMIT, PATIENCE, Reach, ask, ensure, selected},
    message::{Answer, Reachability, Request},
    state::{
        Input,
        relays::{Neighbours, another},
    },
};
use crate::{
    id::MemberId,
    plane::{Error, Path},
};
use futures::{FutureExt, future::BoxFuture};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a member may take to make a link to another. Reason: it may have to dial.
const RELAY_LIMIT: Duration = Duration::from_secs(6);

/// The members that may relay to `member`, best first, each with the expected round trip in
/// milliseconds.
pub(super) fn ranked(
    shared: &Shared,
    member: MemberId,
    theirs: &Reachability,
) -> Vec<(MemberId, Option<u64>)> {
    let (direct, connected) = (shared.direct_neighbours(), shared.fabric.connected());
    let ring = shared.ring_status();
    let ours = Neighbours {
        direct: &direct,
        connected: &connected,
        here: shared.here(),
        place: &|member| super::shared::place_on_ring(&ring, member),
    };
    shared
        .state()
        .relays_to(Instant::now(), member, theirs, &ours)
}

/// Makes `relay` relay our datagrams to `member`.
pub(super) fn via(
    shared: Arc<Shared>,
    member: MemberId,
    relay: MemberId,
) -> BoxFuture<'static, Result<Path, Error>> {
    let tried = async move {
        let (ours, theirs) = tokio::join!(
            ensure(&shared, relay, Reach::WithoutRelay),
            ask(&shared, relay, Request::Relay(member), RELAY_LIMIT)
        );
        if ours? == Path::Stream {
            // Our own stream to the member is as good as one to a relay.
            return Err(Error::NoPath(member));
        }
        if let Err(error) = theirs {
            shared.handle(Input::RelayRefused(relay));
            tracing::debug!(
                ?member,
                ?relay,
                error = %p2pvm_host::chain(&error),
                "the member does not relay"
            );
            return Err(error);
        }
        shared.plane.try_paths(member, [Path::Relayed(relay)]);
        selected(&shared, member, Reach::Edge, PATIENCE.1)
            .await
            .ok_or(Error::NoPath(member))
    };
    tried.boxed()
}

/// Tries one more relay if the link has no spare one or a better one is known.
pub(super) fn review(
    shared: Arc<Shared>,
    member: MemberId,
    relays: Vec<MemberId>,
    rtt: Option<Duration>,
) -> BoxFuture<'static, ()> {
    async move {
        let asked = ask(&shared, member, Request::Where, CALL_LIMIT).await;
        let Ok(Answer::Here(theirs)) = asked else {
            return;
        };
        shared.remember(member, &theirs);
        let ranked = ranked(&shared, member, &theirs);
        if let Some(next) = another(&ranked, &relays, rtt) {
            // The paths measure it and use it if it is better; a failure was noted.
            let _ = via(shared, member, next).await;
        }
    }
    .boxed()
}
