//! Takes relays into use. Two are tried at a time: the first that answers is used, the other stays
//! warm beside it (the plane's paths measure it now and then), so that a relay that dies is
//! replaced at once. A clearly better one, looked for now and then, takes over; the paths' own
//! hysteresis decides. Which ones are tried: [`super::state::relays`].

use super::{
    Shared,
    dial::{CALL_LIMIT, PATIENCE, Reach, ask, ensure, selected},
    message::{Answer, Request, Whereabouts},
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

/// How long a member may take to have a link to another, for which it may have to dial.
const RELAY_LIMIT: Duration = Duration::from_secs(6);

/// The members through which `member` may be reached, best first, with the round trip to expect in
/// milliseconds.
pub(super) fn ranked(
    shared: &Shared,
    member: MemberId,
    theirs: &Whereabouts,
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

/// Has `relay` pass our datagrams on to `member`.
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
            // Our own stream to the member is no worse than one to a relay.
            return Err(Error::NoPath(member));
        }
        if let Err(error) = theirs {
            shared.handle(Input::RelayRefused(relay));
            tracing::debug!(?member, ?relay, %error, "not through this member");
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
            // The paths measure it and take it if it is better; a failure was noted.
            let _ = via(shared, member, next).await;
        }
    }
    .boxed()
}
