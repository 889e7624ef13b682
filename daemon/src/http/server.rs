//! The control API as it is served: the routes of all resources, for this machine's own root, and
//! those about VMs for other members.

use crate::{Daemon, access, members, placement, routes, vms};
use axum::{
    Router,
    extract::Request,
    middleware,
    response::{IntoResponse, Response},
};
use p2pvm_api::Failure;
use std::{sync::Arc, time::Duration};

/// How long a request waits before its answer has begun.
const ANSWER_LIMIT: Duration = Duration::from_secs(140);

/// Everything, for this machine's own root.
pub(crate) fn local(daemon: Arc<Daemon>) -> Router {
    members::http::routes(daemon.clone())
        .merge(access::http::routes(daemon.clone()))
        .merge(routes::http::routes(daemon.clone()))
        .merge(placement::http::routes(daemon.clone()))
        .merge(vms::http::of_cluster(daemon.clone()))
        .merge(vms::http::routes(daemon))
        .layer(middleware::from_fn(in_time))
}

/// What other members may ask: virtual machines.
pub(crate) fn for_members(daemon: Arc<Daemon>) -> Router {
    vms::http::routes(daemon)
}

/// Ends a request that nothing answers. A streamed answer has begun by then and says itself how it
/// goes.
async fn in_time(request: Request, next: middleware::Next) -> Response {
    let what = request.uri().path().to_owned();
    let late = || {
        Failure::timed_out(format!(
            "the daemon has not done {what} within {} s",
            ANSWER_LIMIT.as_secs()
        ))
        .into_response()
    };
    tokio::time::timeout(ANSWER_LIMIT, next.run(request))
        .await
        .unwrap_or_else(|_| late())
}
