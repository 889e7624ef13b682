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

    #[tokio::test(flavor = "multi_thread")]
    async fn a_policy_that_was_set_decides_what_is_checked_after_it() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.access.clone());
        let shown: AclShow = get(routes(), "/acl").await.value();
        assert_eq!(shown.version, None);
        let question = AclCheck {
            from: "member:attic".into(),
            to: "member:attic".into(),
            traffic: "icmp".into(),
        };
        let before: AclVerdict = post(routes(), "/acl/check", &question).await.value();
        assert!(before.allowed, "{before:?}");
        let text = "default = \"deny\"".to_owned();
        let set: AclAnswer = post(routes(), "/acl", &AclSet { text }).await.value();
        assert_eq!(set.version, 1);
        let after: AclVerdict = post(routes(), "/acl/check", &question).await.value();
        assert!(!after.allowed, "{after:?}");
        assert_eq!(after.effect, "attic drops it and tells nobody");
    }
}
