//! What the connector does when this host has moved (see `plane/roam.rs`, which notices and has
//! already tried every known way): it tells the control plane, finds out anew how others see it,
//! and exchanges addresses and a fresh handshake with each member whose link has not shown life
//! since. A link to a member with a public address is back after one round trip; one between two
//! NATs as soon as the control plane is.

use super::{
    Shared,
    dial::{self, Reach},
    escape,
    message::NatKind,
    nat::{is_public_own, seems_open},
};
use crate::id::MemberId;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Known ways have answered within this, or another has to be made.
const PATIENCE: Duration = Duration::from_millis(600);
/// Between two tries with one member, while the control plane finds back as well.
const RETRY: Duration = Duration::from_millis(400);
/// A link that did not come back within this is made again when somebody wants it.
const LIMIT: Duration = Duration::from_secs(20);
/// One exchange with a member; the next try may find a new connection.
const MEET_LIMIT: Duration = Duration::from_millis(2000);
/// Links that carried something within this are brought back, the others when they are wanted.
const IN_USE: Duration = Duration::from_secs(150);
/// Links brought back at most, the most recently used first, and how many at a time.
const MAX_LINKS: usize = 64;
const AT_ONCE: usize = 8;
/// A NAT's outside address is looked at this often, some 15 bytes a second both ways together: its
/// mapping stays open, and a change is known before ten seconds have passed.
const LOOK_EVERY: Duration = Duration::from_secs(8);
/// The first look, and one after a look that was not answered, come so soon.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// Where something on a direct link is not answered, or a member makes its link anew, a look is due
/// if the last is so long ago.
const LOOK_IN_DOUBT: Duration = Duration::from_secs(2);
/// Links are looked through for such a doubt this often.
const GLANCE_EVERY: Duration = Duration::from_millis(500);
/// Looks without an answer after which another member is asked.
const MISSES: u32 = 3;
/// One such look.
const LOOK_LIMIT: Duration = Duration::from_millis(1200);

/// Behind a NAT the address that others see can change without this host hearing of it: a provider
/// renumbers, a router starts anew. An open member is asked by STUN, always the same one, so that
/// also a NAT that maps each destination apart shows when it has forgotten us; its mapping towards
/// that member stays open by the way.
pub(crate) async fn watch_mapping(shared: Arc<Shared>) {
    let mut known: Option<(SocketAddr, SocketAddr)> = None;
    let (mut misses, mut aside) = (0, false);
    loop {
        let looked = Instant::now();
        // Without a first look there is nothing to compare with, and where one was not answered
        // something may be changing.
        let pause = if known.is_some() && misses == 0 {
            LOOK_EVERY
        } else {
            FIRST_LOOK
        };
        while looked.elapsed() < pause {
            let doubt = tokio::time::timeout(GLANCE_EVERY, shared.doubted.notified())
                .await
                .is_ok()
                || shared.plane.has_unanswered_direct_link();
            if doubt && known.is_some() {
                tokio::time::sleep(LOOK_IN_DOUBT.saturating_sub(looked.elapsed())).await;
                break;
            }
        }
        let dead = shared.state().first_port_dead;
        if !dead
            && matches!(
                shared.state().nat,
                NatKind::Open | NatKind::Unknown | NatKind::Blocked
            )
        {
            known = None;
            continue;
        }
        if std::mem::replace(&mut aside, shared.state().first_port_dead) != aside {
            known = None;
        }
        let Some(server) = known
            .map(|(server, _)| server)
            .or_else(|| open_member(&shared))
        else {
            continue;
        };
        let seen = look(&shared, server, aside).await;
        // Where data on a direct link is not answered either, the port itself may be what a router
        // has turned into a black hole.
        if seen.is_none()
            && !aside
            && (misses > 0 || shared.plane.has_unanswered_direct_link())
            && escape::from_silence(&shared).await
        {
            continue;
        }
        if let (Some(mapped), Some((_, before))) = (seen, known)
            && mapped != before
            && !same_router(&shared, before, mapped)
        {
            tracing::info!(was = %before, is = %mapped, "others see this host at another address");
            shared.plane.mapping_changed();
        }
        // An answer lost forgets nothing: just then the address may be changing. A member that is
        // gone is replaced.
        misses = if seen.is_some() { 0 } else { misses + 1 };
        if misses == MISSES {
            // Nothing that was found out is sure any more: it is found out anew, and said to be
            // unknown meanwhile.
            let mut state = shared.state();
            (state.nat, state.reflexive, state.found, state.found6) =
                (NatKind::Unknown, None, None, None);
            drop(state);
            shared.learn_again.notify_waiters();
        }
        known = match seen {
            Some(mapped) => Some((server, mapped)),
            None => known.filter(|_| misses < MISSES),
        };
    }
}

