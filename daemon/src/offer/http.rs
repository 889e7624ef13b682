//! The control API about this host's offer: for this machine's root, and for the dashboard's page,
//! whose readers look and whose operators change.

use super::service::Offers;
use crate::http::{Answer, report::streamed};
use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{OfferChange, OfferOff, OfferView};
use std::sync::Arc;

type Shared = State<Arc<Offers>>;

/// The routes, for this machine's own root.
pub(crate) fn routes(offers: Arc<Offers>) -> Router {
    reading(offers.clone()).merge(changing(offers))
}

/// What changes nothing.
pub(crate) fn reading(offers: Arc<Offers>) -> Router {
    Router::new().route("/offer", get(show)).with_state(offers)
}

/// What changes the offer.
pub(crate) fn changing(offers: Arc<Offers>) -> Router {
    Router::new()
        .route("/offer", post(change))
        .route("/offer/off", post(off))
        .with_state(offers)
}

async fn show(State(offers): Shared) -> Json<OfferView> {
    Json(offers.show())
}

async fn change(State(offers): Shared, Json(r): Json<OfferChange>) -> Answer<OfferView> {
    offers.change(&r).map(Json)
}

async fn off(State(offers): Shared, Json(r): Json<OfferOff>) -> Response {
    streamed(move |reporter| async move { offers.off(r, &reporter).await })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        vms::rights::Asker,
        wiring::alone::{Alone, get, post},
    };
    use axum::Extension;
    use p2pvm_api::{CreateVm, DrainItem, Kind, Line, OfferEnded};
    use p2pvm_overlay::MemberId;

    async fn change(alone: &Alone, change: OfferChange) -> OfferView {
        let routes = routes(alone.services.offers.clone());
        post(routes, "/offer", &change).await.value()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_counts_at_once_and_a_bad_one_is_refused() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.offers.clone());
        let shown: OfferView = get(routes(), "/offer").await.value();
        assert_eq!((shown.host.as_str(), shown.closed), ("attic", None));
        assert_eq!(shown.run, ["*"]);
        let wanted = OfferChange {
            memory_mib: Some(2048),
            disk_gib: Some(3),
            run: Some(vec!["friends".into()]),
            ..OfferChange::default()
        };
        let changed = change(&alone, wanted).await;
        assert!(changed.changed);
        let limits = changed.limits;
        assert_eq!(
            (limits.memory_mib, limits.disk_mib),
            (Some(2048), Some(3072))
        );
        let shown: OfferView = get(routes(), "/offer").await.value();
        assert_eq!(shown, changed);
        let bad = OfferChange {
            hours: Some(vec!["at night".into()]),
            ..OfferChange::default()
        };
        let failure = post(routes(), "/offer", &bad).await.failure();
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.message.contains("18:00-08:00"), "{failure}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_member_makes_no_vm_where_nothing_is_offered_to_it() {
        let alone = Alone::start().await;
        let vms = |asker: Asker| {
            let routes = crate::vms::http::routes(alone.services.vms.clone());
            routes.layer(Extension(asker))
        };
        let new = CreateVm {
            name: "new".into(),
            image: alone.layout.root_key().display().to_string(),
            cpus: 2,
            memory_mib: 64,
            disk_bytes: Some(2 << 30),
            start: false,
            on: None,
            restart: None,
            user: None,
        };
        let said = async |asker: Asker| {
            let answer = post(vms(asker), "/vms", &new).await;
            answer.late_failure().message
        };
        let member = Asker::Member(MemberId([4; 32]));
        let only = |run: &str| OfferChange {
            run: Some(vec![run.to_owned()]),
            reset: true,
            ..OfferChange::default()
        };
        let disk = OfferChange {
            disk_gib: Some(1),
            ..only("*")
        };
        let off = OfferChange {
            off: Some(true),
            ..only("*")
        };
        for (wanted, why) in [
            (only("friends"), "names other members"),
            (disk, "host attic offers 1 GiB of disk"),
            (off, "its offer is off"),
        ] {
            change(&alone, wanted).await;
            let refused = said(member).await;
            assert!(refused.contains(why), "{refused}");
            // The test's hypervisor reads no image: a caller that hears of it was let through.
            let own = said(Asker::Root).await;
            assert!(own.contains("there is no hypervisor"), "{own}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn off_is_reported_kept_and_taken_back() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.offers.clone());
        let lines = post(routes(), "/offer/off", &OfferOff::default())
            .await
            .lines::<OfferEnded, DrainItem>();
        assert_eq!(lines, [Line::Done(OfferEnded::default())]);
        let shown: OfferView = get(routes(), "/offer").await.value();
        assert!(shown.off && shown.closed.is_some());
        let on = OfferChange {
            off: Some(false),
            ..OfferChange::default()
        };
        let shown: OfferView = post(routes(), "/offer", &on).await.value();
        assert!(!shown.off && shown.closed.is_none());
        // The task starts what waited: the offer was opened by the change, not by its own look.
        assert_eq!(alone.services.offers.due(), (true, false));
        assert_eq!(alone.services.offers.due(), (false, false));
    }
}
