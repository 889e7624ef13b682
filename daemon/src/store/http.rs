//! The control API about stored chunks: for this machine's root only.

use super::service::Chunks;
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{CollectStore, StoreCollected, StoreView};
use std::sync::Arc;

pub(crate) fn routes(chunks: Arc<Chunks>) -> Router {
    Router::new()
        .route("/store", get(show))
        .route("/store/gc", post(collect))
        .with_state(chunks)
}

async fn show(State(chunks): State<Arc<Chunks>>) -> Answer<StoreView> {
    chunks.show().await.map(Json)
}

async fn collect(
    State(chunks): State<Arc<Chunks>>,
    Json(request): Json<CollectStore>,
) -> Answer<StoreCollected> {
    chunks.collect(request.dry_run).await.map(Json)
}
