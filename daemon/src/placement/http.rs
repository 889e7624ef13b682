//! The control API about where VMs run: decisions, and emptying this host.

use super::service::Placement;
use crate::http::report::streamed;
use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{Decided, DrainStopping};
use std::sync::Arc;

type Shared = State<Arc<Placement>>;

/// The routes, for this machine's own root.
pub(crate) fn routes(placement: Arc<Placement>) -> Router {
    Router::new()
        .route("/drain", post(drain).delete(stop_draining))
        .route("/guests/shutdown", post(shut_down))
        .route("/decisions", get(decisions))
        .with_state(placement)
}

async fn decisions(State(placement): Shared) -> Json<Vec<Decided>> {
    Json(placement.decisions())
}

async fn drain(State(placement): Shared) -> Response {
    streamed(move |reporter| async move { placement.drain(&reporter).await })
}

async fn shut_down(State(placement): Shared) -> Response {
    streamed(move |reporter| async move { placement.for_shutdown(&reporter).await })
}

async fn stop_draining(State(placement): Shared) -> Json<DrainStopping> {
    Json(placement.stop_draining())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, delete, get, post};
    use p2pvm_api::{DrainAnswer, DrainItem, Line, ShutdownAnswer};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_without_vms_is_drained_at_once() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.placement.clone());
        assert_eq!(
            get(routes(), "/decisions").await.value::<Vec<Decided>>(),
            []
        );
        let lines = post(routes(), "/drain", &())
            .await
            .lines::<DrainAnswer, DrainItem>();
        assert_eq!(lines, [Line::Done(DrainAnswer::default())]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_without_guests_may_shut_down_at_once() {
        let alone = Alone::start().await;
        let routes = routes(alone.services.placement.clone());
        let lines = post(routes, "/guests/shutdown", &())
            .await
            .lines::<ShutdownAnswer, DrainItem>();
        assert_eq!(lines.last(), Some(&Line::Done(ShutdownAnswer::default())));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_a_drain_says_whether_one_was_under_way() {
        let alone = Alone::start().await;
        let routes = routes(alone.services.placement.clone());
        let end: DrainStopping = delete(routes, "/drain").await.value();
        assert!(!end.stopping);
    }
}
