//! The control API's part about the web dashboard: for this machine's root only.

use crate::{failure::Outcome, web::Dashboard};
use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `p2pvm dashboard`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DashboardView {
    /// Whether it is switched on for the network.
    pub on: bool,
    /// The link that opens it from any member, with the token; none while it is off or this node
    /// has no address.
    pub url: Option<String>,
    /// Why it is not there although it is on.
    pub trouble: Option<String>,
    /// The token that each request shows.
    pub token: String,
    /// Its port on this host's address in the network.
    pub port: u16,
    /// The unix socket that has it always.
    pub socket: String,
    /// Whether the page was built into this program.
    pub has_page: bool,
}

/// What `p2pvm dashboard` asks for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct DashboardChange {
    /// Switch it on or off; none leaves it.
    #[serde(default)]
    pub on: Option<bool>,
    /// Make a new token.
    #[serde(default)]
    pub new_token: bool,
}

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
