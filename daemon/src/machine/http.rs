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
    use crate::wiring::alone::{Alone, get, post};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_on_the_board_is_told_with_its_area() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.machine.clone());
        assert_eq!(
            get(routes(), "/findings").await.value::<Vec<FindingView>>(),
            []
        );
        let found = p2pvm_host::Finding::warning("the clock is behind", "set it");
        alone.services.node.parts.board.set("clock", vec![found]);
        let findings: Vec<FindingView> = get(routes(), "/findings").await.value();
        assert_eq!(
            (findings[0].area.as_str(), findings[0].advice.as_str()),
            ("clock", "set it")
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_repair_names_what_it_settled_and_nothing_that_is_still_wrong() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.machine.clone());
        let found = p2pvm_host::Finding::warning("the clock is behind", "set it");
        let parts = &alone.services.node.parts;
        parts.board.set("clock", vec![found]);
        // An idle plane has no thread that repairs its device: its end ends the wait for one.
        parts.plane.shutdown();
        let settled: Vec<FindingView> = post(routes(), "/mend", &()).await.value();
        assert!(
            settled.iter().all(|finding| finding.area != "clock"),
            "{settled:?}"
        );
        let left: Vec<FindingView> = post(routes(), "/findings", &()).await.value();
        assert!(
            left.iter().any(|finding| finding.area == "clock"),
            "{left:?}"
        );
    }
}
