//! Keeps a port mapping on the router as long as this node stands behind one, and takes it back at
//! the end.

use super::{Shared, message::NatKind, state::nat::is_private};
use crate::portmap::{self, Mapping};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// How long before a router is asked again that would not, or was not there.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// How long before a mapping that is held is asked for again, long before it ends. Reason: a router
/// that restarts has forgotten it and tells nobody (RFC 6886 §3.7, RFC 6887 §8.5); the question
/// costs some packets in the LAN.
const REASSURE: Duration = Duration::from_secs(40);
/// How long before it is looked again whether there is a NAT.
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
        NatKind::Unknown => shared.host().is_private(),
        _ => true,
    }
}

/// What is known now: the kind of NAT, and the outside address that others have seen.
fn known(shared: &Shared) -> (NatKind, Option<IpAddr>) {
    let nat = &shared.state().nat;
    (nat.kind, nat.reflexive.map(|seen| seen.ip()))
}

/// Waits until a mapping is wanted that was not, or the other way round, or the outside address is
/// another: that needs another mapping. Learning tells of every round, so what is known is looked
/// at.
async fn changed(shared: &Shared, wanted: bool, reflexive: Option<IpAddr>) {
    loop {
        // Made before the look, which also finds what was learned before.
        let learned = shared.learned.notified();
        let (nat, seen) = known(shared);
        if wants(shared, nat) != wanted || seen != reflexive {
            return;
        }
        learned.await;
    }
}

/// Keeps a mapping while there is a NAT.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let map = |local: Vec<IpAddr>, port| async move { portmap::map(&local, port).await };
    keep_by(shared, map).await;
}

/// As [`keep`], where `map` asks the router for a mapping.
async fn keep_by<F: Future<Output = Option<Mapping>>>(
    shared: Arc<Shared>,
    map: impl Fn(Vec<IpAddr>, u16) -> F,
) {
    let mut held: Option<Mapping> = None;
    loop {
        // Made before the router is asked, so that a call that comes meanwhile is not lost.
        let again = shared.learn_again.notified();
        let (nat, reflexive) = known(&shared);
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
                None => map(local, shared.plane.udp_port()).await,
            };
        }
        let usable = held
            .as_ref()
            .filter(|mapping| wanted && is_of_use(&shared, mapping, reflexive));
        {
            let mut state = shared.state();
            let mapped = usable.map(Mapping::external);
            let nat = &mut state.nat;
            if nat.mapped != mapped {
                tracing::info!(
                    ?mapped,
                    protocol = ?usable.map(Mapping::protocol),
                    "the router's port mapping changed"
                );
            }
            (nat.mapped, nat.mapped_by) = (mapped, usable.map(Mapping::protocol));
            nat.mapped_last = mapped.or(nat.mapped_last);
        }
        let pause = match (wanted, &held) {
            (false, _) => UNKNOWN,
            (true, Some(_)) => REASSURE,
            (true, None) => ASK_AGAIN,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = again => {}
            () = changed(&shared, wanted, reflexive) => {}
            () = shared.closing.notified() => {
                shared.state().nat.mapped = None;
                if let Some(mapping) = held.take() {
                    mapping.release().await;
                }
                shared.closed.notify_one();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connect::ConnectOptions,
        fabric::memory::MemoryNet,
        id::MemberId,
        plane::{Plane, PlaneConfig},
    };
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc;

    const ME: MemberId = MemberId([1; 32]);

    /// The connector of a member behind a NAT.
    fn behind_a_nat() -> Arc<Shared> {
        let config = PlaneConfig {
            me: ME,
            link_secret: [7; 32].into(),
            udp_port: 0,
            device: "none".to_owned(),
            mtu: 1340,
            traffic: false,
            network: "lab".to_owned(),
            control_port: 0,
        };
        let plane = Plane::start_idle(config, mpsc::channel(8).0).unwrap();
        let fabric = MemoryNet::new(Duration::ZERO).add(ME);
        let shared = Shared::new(plane, fabric, ConnectOptions::default(), None);
        shared.state().nat.kind = NatKind::Cone;
        Arc::new(shared)
    }

    /// Keeps a mapping on a router that gives none, and has `meanwhile` happen while it is asked
    /// the first time. Returns how often it was asked within a second.
    async fn asked_within_a_second(meanwhile: impl Fn(&Shared)) -> u32 {
        let (shared, asked) = (behind_a_nat(), AtomicU32::new(0));
        let map = |_, _| {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            if first {
                meanwhile(&shared);
            }
            std::future::ready(None)
        };
        let keeping = keep_by(shared.clone(), map);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), keeping)
                .await
                .is_err()
        );
        asked.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_moves_during_a_mapping_asks_again() {
        assert_eq!(asked_within_a_second(|_| ()).await, 1);
        let moved = |shared: &Shared| shared.learn_again.notify_waiters();
        assert_eq!(asked_within_a_second(moved).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn another_outside_address_learned_while_the_router_is_asked_is_not_missed() {
        let seen = |shared: &Shared| {
            shared.state().nat.reflexive = Some(([198, 51, 100, 7], 4002).into());
            shared.learned.notify_waiters();
        };
        assert_eq!(asked_within_a_second(seen).await, 2);
    }
}
