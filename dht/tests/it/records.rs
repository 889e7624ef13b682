//! Records over several members: create, renew, replace, delete, and what replicas do when members
//! die, join or are cut off.

use crate::net::{World, key, owner};
use p2pvm_dht::{RecordError, Records, Store};
use std::time::Duration;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
const ROUND_TRIP: Duration = Duration::from_millis(40);

#[tokio::test(start_paused = true)]
async fn a_network_of_one_member_holds_records() {
    let world = World::new(1, 1);
    let dht = world.dht(0);
    let made = dht
        .create(&owner(1), key(1), b"a".to_vec(), HOUR)
        .await
        .unwrap();
    assert_eq!(dht.get(key(1)).await, Ok(Some(made.clone())));
    assert!(matches!(
        dht.create(&owner(2), key(1), b"b".to_vec(), HOUR).await,
        Err(RecordError::Exists(r)) if r.owner == made.owner
    ));
    assert_eq!(dht.get(key(2)).await, Ok(None));
}

/// A create with one of five replicas dead, a put and a get with two.
#[tokio::test(start_paused = true)]
async fn one_round_trip_suffices_with_replicas_dead() {
    let mut world = World::new(2, 5);
    world.fixed = true;
    (0..5).for_each(|i| world.restart(i));
    world.kill(4);
    let dht = world.dht(0);
    let began = Instant::now();
    let made = dht
        .create(&owner(1), key(1), b"a".to_vec(), HOUR)
        .await
        .unwrap();
    assert_eq!(began.elapsed(), ROUND_TRIP);
    world.kill(3);
    let put = dht
        .put(&owner(1), key(1), 1 << 32, b"b".to_vec(), HOUR)
        .await
        .unwrap();
    assert_eq!(began.elapsed(), 2 * ROUND_TRIP);
    assert!(put.version > made.version);
    assert_eq!(world.dht(1).get(key(1)).await, Ok(Some(put)));
    assert_eq!(began.elapsed(), 3 * ROUND_TRIP);
}

#[tokio::test(start_paused = true)]
async fn a_minority_answers_no_quorum() {
    let mut world = World::new(3, 5);
    world.fixed = true;
    (0..5).for_each(|i| world.restart(i));
    (2..5).for_each(|i| world.kill(i));
    let refused = Err(RecordError::NoQuorum {
        answered: 2,
        asked: 5,
    });
    assert_eq!(
        world.dht(0).create(&owner(1), key(1), vec![], HOUR).await,
        refused
    );
    assert_eq!(
        world.dht(0).get(key(1)).await,
        Err(RecordError::NoQuorum {
            answered: 2,
            asked: 5
        })
    );
}

