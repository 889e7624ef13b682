//! The control API's part about the web dashboard: for this machine's root only.

use crate::web::Dashboard;
use axum::{Json, Router, extract::State, routing::get};
use p2pvm_api::{DashboardChange, DashboardView, Outcome};
use std::sync::Arc;

pub fn routes(dashboard: Arc<Dashboard>) -> Router {
    Router::new()
        .route("/dashboard", get(show).post(change))
        .with_state(dashboard)
}

async fn show(State(dashboard): State<Arc<Dashboard>>) -> Json<DashboardView> {
    Json(dashboard.state())
}

async fn change(
    State(dashboard): State<Arc<Dashboard>>,
    Json(wanted): Json<DashboardChange>,
) -> Outcome<Json<DashboardView>> {
    dashboard.change(&wanted).map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_dashboard_is_off_until_it_is_switched_on() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.dashboard.clone());
        let shown: DashboardView = get(routes(), "/dashboard").await.value();
        assert!(!shown.on);
        let change = DashboardChange {
            on: Some(true),
            ..DashboardChange::default()
        };
        let changed: DashboardView = post(routes(), "/dashboard", &change).await.value();
        assert!(changed.on && changed.token == shown.token);
    }
}
