//! Two owners of one key: what a replica does when a member claims, for another owner, a key that
//! the replica holds.
//!
//! A claim alone displaces nothing, or any member could take any key with one message. The replica
//! asks the members closest to the key, as its own lookup finds them, and follows their majority,
//! or the coin of [`prefers`] if they are split evenly. So all replicas come to the same owner
//! after a partition, and liars change nothing while they are fewer than half.

use crate::{
    cell::{Cell, prefers},
    peers::Peers,
    wire::{Reply, Request},
};
use p2pvm_overlay::{RingAddr, chain};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// How long to wait between two rounds of asking for the owner of a key.
/// Reason: a flood of claims costs at most 20 × k requests a second.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn run(peers: Peers, claimed: Arc<Notify>) {
    loop {
        claimed.notified().await;
        while let Some(key) = peers.local.with(|replica, _| replica.next_claim()).await {
            decide(&peers, key).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn decide(peers: &Peers, key: RingAddr) {
    let Ok(replicas) = peers.replicas(key).await else {
        return;
    };
    let mut answers = peers.ask(&replicas, Request::Read(key));
    let mut cells: Vec<Cell> = Vec::new();
    while let Some((_, reply)) = answers.recv().await {
        if let Some(Reply::Holds(cell)) = reply
            && cell.is_authentic(&key)
        {
            cells.push(cell);
        }
    }
    let Some(winner) = verdict(&key, &cells, replicas.len()) else {
        return;
    };
    let adopted = peers
        .local
        .with(move |replica, now| replica.adopt(now, key, winner))
        .await;
    if let Err(e) = adopted {
        tracing::error!(error = %chain(&e), "cannot store what most replicas hold");
    }
}

/// The cell of the owner that most of the `asked` replicas hold: more than half of them, or one of
/// two halves and the coin's choice.
fn verdict(key: &RingAddr, cells: &[Cell], asked: usize) -> Option<Cell> {
    let mut holders: BTreeMap<[u8; 32], (usize, Cell)> = BTreeMap::new();
    let mut graves = Cell::default();
    cells.iter().for_each(|c| {
        graves.merge(Cell {
            graves: c.graves.clone(),
            ..Cell::default()
        })
    });
    for cell in cells {
        let Some(record) = cell.record.as_ref().filter(|r| !graves.buries(r)) else {
            continue;
        };
        let (count, merged) = holders.entry(record.owner).or_default();
        *count += 1;
        merged.merge(Cell {
            graves: Vec::new(),
            ..cell.clone()
        });
    }
    let first = holders.iter().max_by_key(|(owner, (count, _))| {
        let coin = holders
            .keys()
            .all(|other| other == *owner || prefers(key, owner, other));
        (*count, coin)
    });
    first
        .filter(|(_, (count, _))| 2 * count > asked || (2 * count == asked && holders.len() > 1))
        .map(|(_, (_, cell))| cell.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use p2pvm_overlay::{UnixTime, identity::KeyPair};

    fn held(owner: u8) -> Cell {
        Cell::of(
            Record::sign(
                &KeyPair::from_seed(&[owner; 32]),
                RingAddr([0; 32]),
                1,
                UnixTime(100),
                Some(vec![owner]),
            ),
            true,
        )
    }

    #[test]
    fn the_majority_of_all_asked_decides_and_the_coin_between_halves() {
        let key = RingAddr([0; 32]);
        assert_eq!(
            verdict(&key, &[held(1), held(1), held(1), held(2), held(2)], 5),
            Some(held(1))
        );
        assert_eq!(
            verdict(&key, &[held(1), held(1), held(2), held(2)], 5),
            None,
            "one silent: no owner has a majority"
        );
        assert_eq!(
            verdict(&key, &[held(2), held(2), Cell::default()], 5),
            None,
            "two liars of five decide nothing"
        );
        let halves = verdict(&key, &[held(1), held(2)], 2).unwrap();
        assert_eq!(verdict(&key, &[held(2), held(1)], 2), Some(halves));
        assert_eq!(verdict(&key, &[], 0), None);
    }
}
