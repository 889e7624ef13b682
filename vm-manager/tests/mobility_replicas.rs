//! Whether the disk of a running guest is on other members at every moment, and comes back from
//! there.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_snapshot_sync::{ChunkStore, ManifestId};
use p2pvm_vm_manager::{
    Error, Protection, Replica,
    checkpoint::RestoreOptions,
    host::{RunningSide, VmState},
    hypervisor::MigrateOptions,
    vault::Durability,
};
use std::time::Duration;
use tokio::sync::watch;

/// How long between two replicas here.
const EVERY: Duration = Duration::from_secs(60);

/// A lab of `n` members whose member 0 runs "web" and replicates its disk.
async fn lab(n: usize) -> Lab {
    let lab = Lab::new(n).await;
    lab.vm(0, "web").await;
    let protection = Protection {
        replicate_every: Some(EVERY),
        ..Protection::default()
    };
    let host = lab.host(0);
    host.set_protection("web", protection).await.unwrap();
    lab
}

/// What the network's record says, asked of member `i`.
async fn replica(lab: &Lab, i: usize) -> Option<Replica> {
    lab.host(i).record("web").await.unwrap().replica
}

fn has_all(lab: &Lab, i: usize, id: ManifestId) -> bool {
    let store = ChunkStore::open(lab.sites[i].dir.join("chunks")).unwrap();
    store.is_complete(id)
}

#[tokio::test(start_paused = true)]
async fn the_record_names_a_replica_that_all_holders_have() {
    let lab = lab(4).await;
    assert_eq!(replica(&lab, 1).await, None);
    tokio::time::sleep(EVERY / 2).await;
    let first = replica(&lab, 1).await.expect("the first round is over");
    assert_eq!(
        (first.copies(), &first.durability),
        (2, &Durability::Durable)
    );
    let holders = |of: &Replica| -> Vec<usize> {
        let is_holder = |i: &usize| of.providers.contains(&lab.me(*i));
        (0..4).filter(is_holder).collect()
    };
    for i in holders(&first) {
        assert!(has_all(&lab, i, first.checkpoint), "member {i}");
    }
    tokio::time::sleep(EVERY * 2).await;
    let later = replica(&lab, 1).await.unwrap();
    assert!(later.order() > first.order());
    // The one before is kept no longer, and the same members have the new one.
    assert_eq!(holders(&later), holders(&first));
    for i in holders(&first).into_iter().filter(|i| *i > 0) {
        assert_eq!(lab.kept(i).0, 1, "member {i} keeps the newest alone");
    }
    let status = lab.host(0).list().remove(0).replication.unwrap();
    assert!(status.rounds >= 2 && !status.is_late && status.why.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_dead_hosts_vm_comes_back_from_its_newest_replica() {
    let mut lab = lab(3).await;
    tokio::time::sleep(EVERY * 2).await;
    let newest = replica(&lab, 1).await.unwrap();
    lab.power_off(0);
    let progress = watch::Sender::default();
    let force = RestoreOptions { force: true };
    let host = lab.host(1);
    let back = host.restore("web", "replica", force, &progress).await;
    let back = back.unwrap();
    assert_eq!((back.state, back.holder), (VmState::Running, lab.me(1)));
    // It is replicated from there on as it was, and the former replica is released.
    tokio::time::sleep(EVERY * 2).await;
    let next = replica(&lab, 2).await.unwrap();
    assert!(next.order() > newest.order(), "a newer epoch's");
    assert!(next.providers.contains(&lab.me(1)) && next.providers.contains(&lab.me(2)));
    assert!(matches!(
        next.durability,
        Durability::Replicating { done: 1, wanted: 2 }
    ));
}

#[tokio::test(start_paused = true)]
async fn without_a_name_the_newest_state_is_restored() {
    let mut lab = lab(3).await;
    let quiet = watch::Sender::default();
    let host = lab.host(0);
    host.snapshot("web", "one", &quiet).await.unwrap();
    // Times of snapshots are of the wall clock, in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    tokio::time::sleep(EVERY * 2).await;
    lab.power_off(0);
    let none: &[Vec<u8>] = &[];
    let (host, how) = (lab.host(1), (RestoreOptions { force: true }, none));
    let restored = host.restore_newest("web", how, &quiet).await.unwrap();
    let (vm, from) = restored.expect("it has both");
    assert_eq!((&*from, vm.state), ("replica", VmState::Running));
    // The snapshot is older than what was restored, and counts no more.
    host.stop("web").await.unwrap();
    let restored = host.restore_newest("web", how, &quiet).await.unwrap();
    assert_eq!(restored.expect("the replica is there").1, "replica");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_replicated_no_more_has_no_replica() {
    let lab = lab(3).await;
    tokio::time::sleep(EVERY * 2).await;
    assert!(replica(&lab, 1).await.is_some());
    let host = lab.host(0);
    let off = Protection {
        replicate_every: None,
        ..host.protection("web").unwrap()
    };
    host.set_protection("web", off).await.unwrap();
    assert_eq!(replica(&lab, 1).await, None);
    for i in 1..3 {
        lab.keeps_nothing(i, "a replica that was released").await;
    }
    tokio::time::sleep(EVERY * 2).await;
    assert_eq!(replica(&lab, 1).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_moved_vm_is_replicated_from_its_new_host() {
    let lab = lab(4).await;
    tokio::time::sleep(EVERY).await;
    let before = replica(&lab, 3).await.unwrap();
    let (host, to) = (lab.host(0), lab.me(1));
    let (options, progress) = (MigrateOptions::default(), watch::Sender::default());
    let moved = host.migrate("web", to, options, progress).await.unwrap();
    assert_eq!(moved.runs_on, RunningSide::Target);
    assert_eq!(
        lab.host(1).protection("web").unwrap().replicate_every,
        Some(EVERY)
    );
    tokio::time::sleep(EVERY * 2).await;
    let after = replica(&lab, 3).await.unwrap();
    assert!(after.order() > before.order());
    assert!(after.providers.contains(&lab.me(1)));
}

#[tokio::test(start_paused = true)]
async fn a_dead_holder_does_not_hold_up_newer_replicas() {
    let mut lab = lab(3).await;
    tokio::time::sleep(EVERY * 2).await;
    let before = replica(&lab, 1).await.unwrap();
    assert_eq!(before.copies(), 2);
    lab.power_off(2);
    tokio::time::sleep(EVERY * 3).await;
    let after = replica(&lab, 1).await.unwrap();
    assert!(after.order() > before.order(), "{after:?}");
    assert_eq!(after.copies(), 1, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn alone_nothing_is_replicated_and_the_reason_is_shown() {
    let lab = lab(2).await;
    tokio::time::sleep(EVERY).await;
    let newest = replica(&lab, 0).await.unwrap();
    assert_eq!(newest.copies(), 1, "the one other member there is");
    lab.isolate(0, true);
    tokio::time::sleep(EVERY * 4).await;
    let status = lab.host(0).list().remove(0).replication.unwrap();
    assert!(status.why.is_some(), "{status:?}");
    assert_eq!(status.copies, 1, "the one that is whole stays: {status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_on_every_flush_is_refused_for_now() {
    let lab = lab(1).await;
    let protection = Protection {
        replicate_every: Some(Duration::ZERO),
        ..Protection::default()
    };
    let refused = lab.host(0).set_protection("web", protection).await;
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("every flush")));
}
