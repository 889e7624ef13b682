//! The control API about events.

use super::follow;
use crate::{
    http::{Answer, report::streamed},
    parts::Parts,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{EventsPage, EventsWanted};
use std::sync::Arc;

/// Reading; following is for root only, since each reader holds a task.
pub(crate) fn routes(parts: Arc<Parts>) -> Router {
    Router::new().route("/events", get(list)).with_state(parts)
}

/// The same as a stream.
pub(crate) fn streams(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/events/follow", post(stream))
        .with_state(parts)
}

async fn list(
    State(parts): State<Arc<Parts>>,
    Query(wanted): Query<EventsWanted>,
) -> Answer<EventsPage> {
    let host = parts.certificate.name();
    parts.events.page(&wanted, host).await.map(Json)
}

async fn stream(State(parts): State<Arc<Parts>>, Json(wanted): Json<EventsWanted>) -> Response {
    streamed(move |reporter| follow::follow(parts, wanted, reporter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get};
    use p2pvm_api::EventKind;
    use p2pvm_authority::Subject;
    use p2pvm_overlay::VmId;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_recorded_is_listed_and_proved() {
        let alone = Alone::start().await;
        let parts = alone.services.node.parts.clone();
        let vm = VmId([7; 32]);
        for (kind, text) in [
            (EventKind::GuestCrashed, "It crashed."),
            (EventKind::GuestRestarted, "It runs again."),
        ] {
            let subject = Subject::Vm(vm, "web".into());
            let fields = [("attempt", "1".to_owned())];
            parts.events.record(kind, subject, &fields, text);
        }
        let text = "What this host offers was changed.";
        parts
            .events
            .record(EventKind::OfferChanged, Subject::Host, &[], text);
        parts.events.close().await;
        let ask = |query| {
            let routes = alone.services.routes();
            async move { get(routes, query).await.value::<EventsPage>() }
        };
        let page = ask("/v1/events?vm=web&limit=1&after=0").await;
        assert_eq!((page.events[0].seq, page.next), (1, Some(1)));
        assert_eq!(page.events[0].fields["attempt"], "1");
        let page = ask("/v1/events?vm=web&after=1").await;
        assert_eq!((page.events.len(), page.next), (1, None));
        assert_eq!(page.events[0].kind, EventKind::GuestRestarted);
        assert_eq!(ask("/events?kind=offer-changed").await.events.len(), 1);
        assert_eq!(ask("/events?limit=2").await.events.len(), 2);
        let proof = parts.events.proof(&parts.certificate, vm).await.unwrap();
        let proved = proof.check().unwrap();
        assert_eq!(
            (proved[0].name.as_str(), proved[0].events.len()),
            ("attic", 2)
        );
    }
}
