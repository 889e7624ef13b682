//! The control API about events.

use super::follow;
use crate::{
    http::{Answer, report::streamed},
    parts::Parts,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{EventsPage, EventsWanted};
use std::sync::Arc;

/// Reading; following is for root only, since each reader holds a task.
pub(crate) fn routes(parts: Arc<Parts>) -> Router {
    Router::new().route("/events", get(list)).with_state(parts)
}

/// The same as a stream.
pub(crate) fn streams(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/events/follow", post(stream))
        .with_state(parts)
}

async fn list(
    State(parts): State<Arc<Parts>>,
    Query(wanted): Query<EventsWanted>,
) -> Answer<EventsPage> {
    let host = parts.certificate.name();
    parts.events.page(&wanted, host).await.map(Json)
}

async fn stream(State(parts): State<Arc<Parts>>, Json(wanted): Json<EventsWanted>) -> Response {
    streamed(move |reporter| follow::follow(parts, wanted, reporter))
}
