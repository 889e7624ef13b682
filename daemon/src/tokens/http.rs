//! The control API about tokens: for this machine's root only, since they are signed with this
//! member's key.

use super::service::Tokens;
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post},
};
use p2pvm_api::{CreateToken, PassToken, TokenRemoved, TokenText, TokenView};
use std::sync::Arc;

type Shared = State<Arc<Tokens>>;

pub(crate) fn routes(tokens: Arc<Tokens>) -> Router {
    Router::new()
        .route("/tokens", get(list).post(create))
        .route("/tokens/attenuate", post(pass_on))
        .route("/tokens/show", post(show))
        .route("/tokens/add", post(add))
        .route("/tokens/{id}", delete(remove))
        .with_state(tokens)
}

async fn list(State(tokens): Shared) -> Json<Vec<TokenView>> {
    Json(tokens.list().await)
}

async fn create(State(tokens): Shared, Json(r): Json<CreateToken>) -> Answer<TokenView> {
    tokens.create(&r).await.map(Json)
}

async fn pass_on(State(tokens): Shared, Json(r): Json<PassToken>) -> Answer<TokenView> {
    tokens.pass_on(&r).await.map(Json)
}

async fn show(State(tokens): Shared, Json(r): Json<TokenText>) -> Answer<TokenView> {
    tokens.show(&r.token).await.map(Json)
}

async fn add(State(tokens): Shared, Json(r): Json<TokenText>) -> Answer<TokenView> {
    tokens.add(&r.token).await.map(Json)
}

async fn remove(State(tokens): Shared, Path(id): Path<String>) -> Answer<TokenRemoved> {
    tokens.remove(&id).map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, delete, get, post};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_for_oneself_is_kept_shown_and_forgotten() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.tokens.clone());
        let vm = p2pvm_overlay::VmId([7; 32]).to_string();
        let wanted = json!({"vm": vm, "may": ["start", "console"], "seconds": 60, "to": "attic"});
        let (status, made) = post(routes(), "/tokens", &wanted).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        assert_eq!(made["may"], json!(["start", "console"]));
        assert_eq!(
            (&made["from"], &made["to"]),
            (&json!(["attic"]), &json!("attic"))
        );
        let text = json!({"token": made["token"]});
        let (_, shown) = post(routes(), "/tokens/show", &text).await;
        assert_eq!(shown, made);
        assert_eq!(get(routes(), "/tokens").await.1, json!([]));
        let (status, added) = post(routes(), "/tokens/add", &text).await;
        assert_eq!((status, &added), (StatusCode::OK, &made));
        assert_eq!(get(routes(), "/tokens").await.1, json!([made]));
        let gone = format!("/tokens/{}", made["id"].as_str().unwrap());
        assert_eq!(delete(routes(), &gone).await.0, StatusCode::OK);
        assert_eq!(get(routes(), "/tokens").await.1, json!([]));
        assert_eq!(delete(routes(), &gone).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_right_no_token_and_no_member_is_named() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.tokens.clone());
        let vm = p2pvm_overlay::VmId([7; 32]).to_string();
        for (wanted, said) in [
            (
                json!({"vm": vm, "may": ["fly"], "seconds": 60, "to": "attic"}),
                "'fly' is not a right",
            ),
            (
                json!({"vm": vm, "may": [], "seconds": 60, "to": "attic"}),
                "names no right",
            ),
            (
                json!({"vm": vm, "may": ["see"], "seconds": 0, "to": "attic"}),
                "at least a second",
            ),
            (
                json!({"vm": vm, "may": ["see"], "seconds": 60, "to": "cellar"}),
                "no member 'cellar'",
            ),
            (
                json!({"vm": "web", "may": ["see"], "seconds": 60, "to": "attic"}),
                "there is no VM 'web'",
            ),
        ] {
            let (status, failure) = post(routes(), "/tokens", &wanted).await;
            assert_ne!(status, StatusCode::OK, "{wanted}");
            assert!(failure.to_string().contains(said), "{failure}");
        }
        let (_, failure) = post(routes(), "/tokens/add", &json!({"token": "p2pvm1abc"})).await;
        assert!(failure.to_string().contains("not a token"), "{failure}");
    }
}
