//! The control API's part about the web dashboard: for this machine's root only.

use crate::web::Dashboard;
use axum::{Json, Router, extract::State, routing::get};
use p2pvm_api::{DashboardChange, DashboardView, Outcome};
use std::sync::Arc;

/// Its routes.
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