#[tokio::test(start_paused = true)]
async fn only_the_owner_replaces_and_only_with_a_newer_version() {
    let world = World::new(4, 6);
    let dht = world.dht(0);
    dht.create(&owner(1), key(1), b"a".to_vec(), HOUR)
        .await
        .unwrap();
    let version = (1 << 32) + 5;
    let newest = dht
        .put(&owner(1), key(1), version, b"b".to_vec(), HOUR)
        .await
        .unwrap();
    assert!(matches!(
        dht.put(&owner(2), key(1), u64::MAX, vec![], HOUR).await,
        Err(RecordError::Exists(_))
    ));
    assert_eq!(
        dht.put(&owner(1), key(1), version, b"c".to_vec(), HOUR)
            .await,
        Err(RecordError::Stale(version))
    );
    assert_eq!(
        dht.put(&owner(1), key(1), version - 1, b"c".to_vec(), HOUR)
            .await,
        Err(RecordError::Stale(version))
    );
    assert_eq!(
        dht.put(&owner(1), key(1), version, b"b".to_vec(), HOUR)
            .await,
        Ok(newest.clone()),
        "the same again is no conflict"
    );
    assert_eq!(world.dht(5).get(key(1)).await, Ok(Some(newest)));
    let large = vec![0; p2pvm_dht::record::MAX_VALUE_BYTES + 1];
    assert_eq!(
        dht.put(&owner(1), key(2), 1, large, HOUR).await,
        Err(RecordError::TooLarge(
            p2pvm_dht::record::MAX_VALUE_BYTES + 1
        ))
    );
    let largest = vec![0; p2pvm_dht::record::MAX_VALUE_BYTES];
    assert!(dht.put(&owner(1), key(2), 1, largest, HOUR).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_owner_creating_again_renews_and_after_expiry_the_key_is_free() {
    let world = World::new(5, 6);
    let dht = world.dht(0);
    let ttl = Duration::from_secs(60);
    let first = dht
        .create(&owner(1), key(1), b"a".to_vec(), ttl)
        .await
        .unwrap();
    let at_once = dht
        .create(&owner(1), key(1), b"b".to_vec(), ttl)
        .await
        .unwrap();
    assert!(at_once.version > first.version);
    tokio::time::sleep(Duration::from_secs(40)).await;
    dht.create(&owner(1), key(1), b"c".to_vec(), ttl)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(dht.get(key(1)).await.unwrap().is_some(), "renewed");
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(dht.get(key(1)).await, Ok(None));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(
        world
            .dht(1)
            .create(&owner(2), key(1), b"d".to_vec(), ttl)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_deleted_record_stays_deleted_though_a_replica_missed_it() {
    let mut world = World::new(6, 5);
    world.fixed = true;
    (0..5).for_each(|i| world.restart(i));
    world
        .dht(0)
        .create(&owner(1), key(1), b"a".to_vec(), HOUR)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.kill(4);
    assert!(matches!(
        world.dht(0).delete(&owner(2), key(1)).await,
        Err(RecordError::Exists(_))
    ));
    world.dht(0).delete(&owner(1), key(1)).await.unwrap();
    world.restart(4);
    world.dht(4).membership_changed();
    for i in 0..5 {
        assert_eq!(world.dht(i).get(key(1)).await, Ok(None));
    }
    let made = world
        .dht(4)
        .create(&owner(2), key(1), b"b".to_vec(), HOUR)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    for i in 0..5 {
        assert_eq!(world.dht(i).get(key(1)).await, Ok(Some(made.clone())));
    }
    assert!(
        world
            .dht(0)
            .create(&owner(1), key(1), b"c".to_vec(), HOUR)
            .await
            .is_err()
    );
    world.dht(1).delete(&owner(2), key(1)).await.unwrap();
    assert!(
        world
            .dht(0)
            .create(&owner(1), key(1), b"c".to_vec(), HOUR)
            .await
            .is_ok(),
        "the first owner may come back"
    );
}

#[tokio::test(start_paused = true)]
async fn records_survive_the_loss_of_all_their_replicas_one_by_one() {
    let mut world = World::new(7, 5);
    let made = world
        .dht(0)
        .create(&owner(1), key(1), b"a".to_vec(), HOUR * 24)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for old in 0..5 {
        world.join();
        world.kill(old);
        world.churned();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    for i in 5..10 {
        assert_eq!(world.dht(i).get(key(1)).await, Ok(Some(made.clone())));
        assert!(
            !world.nodes[i].store.scan(None, 9).unwrap().is_empty(),
            "every new replica holds it"
        );
    }
}

/// Far: other members are nearer to the key, and they hold it.
#[tokio::test(start_paused = true)]
async fn a_replica_refills_a_lost_disk_and_drops_records_far_from_it() {
    let mut world = World::new(8, 5);
    for n in 0..20 {
        world
            .dht(0)
            .create(&owner(1), key(n), vec![n], HOUR * 24)
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.nodes[2].store.wipe();
    tokio::time::sleep(Duration::from_secs(31 * 60)).await;
    assert_eq!(
        world.nodes[2].store.scan(None, 99).unwrap().len(),
        20,
        "found by the half-hourly comparison"
    );
    for _ in 0..5 {
        world.join();
    }
    world.churned();
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    let held: usize = world
        .nodes
        .iter()
        .map(|n| n.store.scan(None, 99).unwrap().len())
        .sum();
    assert_eq!(held, 20 * 5, "five replicas each, no more");
}

#[tokio::test(start_paused = true)]
async fn two_owners_made_by_a_partition_become_the_same_one_everywhere() {
    let world = World::new(9, 6);
    let cut = |cut| (0..3).for_each(|a| (3..6).for_each(|b| world.cut(a, b, cut)));
    cut(true);
    let here = world
        .dht(0)
        .create(&owner(1), key(1), b"here".to_vec(), HOUR)
        .await
        .unwrap();
    let there = world
        .dht(5)
        .create(&owner(2), key(1), b"there".to_vec(), HOUR)
        .await
        .unwrap();
    cut(false);
    world.churned();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let winner = world.dht(0).get(key(1)).await.unwrap().unwrap();
    assert!(winner == here || winner == there);
    for i in 0..6 {
        assert_eq!(
            world.dht(i).get(key(1)).await,
            Ok(Some(winner.clone())),
            "member {i}"
        );
    }
    let loser = if winner.owner == owner(1).public() {
        owner(2)
    } else {
        owner(1)
    };
    assert!(
        matches!(
            world.dht(0).create(&loser, key(1), vec![], HOUR).await,
            Err(RecordError::Exists(_))
        ),
        "the loser's renewal fails"
    );
}

#[tokio::test(start_paused = true)]
async fn of_many_concurrent_creators_exactly_one_succeeds() {
    for seed in 0..40 {
        let world = World::new(seed, 3 + seed as usize % 4);
        let n = world.nodes.len();
        let creators = (0..8u8).map(|i| {
            let dht = world.dht(i as usize % n);
            async move { dht.create(&owner(i + 1), key(1), vec![i], HOUR).await }
        });
        let results = futures::future::join_all(creators).await;
        let winners: Vec<_> = results.iter().filter_map(|r| r.as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "seed {seed}: {results:?}");
        assert!(
            results
                .iter()
                .all(|r| matches!(r, Ok(_) | Err(RecordError::Exists(_)))),
            "seed {seed}: {results:?}"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            world.dht(0).get(key(1)).await.as_ref(),
            Ok(&Some(winners[0].clone())),
            "seed {seed}"
        );
    }
}
