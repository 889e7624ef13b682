//! Keeps a port mapping on the router as long as this node stands behind one, and takes it back at
//! the end.

use super::{Shared, message::NatKind, nat::is_private};
use crate::portmap::{self, Mapping};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Where there was no router to ask, or it would not, it is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// A mapping that is held is asked for again this often, long before it ends. Reason: a router that
/// starts anew has forgotten it and tells nobody (RFC 6886 §3.7, RFC 6887 §8.5); the question costs
/// some packets in the LAN.
const REASSURE: Duration = Duration::from_secs(40);
/// While it is not known whether there is a NAT.
const UNKNOWN: Duration = Duration::from_secs(5);

/// Whether others can use a mapping: its outside address is public and, where others have seen
/// ours, the same. A home router behind a carrier's NAT maps ports of an address that nobody
/// reaches.
fn is_of_use(shared: &Shared, mapping: &Mapping, reflexive: Option<IpAddr>) -> bool {
    let outside = mapping.external().ip();
    !is_private(&outside)
        && !shared.plane.is_inside_tunnel(&outside)
        && reflexive.is_none_or(|seen| seen == outside)
}

/// Whether there is a NAT, or likely one: as long as no member has said what it sees, a machine
/// with private addresses only asks too. Otherwise two members behind routers, with nobody in
/// between, would never see each other's packets and so never learn.
fn wants(shared: &Shared, nat: NatKind) -> bool {
    match nat {
        NatKind::Open => false,
        NatKind::Unknown => shared.local_is_private(),
        _ => true,
    }
}

/// Keeps a mapping while there is a NAT.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut held: Option<Mapping> = None;
    loop {
        let (nat, reflexive) = {
            let state = shared.state();
            (state.nat, state.reflexive.map(|r| r.ip()))
        };
        let wanted = wants(&shared, nat);
        if wanted {
            let local: Vec<IpAddr> = shared.plane.local_addresses();
            // Nothing that was mapped for an address which we no longer have is renewed.
            let renewed = match held.take() {
                Some(mapping) if is_of_use(&shared, &mapping, reflexive) => mapping.renew().await,
                _ => None,
            };
            held = match renewed {
                Some(mapping) => Some(mapping),
                None => portmap::map(&local, shared.plane.udp_port()).await,
            };
        }
        let usable = held
            .as_ref()
            .filter(|mapping| wanted && is_of_use(&shared, mapping, reflexive));
        {
            let mut state = shared.state();
            let mapped = usable.map(Mapping::external);
            if state.mapped != mapped {
                tracing::info!(?mapped, protocol = ?usable.map(Mapping::protocol), "port mapping");
            }
            (state.mapped, state.mapped_by) = (mapped, usable.map(Mapping::protocol));
            state.mapped_last = mapped.or(state.mapped_last);
        }
        let pause = match (wanted, &held) {
            (false, _) => UNKNOWN,
            (true, Some(_)) => REASSURE,
            (true, None) => ASK_AGAIN,
        };
        let changed = async {
            // Another outside address needs another mapping; learning tells of every round, so the
            // address itself is looked at.
            loop {
                shared.learned.notified().await;
                let state = shared.state();
                if wants(&shared, state.nat) != wanted
                    || state.reflexive.map(|r| r.ip()) != reflexive
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.learn_again.notified() => {}
            () = changed => {}
            () = shared.closing.notified() => {
                shared.state().mapped = None;
                if let Some(mapping) = held.take() {
                    mapping.release().await;
                }
                shared.closed.notify_one();
                return;
            }
        }
    }
}
