//! The control API about the members: for this machine's root only.

use super::service::Members;
use crate::http::{Answer, report::streamed};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{
    InviteAnswer, InviteRequest, NetCheckView, Peer, PingRequest, RevokeAnswer, RevokeRequest,
    Traced, Traffic,
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

type Shared = State<Arc<Members>>;

pub(crate) fn routes(members: Arc<Members>) -> Router {
    Router::new()
        .route("/peers", get(peers))
        .route("/traffic", get(traffic))
        .route("/netcheck", get(netcheck))
        .route("/ping", post(ping))
        .route("/trace/{member}", get(trace))
        .route("/invite", post(invite))
        .route("/revoke", post(revoke))
        .with_state(members)
}

#[derive(Deserialize)]
struct TrafficQuery {
    #[serde(default)]
    all: bool,
}

async fn traffic(State(members): Shared, Query(query): Query<TrafficQuery>) -> Json<Vec<Traffic>> {
    Json(members.traffic(query.all))
}

async fn peers(State(members): Shared) -> Json<Vec<Peer>> {
    Json(members.living_peers().await)
}

async fn netcheck(State(members): Shared) -> Json<NetCheckView> {
    Json(members.netcheck().await)
}

async fn trace(State(members): Shared, Path(member): Path<String>) -> Answer<Traced> {
    members.trace(&member).await.map(Json)
}

async fn ping(State(members): Shared, Json(r): Json<PingRequest>) -> Response {
    streamed(move |reporter| async move {
        let interval = Duration::from_millis(r.interval_ms);
        members.ping(&r.member, r.count, interval, &reporter).await
    })
}

async fn invite(State(members): Shared, Json(r): Json<InviteRequest>) -> Answer<InviteAnswer> {
    members.invite(&r).await.map(Json)
}

async fn revoke(State(members): Shared, Json(r): Json<RevokeRequest>) -> Answer<RevokeAnswer> {
    members.revoke(&r.what).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use p2pvm_api::{Failure, Kind, Line, PingSummary, Pong};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lone_member_has_no_peers_and_cannot_ping_itself() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.members.clone());
        assert!(
            get(routes(), "/peers")
                .await
                .value::<Vec<Peer>>()
                .is_empty()
        );
        assert!(
            get(routes(), "/traffic")
                .await
                .value::<Vec<Traffic>>()
                .is_empty()
        );
        let ping = PingRequest {
            count: 1,
            interval_ms: 1,
            member: "attic".into(),
        };
        let lines = post(routes(), "/ping", &ping)
            .await
            .lines::<PingSummary, Pong>();
        let refused = Failure::usage("attic is this member");
        assert_eq!(lines, [Line::Error(refused)]);
        let what = "attic.lab.p2p".to_owned();
        let failure = post(routes(), "/revoke", &RevokeRequest { what })
            .await
            .failure();
        assert_eq!(failure.kind, Kind::Refused);
        assert!(
            failure.message.contains("cannot revoke itself"),
            "{failure}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_that_is_alone_examines_its_connectivity_and_traces_nobody() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.members.clone());
        let found: NetCheckView = get(routes(), "/netcheck").await.value();
        assert!(found.daemon && found.members.is_empty(), "{found:?}");
        let itself = get(routes(), "/trace/attic").await.failure();
        assert_eq!(itself, Failure::usage("attic is this member"));
        let nobody = get(routes(), "/trace/cellar").await.failure();
        assert_eq!(nobody.kind, Kind::NotFound, "{nobody}");
        let member = p2pvm_overlay::MemberId([7; 32]);
        let unheard = get(routes(), &format!("/trace/{member}")).await;
        assert_eq!(unheard.status, StatusCode::CONFLICT);
        let failure = unheard.failure();
        assert!(
            failure.message.contains("no neighbour on the ring"),
            "{failure}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_invite_has_a_use_and_an_end() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.members.clone());
        let invite = InviteRequest {
            uses: 1,
            expires_seconds: 60,
            delegate: false,
            groups: Vec::new(),
            short: true,
        };
        let made: InviteAnswer = post(routes(), "/invite", &invite).await.value();
        let read = p2pvm_overlay::membership::Invite::parse(&made.invite).unwrap();
        assert_eq!(read.id().to_string(), made.id.as_str());
        for useless in [
            InviteRequest {
                uses: 0,
                ..invite.clone()
            },
            InviteRequest {
                expires_seconds: 0,
                ..invite
            },
        ] {
            let failure = post(routes(), "/invite", &useless).await.failure();
            assert_eq!(failure.kind, Kind::Usage, "{failure}");
        }
    }
}
