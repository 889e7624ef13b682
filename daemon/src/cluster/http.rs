//! The control API about the whole cluster: for this machine's root only.

use super::service::Cluster;
use crate::http::Answer;
use axum::{Json, Router, extract::State, routing::get};
use std::sync::Arc;

pub(crate) fn routes(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/cluster", get(members))
        .with_state(cluster)
}

async fn members(State(cluster): State<Arc<Cluster>>) -> Answer<p2pvm_api::Cluster> {
    cluster.members().await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_of_one_is_that_one() {
        let alone = Alone::start().await;
        let routes = routes(alone.services.cluster.clone());
        let found: p2pvm_api::Cluster = get(routes, "/cluster").await.value();
        assert_eq!(
            (found.members[0].name.as_str(), found.load.members),
            ("attic", 1)
        );
    }
}
