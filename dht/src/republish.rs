//! Keeps records where they are looked for: on the members closest to them now. When members come
//! or go, the two nearest old replicas of a key tell the new ones; every half hour all replicas of
//! a key are compared by a hash each, so that a quiet network stays quiet (40 bytes a record and
//! replica).

use crate::{
    cell::Cell,
    limits::ATTEMPT_SECONDS,
    peers::Peers,
    wire::{MAX_COMPARED, Reply, Request},
};
use p2pvm_overlay::{MemberId, RingAddr, chain};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// How long to wait for further changes before records are moved.
/// Reason: members come and go in bursts.
const SETTLING: Duration = Duration::from_secs(1);

/// How many cells are read from the store at a time.
const PAGE: usize = 256;

/// How many old replicas of a key tell the new ones.
/// Reason: two, in case one is behind or dies meanwhile.
const SPEAKERS: usize = 2;

/// The replicas of each local key when it was last looked at.
type Places = HashMap<RingAddr, Vec<MemberId>>;

pub(crate) async fn run(peers: Peers, changed: Arc<Notify>) {
    // Two maps: replicas found by a lookup are compared with those of the previous lookup, and
    // replicas among the connected members with those of the previous change.
    let (mut places, mut looked_up) = (Places::new(), Places::new());
    // The first comparison comes earlier, by a part that differs from member to member, so that
    // they do not all compare at once.
    let part = f64::from(peers.fabric.me().0[0]) / 512.0;
    let mut full_at = Instant::now() + peers.options.republish_every.mul_f64(1.0 - part);
    loop {
        let full = tokio::select! {
            () = tokio::time::sleep_until(full_at) => true,
            () = changed.notified() => {
                tokio::time::sleep(SETTLING).await;
                false
            }
        };
        if full {
            full_at = Instant::now() + peers.options.republish_every;
        }
        pass(
            &peers,
            if full { &mut looked_up } else { &mut places },
            full,
        )
        .await;
    }
}

/// Visits every local cell once and sends it to the members that may lack it.
async fn pass(peers: &Peers, places: &mut Places, full: bool) {
    let (mut after, mut seen) = (None, HashSet::new());
    loop {
        let page = peers
            .local
            .with(move |replica, now| replica.page(now, after, PAGE, ATTEMPT_SECONDS))
            .await;
        let page = match page {
            Ok(page) => page,
            Err(e) => {
                tracing::error!(error = %chain(&e), "cannot republish");
                return;
            }
        };
        let mut plan: BTreeMap<MemberId, Vec<(RingAddr, Cell)>> = BTreeMap::new();
        let mut leaving = Vec::new();
        for (key, cell) in page.cells {
            // After a change of members the connected ones suffice; only the rare full comparison
            // looks each record up.
            let now_at = match full {
                true => peers.replicas(key).await.ok(),
                false => Some(peers.fabric.nearby(key, peers.options.replicas)),
            };
            let Some(now_at) = now_at else { continue };
            let old = places.insert(key, now_at.clone()).unwrap_or_default();
            seen.insert(key);
            for member in audience(peers.fabric.me(), &old, &now_at, full) {
                plan.entry(member).or_default().push((key, cell.clone()));
            }
            if full && old == now_at && !now_at.contains(&peers.fabric.me()) {
                leaving.push((key, cell, now_at));
            }
        }
        let agreed = bring_up_to_date(peers, plan).await;
        for (key, cell, now_at) in leaving {
            // Others have held it for a whole period and all agree: this node is no replica of it.
            if now_at.iter().all(|member| agreed.contains(&(*member, key))) {
                let dropped = peers
                    .local
                    .with(move |replica, now| replica.hand_over(now, &key, &cell))
                    .await;
                if let Err(e) = dropped {
                    tracing::error!(error = %chain(&e), "cannot drop a record that others hold");
                }
            }
        }
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    places.retain(|key, _| seen.contains(key));
}

/// The members that this node tells of a key. `old` is empty if the key is new to this node, or the
/// node has just started.
fn audience(me: MemberId, old: &[MemberId], now: &[MemberId], full: bool) -> Vec<MemberId> {
    let speaks = !now.contains(&me)
        || old.is_empty()
        || now
            .iter()
            .filter(|m| old.contains(m))
            .take(SPEAKERS)
            .any(|m| *m == me);
    let news = |member: &MemberId| full || !old.contains(member);
    if speaks {
        now.iter()
            .copied()
            .filter(|m| *m != me && news(m))
            .collect()
    } else {
        Vec::new()
    }
}

/// Compares by hash, then exchanges the cells that differ, both ways. Returns which members agree
/// on which keys.
async fn bring_up_to_date(
    peers: &Peers,
    plan: BTreeMap<MemberId, Vec<(RingAddr, Cell)>>,
) -> HashSet<(MemberId, RingAddr)> {
    let each = plan.into_iter().map(|(member, cells)| async move {
        let mut agreed = Vec::new();
        for cells in cells.chunks(MAX_COMPARED) {
            let digests = cells
                .iter()
                .map(|(key, cell)| (*key, cell.digest()))
                .collect();
            let Some(Reply::Differs(differs)) = peers.call(member, Request::Compare(digests)).await
            else {
                return agreed;
            };
            let differs: HashSet<usize> = differs.into_iter().map(usize::from).collect();
            for (index, (key, cell)) in cells.iter().enumerate() {
                if differs.contains(&index) {
                    let Some(Reply::Holds(theirs)) =
                        peers.call(member, Request::Merge(*key, cell.clone())).await
                    else {
                        continue;
                    };
                    if theirs != *cell
                        && peers
                            .local
                            .handle(Request::Merge(*key, theirs))
                            .await
                            .is_err()
                    {
                        continue;
                    }
                }
                agreed.push((member, *key));
            }
        }
        agreed
    });
    futures::future::join_all(each)
        .await
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ids: &[u8]) -> Vec<MemberId> {
        ids.iter().map(|id| MemberId([*id; 32])).collect()
    }

    #[test]
    fn only_the_two_nearest_old_replicas_tell_a_new_one() {
        let (old, now) = (members(&[1, 2, 3, 4, 5]), members(&[9, 1, 2, 3, 4]));
        for me in [1, 2] {
            assert_eq!(
                audience(MemberId([me; 32]), &old, &now, false),
                members(&[9])
            );
        }
        for me in [3, 4] {
            assert_eq!(audience(MemberId([me; 32]), &old, &now, false), []);
        }
        assert_eq!(
            audience(MemberId([5; 32]), &old, &now, false),
            members(&[9]),
            "a former replica hands over"
        );
        assert_eq!(
            audience(MemberId([1; 32]), &old, &old, false),
            [],
            "no change, no message"
        );
    }
}
