//! Finding out what stands between this node and the others: STUN against members, port mapping by UPnP.

use super::{
    Shared,
    dial::ask,
    message::{Answer, NatKind, Request},
};
use crate::{id::MemberId, portmap};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Members asked in one round: two different ones tell a cone from a symmetric NAT, a third makes up for one that is NATted.
const SERVERS: usize = 3;
/// What a member said of itself is believed this long here.
const FRESH: Duration = Duration::from_secs(600);
/// One STUN exchange.
const STUN_LIMIT: Duration = Duration::from_millis(1200);
/// With an address of our own that others see, things change rarely.
const WHEN_OPEN: Duration = Duration::from_secs(300);
/// Behind a NAT the mapping must be kept alive (many drop one after 30 s).
const WHEN_NATTED: Duration = Duration::from_secs(20);
/// UDP that did not get through may do so later: a laptop moves.
const WHEN_BLOCKED: Duration = Duration::from_secs(60);
/// Rounds that follow each other quickly until two members have answered.
const HASTY_ROUNDS: u32 = 5;
/// Rounds with members to ask and no answer after which UDP counts as blocked.
const SILENT_ROUNDS: u32 = 2;

/// What the answers of one round mean. `seen`: the server asked and our address as it saw it.
pub(crate) fn judge(seen: &[(SocketAddr, SocketAddr)], local: &[IpAddr], port: u16) -> (NatKind, Option<SocketAddr>) {
    let is_ours = |mapped: &SocketAddr| mapped.port() == port && local.contains(&mapped.ip());
    // Someone in our own network sees our own address whatever stands at its border: the others decide.
    let outside: Vec<_> = seen.iter().filter(|(_, mapped)| !is_ours(mapped)).collect();
    let Some((server, mapped)) = outside.first() else {
        return (if seen.is_empty() { NatKind::Unknown } else { NatKind::Open }, None);
    };
    let differs = outside.iter().any(|(other, m)| other.ip() != server.ip() && m.ip() == mapped.ip() && m.port() != mapped.port());
    (if differs { NatKind::Symmetric } else { NatKind::Cone }, Some(*mapped))
}

/// Members' addresses worth asking, a few per member, members known to stand open first.
async fn servers(shared: &Arc<Shared>) -> Vec<Vec<SocketAddr>> {
    let connected = shared.fabric.connected();
    let now = Instant::now();
    let unknown: Vec<MemberId> = {
        let state = shared.state();
        let fresh = |m: &MemberId| {
            state.known.get(m).is_some_and(|(at, w)| now.saturating_duration_since(*at) < FRESH && w.nat != NatKind::Unknown)
        };
        connected.iter().copied().filter(|m| !fresh(m)).take(SERVERS).collect()
    };
    let mut asking = JoinSet::new();
    for member in unknown {
        let shared = shared.clone();
        asking.spawn(async move {
            if let Ok(Answer::Here(whereabouts)) = ask(&shared, member, Request::Where, Duration::from_secs(3)).await {
                shared.remember(member, &whereabouts);
            }
        });
    }
    while asking.join_next().await.is_some() {}
    let state = shared.state();
    let mut known: Vec<_> = connected.iter().filter_map(|m| state.known.get(m)).map(|(_, w)| w).collect();
    known.sort_by_key(|w| match w.nat {
        NatKind::Open => 0,
        NatKind::Unknown => 1,
        _ => 2,
    });
    known.iter().take(SERVERS).map(|w| w.candidates.iter().map(|c| c.addr).filter(|a| a.is_ipv4()).take(3).collect()).collect()
}

/// One round: how many members were asked, and what they saw.
async fn round(shared: &Arc<Shared>) -> (usize, Vec<(SocketAddr, SocketAddr)>) {
    let servers = servers(shared).await;
    let asked = servers.len();
    let mut asking = JoinSet::new();
    for addresses in servers {
        let shared = shared.clone();
        asking.spawn(async move {
            let mut tries = JoinSet::new();
            for server in addresses {
                let shared = shared.clone();
                tries.spawn(async move { shared.plane.inner().stun(server, STUN_LIMIT).await.map(|mapped| (server, mapped)) });
            }
            while let Some(answer) = tries.join_next().await {
                if let Ok(Some(seen)) = answer {
                    return Some(seen);
                }
            }
            None
        });
    }
    let mut seen = Vec::new();
    while let Some(answer) = asking.join_next().await {
        seen.extend(answer.ok().flatten());
    }
    (asked, seen)
}

