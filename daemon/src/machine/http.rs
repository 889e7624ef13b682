//! The control API about this machine: for its own root only.

use super::service::Machine;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::FindingView;
use std::sync::Arc;

type Shared = State<Arc<Machine>>;

pub(crate) fn routes(machine: Arc<Machine>) -> Router {
    Router::new()
        .route("/findings", get(findings).post(examine))
        .route("/mend", post(mend))
        .with_state(machine)
}

async fn findings(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.findings())
}

/// The findings, after a new look at everything.
async fn examine(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.examine().await)
}

/// Repairs the daemon's own settings; answers with the findings that are settled.
async fn mend(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.mend().await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_on_the_board_is_told_with_its_area() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.machine.clone());
        assert_eq!(
            get(routes(), "/findings").await,
            (StatusCode::OK, json!([]))
        );
        let found = p2pvm_host::Finding::warning("the clock is behind", "set it");
        alone.services.node.parts.board.set("clock", vec![found]);
        let (_, findings) = get(routes(), "/findings").await;
        assert_eq!(
            (&findings[0]["area"], &findings[0]["advice"]),
            (&json!("clock"), &json!("set it")),
            "{findings}"
        );
    }
}