/// How the member at `server` sees the port that is written from.
async fn look(shared: &Arc<Shared>, server: SocketAddr, aside: bool) -> Option<SocketAddr> {
    if !aside {
        return shared.plane.stun(server, LOOK_LIMIT).await;
    }
    let seen = shared.plane.stun_from_second_port(server, LOOK_LIMIT).await;
    shared.state().reflexive_aside = seen.map(|mapped| (mapped, Instant::now()));
    seen
}

/// Whether both are one router's: the one the port that it lets through to us, the other what it
/// gives us without that.
fn same_router(shared: &Shared, one: SocketAddr, other: SocketAddr) -> bool {
    let state = shared.state();
    one.ip() == other.ip()
        && [one, other]
            .iter()
            .any(|addr| state.is_let_through(&shared.options, *addr))
}

/// A public IPv4 address at which a connected open member listens.
pub(super) fn open_member(shared: &Shared) -> Option<SocketAddr> {
    let connected = shared.fabric.connected();
    let state = shared.state();
    let open = connected
        .iter()
        .filter_map(|m| state.known.get(m))
        .map(|(_, w)| w)
        .filter(|w| seems_open(w));
    // Its own LAN's, which it tells as well, would be looked for in vain.
    open.flat_map(|w| &w.candidates)
        .find(|c| is_public_own(c) && c.addr.is_ipv4())
        .map(|c| c.addr)
}

/// Acts on every change until the connector ends.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        let (since, why) = shared.plane.next_move().await;
        tracing::info!(why, "finding all links again");
        {
            let mut state = shared.state();
            (state.nat, state.reflexive, state.mapped, state.mapped_by) =
                (NatKind::Unknown, None, None, None);
            (state.nat6, state.found, state.found6, state.helper) =
                (NatKind::Unknown, None, None, None);
            state.retries.clear();
            state.refused.clear();
        }
        shared.come_back_all();
        shared.learn_again.notify_waiters();
        shared.fabric.roamed();
        // A change that follows at once begins this anew; the tasks of the first find it done.
        tokio::spawn(bring_back(shared.clone(), since));
    }
}

async fn bring_back(shared: Arc<Shared>, since: Instant) {
    tokio::time::sleep(PATIENCE).await;
    let links = shared.plane.link_uses(Instant::now()).into_iter();
    let mut links: Vec<(Duration, MemberId)> = links
        .map(|link| (link.idle, link.member))
        .filter(|(idle, _)| *idle < IN_USE)
        .collect();
    links.sort_unstable();
    links.truncate(MAX_LINKS);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (_, member) in links {
        let (shared, room) = (shared.clone(), room.clone());
        tasks.spawn(async move {
            while !shared.plane.has_recovered(member, since)
                && since.elapsed() < LIMIT
                // After another move the task of that move sees to the links.
                && !shared.plane.has_moved_since(since)
            {
                let Ok(turn) = room.acquire().await else {
                    return;
                };
                let met = tokio::time::timeout(MEET_LIMIT, dial::meet(&shared, member, None)).await;
                drop(turn);
                if matches!(met, Ok(Ok(_))) {
                    // Direct ways are being tried; where none answers, relays and streams are.
                    if dial::selected(&shared, member, Reach::Any, PATIENCE)
                        .await
                        .is_none()
                    {
                        let _ = dial::ensure(&shared, member, Reach::Any).await;
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
            tracing::debug!(
                ?member,
                ms = since.elapsed().as_millis() as u64,
                back = shared.plane.has_recovered(member, since),
                "link after a move"
            );
        });
    }
    while tasks.join_next().await.is_some() {}
}
