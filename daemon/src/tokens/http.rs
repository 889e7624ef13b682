//! The control API about tokens: for this machine's root only, since they are signed with this
//! member's key.

use super::{revoke::Revoker, service::Tokens};
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post},
};
use p2pvm_api::{
    AddUser, CreateToken, PassToken, RevokeToken, TokenRemoved, TokenRevoked, TokenText, TokenView,
    UserView,
};
use std::sync::Arc;

type Shared = State<Arc<Tokens>>;

pub(crate) fn routes(tokens: Arc<Tokens>, revoker: Arc<Revoker>) -> Router {
    let revoking = Router::new()
        .route("/tokens/revoke", post(revoke))
        .with_state(revoker);
    Router::new()
        .route("/tokens", get(list).post(create))
        .route("/tokens/attenuate", post(pass_on))
        .route("/tokens/show", post(show))
        .route("/tokens/add", post(add))
        .route("/tokens/{id}", delete(remove))
        .route("/users", get(users).post(add_user))
        .with_state(tokens)
        .merge(revoking)
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

async fn revoke(
    State(revoker): State<Arc<Revoker>>,
    Json(r): Json<RevokeToken>,
) -> Answer<TokenRevoked> {
    revoker.revoke(&r).await.map(Json)
}

async fn users(State(tokens): Shared) -> Json<Vec<UserView>> {
    Json(tokens.users.list())
}

async fn add_user(State(tokens): Shared, Json(r): Json<AddUser>) -> Answer<UserView> {
    tokens.users.add(&r.name, &r.key, r.uid).map(Json)
}

async fn remove(State(tokens): Shared, Path(id): Path<String>) -> Answer<TokenRemoved> {
    tokens.remove(&id).map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, delete, get, post};
    use p2pvm_api::{Failure, Kind, TokenState};

    fn of(alone: &Alone) -> Router {
        let services = &alone.services;
        routes(services.tokens.clone(), services.revoker.clone())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_for_a_user_is_kept_where_the_user_is_known() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        let key = p2pvm_overlay::MemberId([3; 32]).to_string();
        let to_user = CreateToken {
            to: format!("user:{key}"),
            ..wanted(&["start"])
        };
        let made: TokenView = post(routes(), "/tokens", &to_user).await.value();
        let token = made.token.clone();
        let text = TokenText { token };
        let failure = post(routes(), "/tokens/add", &text).await.failure();
        assert!(failure.message.contains("user add"), "{failure}");
        let name = "anna".to_owned();
        let added: UserView = post(
            routes(),
            "/users",
            &AddUser {
                name,
                key,
                uid: None,
            },
        )
        .await
        .value();
        let all: Vec<UserView> = get(routes(), "/users").await.value();
        assert_eq!(all, [added]);
        let kept: TokenView = post(routes(), "/tokens/add", &text).await.value();
        assert_eq!(kept.to, "user:anna");
        let pass = PassToken {
            token: made.token,
            may: vec![],
            seconds: None,
            to: "attic".into(),
        };
        let failure = post(routes(), "/tokens/attenuate", &pass).await.failure();
        assert!(failure.message.contains("given to user:anna"), "{failure}");
    }

    /// A token for "attic" itself.
    fn wanted(may: &[&str]) -> CreateToken {
        CreateToken {
            vm: Some(p2pvm_overlay::VmId([7; 32]).to_string()),
            may: may.iter().map(|right| (*right).to_owned()).collect(),
            seconds: 60,
            to: "attic".into(),
            cpus: None,
            memory_mib: None,
            disk_bytes: None,
            bits_per_second: None,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_for_oneself_is_kept_shown_and_forgotten() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        let list = async || get(routes(), "/tokens").await.value::<Vec<TokenView>>();
        let wanted = wanted(&["start", "console"]);
        let made: TokenView = post(routes(), "/tokens", &wanted).await.value();
        assert_eq!(made.may, ["start", "console"]);
        assert_eq!(
            (&made.from[..], made.to.as_str()),
            (&["attic".to_owned()][..], "attic")
        );
        let text = TokenText {
            token: made.token.clone(),
        };
        let shown: TokenView = post(routes(), "/tokens/show", &text).await.value();
        assert_eq!(shown, made);
        assert_eq!((made.given, made.state), (true, TokenState::Valid));
        assert_eq!(list().await, std::slice::from_ref(&made), "it was given");
        let added: TokenView = post(routes(), "/tokens/add", &text).await.value();
        assert_eq!(added, made);
        assert_eq!(list().await, std::slice::from_ref(&made));
        let path = format!("/tokens/{}", made.id);
        let gone: TokenRemoved = delete(routes(), &path).await.value();
        assert_eq!(gone.removed, made.id);
        let failure = delete(routes(), &path).await.failure();
        assert!(failure.message.contains("token revoke"), "{failure}");
        let failure = delete(routes(), "/tokens/09ab").await.failure();
        assert_eq!(failure.kind, Kind::NotFound, "{failure}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_is_revoked_by_id_before_a_host_is_told() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        let made: TokenView = post(routes(), "/tokens", &wanted(&["see"])).await.value();
        let revoke = async |token: &str| {
            let token = token.to_owned();
            post(routes(), "/tokens/revoke", &RevokeToken { token }).await
        };
        // No member has the VM.
        let revoked: TokenRevoked = revoke(&made.id).await.value();
        assert_eq!((&revoked.revoked, revoked.host), (&made.id, None));
        assert!(revoked.note.unwrap().contains("no such VM"));
        let listed: Vec<TokenView> = get(routes(), "/tokens").await.value();
        assert_eq!(listed[0].state, TokenState::Revoked);
        let again: TokenRevoked = revoke(&made.token).await.value();
        assert_eq!(again.revoked, made.id);
        let failure = revoke("09ab3c5d7e01").await.failure();
        assert!(failure.message.contains("token list"), "{failure}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_for_this_host_has_amounts_and_is_revoked_here() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        let host = CreateToken {
            vm: None,
            cpus: Some(2),
            memory_mib: Some(1024),
            ..wanted(&["run"])
        };
        let made: TokenView = post(routes(), "/tokens", &host).await.value();
        assert_eq!(made.may, ["create"]);
        assert_eq!(
            made.on,
            "host attic (at most 2 processors, 1024 MiB of memory)"
        );
        let token = made.id.clone();
        let revoked = post(routes(), "/tokens/revoke", &RevokeToken { token }).await;
        assert_eq!(
            revoked.value::<TokenRevoked>().host.as_deref(),
            Some("attic")
        );
        for (wrong, said) in [
            (
                CreateToken {
                    may: vec!["start".into()],
                    ..host.clone()
                },
                "to 'run' VMs",
            ),
            (
                CreateToken {
                    vm: wanted(&[]).vm,
                    ..host.clone()
                },
                "right on a host",
            ),
            (
                CreateToken {
                    cpus: Some(1),
                    ..wanted(&["see"])
                },
                "--host",
            ),
            (wanted(&["create"]), "--host"),
        ] {
            let failure = post(routes(), "/tokens", &wrong).await.failure();
            assert!(failure.message.contains(said), "{failure}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_is_passed_on_with_less_but_not_with_more() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        let wanted = wanted(&["start", "console"]);
        let made: TokenView = post(routes(), "/tokens", &wanted).await.value();
        let pass = |may: &str| PassToken {
            token: made.token.clone(),
            may: vec![may.to_owned()],
            seconds: None,
            to: "attic".into(),
        };
        let path = "/tokens/attenuate";
        let passed: TokenView = post(routes(), path, &pass("start")).await.value();
        assert_eq!(
            (&passed.may, &passed.from.len()),
            (&vec!["start".to_owned()], &2)
        );
        assert_eq!(passed.until, made.until);
        let wider = post(routes(), path, &pass("delete")).await.failure();
        assert_eq!(wider.kind, Kind::Refused);
        assert!(wider.message.contains("cannot be widened"), "{wider}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_right_no_token_and_no_member_is_named() {
        let alone = Alone::start().await;
        let routes = || of(&alone);
        for (wanted, said) in [
            (wanted(&["fly"]), "'fly' is not a right"),
            (wanted(&[]), "names no right"),
            (
                CreateToken {
                    seconds: 0,
                    ..wanted(&["see"])
                },
                "at least a second",
            ),
            (
                CreateToken {
                    to: "cellar".into(),
                    ..wanted(&["see"])
                },
                "no member 'cellar'",
            ),
            (
                CreateToken {
                    vm: Some("web".into()),
                    ..wanted(&["see"])
                },
                "there is no VM 'web'",
            ),
        ] {
            let failure = post(routes(), "/tokens", &wanted).await.failure();
            assert!(failure.message.contains(said), "{failure}");
        }
        let token = "p2pvm1abc".to_owned();
        let failure: Failure = post(routes(), "/tokens/add", &TokenText { token })
            .await
            .failure();
        assert!(failure.message.contains("not a token"), "{failure}");
    }
}
