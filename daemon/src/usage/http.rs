//! The control API about use: for this machine's root only.

use super::service::Accounting;
use axum::{Json, Router, extract::State, routing::post};
use p2pvm_api::{UsageRequest, UsageView};
use std::sync::Arc;

pub(crate) fn routes(accounts: Arc<Accounting>) -> Router {
    Router::new()
        .route("/usage", post(show))
        .with_state(accounts)
}

async fn show(
    State(accounts): State<Arc<Accounting>>,
    Json(request): Json<UsageRequest>,
) -> Json<UsageView> {
    Json(accounts.show(&request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        usage::meter::Amount,
        wiring::alone::{Alone, post},
    };
    use p2pvm_api::{ReceiptState, UsageBy, UsageRow};
    use p2pvm_authority::{Size, Usage};
    use p2pvm_overlay::{MemberId, UnixTime, VmId};

    /// This member's VM 1, the VMs 2 and 3 of another member, and the replicas of a third.
    fn note(accounts: &Accounting) {
        let (other, third) = (MemberId([2; 32]), MemberId([3; 32]));
        let used = |owner, vm: Option<u8>| Amount {
            owner,
            vm: vm.map(|vm| (VmId([vm; 32]), Size::default())),
            used: Usage {
                cpu_ms: 1500,
                kept_mib_s: 1024 * 3600,
                ..Usage::default()
            },
        };
        let me = accounts.parts.me();
        let amounts = [
            used(me, Some(1)),
            used(other, Some(2)),
            used(other, Some(3)),
            used(third, None),
        ];
        let now = UnixTime::now();
        let mut state = accounts.desk.state();
        state.ledger.note(me, (now, 10), &amounts);
        let here = [(VmId([2; 32]), (other, "web".to_owned()))];
        state.ledger.note_here(&here.into());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_used_here_is_shown_by_owner_host_and_vm() {
        let alone = Alone::start().await;
        let accounts = alone.services.usage.clone();
        note(&accounts);
        let ask = async |by, here| {
            let request = UsageRequest {
                by,
                here,
                mine: true,
                seconds: 3600,
            };
            let routes = routes(accounts.clone());
            post(routes, "/usage", &request).await.value::<UsageView>()
        };
        let other = MemberId([2; 32]).short();
        let of = |rows: &[UsageRow]| {
            let found = rows.iter().find(|row| row.owner.as_ref() == Some(&other));
            found.cloned().unwrap()
        };
        let view = ask(None, true).await;
        assert_eq!((view.here.len(), view.mine.len()), (3, 0));
        let row = of(&view.here);
        assert_eq!((row.cpu_seconds, row.replica_gib_hours), (3.0, 2.0));
        assert_eq!((row.host.as_deref(), row.vm), (Some("attic"), None));
        assert_eq!(row.receipts.unwrap().state, ReceiptState::Open);
        let state = |row: &UsageRow| row.receipts.clone().unwrap_or_default().state;
        let own = view.here.iter().find(|row| state(row) == ReceiptState::Own);
        assert_eq!(own.unwrap().owner.as_deref(), Some("attic"));
        let by_vm = ask(Some(UsageBy::Vm), true).await.here;
        let mut vms: Vec<_> = by_vm.iter().filter_map(|row| row.vm.as_deref()).collect();
        vms.sort_unstable();
        assert_eq!(vms.len(), 4);
        assert!(vms.contains(&"web") && vms.contains(&"replicas"), "{vms:?}");
        assert_eq!(ask(Some(UsageBy::Owner), true).await.here.len(), 3);
        let by_host = ask(Some(UsageBy::Host), true).await.here;
        assert_eq!((by_host.len(), by_host[0].cpu_seconds), (1, 6.0));
        assert_eq!((&by_host[0].owner, &by_host[0].receipts), (&None, &None));
        assert_eq!(ask(None, false).await.here, []);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_used_outlives_the_daemon() {
        let alone = Alone::start().await;
        note(&alone.services.usage);
        alone.services.usage.close().await;
        let kept = std::fs::read(alone.layout.usage().join("here")).unwrap();
        let again = Alone::after(|layout| {
            std::fs::create_dir(layout.usage()).unwrap();
            std::fs::write(layout.usage().join("here"), kept).unwrap();
        })
        .await;
        let request = UsageRequest {
            by: Some(UsageBy::Host),
            here: true,
            mine: false,
            seconds: 3600,
        };
        let view = again.services.usage.show(&request);
        assert_eq!(view.here[0].cpu_seconds, 6.0);
    }
}
