//! The control API about the network's access rules: for this machine's root only.

use super::service::Access;
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{AclAnswer, AclCheck, AclSet, AclShow, AclVerdict};
use std::sync::Arc;

type Shared = State<Arc<Access>>;

pub(crate) fn routes(access: Arc<Access>) -> Router {
    Router::new()
        .route("/acl", get(show).post(set))
        .route("/acl/check", post(check))
        .with_state(access)
}

async fn set(State(access): Shared, Json(r): Json<AclSet>) -> Answer<AclAnswer> {
    access.set(&r.text).await.map(Json)
}

async fn show(State(access): Shared) -> Json<AclShow> {
    Json(access.show())
}

async fn check(State(access): Shared, Json(r): Json<AclCheck>) -> Answer<AclVerdict> {
    access.check(&r).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_policy_that_was_set_decides_what_is_checked_after_it() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.access.clone());
        let (status, shown) = get(routes(), "/acl").await;
        assert_eq!((status, &shown["version"]), (StatusCode::OK, &json!(null)));
        let question = json!({"from": "member:attic", "to": "member:attic", "traffic": "icmp"});
        let (_, before) = post(routes(), "/acl/check", &question).await;
        assert_eq!(before["allowed"], true, "{before}");
        let (status, set) = post(routes(), "/acl", &json!({"text": "default = \"deny\""})).await;
        assert_eq!(
            (status, &set["version"]),
            (StatusCode::OK, &json!(1)),
            "{set}"
        );
        let (_, after) = post(routes(), "/acl/check", &question).await;
        assert_eq!(after["allowed"], false, "{after}");
        assert_eq!(after["effect"], "attic drops it and tells nobody");
    }
}