/// Keeps the reflexive address and the kind of NAT known.
pub(crate) async fn learn(shared: Arc<Shared>) {
    let (mut silent, mut rounds) = (0, 0u32);
    loop {
        let (asked, seen) = round(&shared).await;
        rounds = rounds.saturating_add(u32::from(asked > 0));
        silent = if asked > 0 && seen.is_empty() { silent + 1 } else { 0 };
        let inner = shared.plane.inner();
        let (mut kind, reflexive) = judge(&seen, &inner.local_addresses.load(), inner.udp.port());
        if silent >= SILENT_ROUNDS {
            kind = NatKind::Blocked;
        }
        let pause = {
            let mut state = shared.state();
            // One member alone cannot tell a symmetric NAT from a cone: what two have shown stands.
            if kind == NatKind::Cone && seen.len() < 2 && state.nat == NatKind::Symmetric {
                kind = NatKind::Symmetric;
            }
            if kind != NatKind::Unknown {
                if state.nat != kind || state.reflexive != reflexive {
                    tracing::info!(?kind, ?reflexive, "what others see of us");
                }
                (state.nat, state.reflexive) = (kind, reflexive);
            }
            match kind {
                NatKind::Open => WHEN_OPEN,
                NatKind::Blocked => WHEN_BLOCKED,
                // Alone, it costs nothing to look; with one member only, a second that could tell more may never come.
                _ if asked == 0 => Duration::from_millis(200),
                _ if seen.len() < 2 && rounds < HASTY_ROUNDS => Duration::from_secs(2),
                _ => WHEN_NATTED,
            }
        };
        shared.learned.notify_waiters();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.learn_again.notified() => (silent, rounds) = (0, 0),
        }
    }
}

/// Whether an address is of the kind that NATs hide (RFC 1918, RFC 6598, RFC 4193).
fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Waits, right after the start, until the first round told something: behind a NAT, an address learned now saves a failed
/// try. A node with a public address of its own does not wait.
pub(crate) async fn settle(shared: &Shared, limit: Duration) {
    let told = shared.learned.notified();
    let hidden = shared.plane.inner().local_addresses.load().iter().all(is_private);
    if hidden && shared.options.stun && shared.state().nat == NatKind::Unknown {
        let _ = tokio::time::timeout(limit, told).await;
    }
}

/// Keeps a port mapping on the router, if it gives one and we stand behind it.
pub(crate) async fn map_port(shared: Arc<Shared>) {
    loop {
        let wanted = !matches!(shared.state().nat, NatKind::Open | NatKind::Unknown);
        if wanted {
            let inner = shared.plane.inner();
            let local: Vec<IpAddr> = inner.local_addresses.load().to_vec();
            let mapped = portmap::map(&local, inner.udp.port()).await;
            shared.state().mapped = mapped;
        }
        tokio::select! {
            () = tokio::time::sleep(if wanted { portmap::LEASE / 2 } else { Duration::from_secs(5) }) => {}
            () = shared.learn_again.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_kind_of_nat_shows_in_what_two_members_see() {
        let local = ["192.168.1.5".parse().unwrap()];
        let (s1, s2) = (at("198.18.0.1:7"), at("198.18.0.2:7"));
        let (m1, m2) = (at("198.18.9.9:4000"), at("198.18.9.9:4001"));
        assert_eq!(judge(&[], &local, 7).0, NatKind::Unknown);
        assert_eq!(judge(&[(s1, at("192.168.1.5:7"))], &local, 7), (NatKind::Open, None));
        assert_eq!(judge(&[(s1, m1), (s2, m1)], &local, 7), (NatKind::Cone, Some(m1)));
        assert_eq!(judge(&[(s1, m1), (s2, m2)], &local, 7), (NatKind::Symmetric, Some(m1)));
        let neighbour = at("192.168.1.6:7");
        assert_eq!(judge(&[(neighbour, at("192.168.1.5:7")), (s2, m1)], &local, 7), (NatKind::Cone, Some(m1)));
    }
}
