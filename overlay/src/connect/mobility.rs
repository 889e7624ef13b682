//! Restores links after this host has moved. `plane/path/roam.rs` notices the move and first tries
//! every known path. Then the connector reports the move to the control plane, finds out again how
//! others see this node, and exchanges addresses and a fresh handshake with each member whose link
//! has shown no life since. A link to a member with a public address is back after one round trip;
//! one between two NATs as soon as the control plane is. If only the NAT has changed,
//! [`super::state::watch`] notices.

use super::{
    Shared,
    dial::{self, Reach},
    escape,
    state::watch::{Action, Input, View, Watch},
};
use crate::id::MemberId;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// How long before another path is made to a member whose known paths have not answered.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long before a member is tried again, while the control plane recovers as well.
const RETRY: Duration = Duration::from_millis(400);
/// How long a link is tried. Later it is made again when it is needed.
const LIMIT: Duration = Duration::from_secs(20);
/// How long one exchange with a member may take. Reason: the next may find a new connection.
const MEET_LIMIT: Duration = Duration::from_millis(2000);
/// How long a link may have been idle to be restored. Others are restored when they are needed.
const IN_USE: Duration = Duration::from_secs(150);
/// How many links are restored, the most recently used first, and how many at a time.
const MAX_LINKS: usize = 64;
const AT_ONCE: usize = 8;
/// How long before the links are checked again for unanswered data.
const GLANCE_EVERY: Duration = Duration::from_millis(500);
/// How long one look at the NAT's outside address may take.
const LOOK_LIMIT: Duration = Duration::from_millis(1200);

/// Watches the address that others see, until the connector ends.
pub(crate) async fn watch_mapping(shared: Arc<Shared>) {
    let mut watch = Watch::new(Instant::now());
    let mut next = Input::Tick { doubt: false };
    loop {
        tell(&shared, &mut watch, next);
        next = loop {
            match watch.poll() {
                Some(Action::Look { server, second }) => {
                    break Input::Seen(look(&shared, server, second).await);
                }
                Some(Action::LookFromSecondPort) => {
                    break Input::SecondPort(escape::from_silence(&shared).await);
                }
                Some(Action::SurveyAgain) => shared.learn_again.notify_waiters(),
                None => break glance(&shared, &watch).await,
            }
        };
    }
}

fn tell(shared: &Arc<Shared>, watch: &mut Watch, input: Input) {
    let view = View {
        connected: &shared.fabric.connected(),
        is_unanswered: shared.plane.has_unanswered_direct_link(),
    };
    watch.handle(Instant::now(), &mut shared.state(), &view, input);
    shared.act();
}

/// Waits until the next look may be due.
async fn glance(shared: &Shared, watch: &Watch) -> Input {
    let until = watch.due().min(Instant::now() + GLANCE_EVERY);
    let told = tokio::time::timeout_at(until.into(), shared.doubted.notified()).await;
    Input::Tick {
        doubt: told.is_ok() || shared.plane.has_unanswered_direct_link(),
    }
}

/// The address at which the member at `server` sees the port that we send from.
async fn look(shared: &Shared, server: SocketAddr, second: bool) -> Option<SocketAddr> {
    if second {
        shared.plane.stun_from_second_port(server, LOOK_LIMIT).await
    } else {
        shared.plane.stun(server, LOOK_LIMIT).await
    }
}

/// Acts on every change until the connector ends.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        let (since, why) = shared.plane.next_move().await;
        tracing::info!(why, "this node finds all its paths again");
        shared.handle(super::state::Input::Moved);
        shared.learn_again.notify_waiters();
        shared.fabric.roamed();
        // Another change restarts this; the tasks of the first change notice that.
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
                // After another move that move's task restores the links.
                && !shared.plane.has_moved_since(since)
            {
                let Ok(turn) = room.acquire().await else {
                    return;
                };
                let met = tokio::time::timeout(MEET_LIMIT, dial::meet(&shared, member, None)).await;
                drop(turn);
                if matches!(met, Ok(Ok(_))) {
                    // Direct paths are being tried; if none answers, relays and streams are.
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
                "a link was found again after a move"
            );
        });
    }
    while tasks.join_next().await.is_some() {}
}
