//! The control API as this machine's own root is served it, and its document.

use super::caller::is_listed;
use crate::vms::rights;
use axum::{
    Extension, Router,
    extract::Request,
    http::header,
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use p2pvm_api::{Failure, OPENAPI, operations::Asker};
use std::time::Duration;

/// How long a request waits for the beginning of its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(140);

/// Routes as root asks them, each answered in time; each also below `/v1`.
pub(crate) fn for_root(routes: Router) -> Router {
    Router::new()
        .nest("/v1", routes.clone())
        .merge(routes)
        .route("/v1/openapi.json", get(openapi))
        .layer(middleware::from_fn(in_time))
        .layer(Extension(rights::Asker::Root))
}

/// Routes as a caller with a token of the dashboard asks them: those that the table of operations
/// lists for it and that read.
pub(crate) fn for_tokens(routes: Router) -> Router {
    routes
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn(listed))
        .fallback(not_listed)
}

async fn listed(request: Request, next: middleware::Next) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    // The group only reads: what it may not ask, as a console, is no reader's either.
    let mut both = [Asker::Page, Asker::Group].into_iter();
    if both.all(|asker| is_listed(asker, method, path)) {
        return next.run(request).await;
    }
    not_listed().await
}

/// The answer to a request that no token allows.
pub(crate) async fn not_listed() -> Response {
    Failure::not_found("the dashboard has no such request: use the command line").into_response()
}

/// The description of the API.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
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
