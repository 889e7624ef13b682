//! Whether a snapshot stays durable when the members that keep it lose their copies.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_snapshot_sync::{ChunkStore, ManifestId};
use p2pvm_vm_manager::{
    checkpoint::Copy, directory::Snapshot, host::Registry, hypervisor::MigrateOptions,
    vault::Durability,
};
use std::{path::PathBuf, time::Duration};
use tokio::sync::watch;

/// How often keepers are asked here; three times that without an answer, and one is gone.
const EVERY: Duration = Duration::from_secs(10 * 60);

fn snapshot(lab: &Lab) -> Snapshot {
    lab.host(0).list()[0].snapshots[0].clone()
}

fn keepers(lab: &Lab) -> Vec<usize> {
    let providers = snapshot(lab).providers;
    let is_keeper = |i: &usize| providers.contains(&lab.me(*i));
    (1..lab.sites.len()).filter(is_keeper).collect()
}

fn chunks(lab: &Lab, i: usize) -> PathBuf {
    lab.sites[i].dir.join("chunks")
}

fn has_all(lab: &Lab, i: usize, id: ManifestId) -> bool {
    ChunkStore::open(chunks(lab, i)).unwrap().is_complete(id)
}

/// A lab whose member 0 runs "web", with a snapshot that two others keep.
async fn lab(n: usize) -> Lab {
    let lab = Lab::with_keepers_asked_every(n, EVERY).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    assert_eq!(keepers(&lab).len(), 2);
    lab
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_lost_chunks_gets_them_again() {
    let lab = lab(3).await;
    let id = snapshot(&lab).checkpoint;
    // As after a disk that was replaced: the pins too.
    for part in ["chunks", "pins", "names"] {
        let dir = chunks(&lab, 1).join(part);
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
    }
    assert!(!has_all(&lab, 1, id));
    tokio::time::sleep(EVERY * 2).await;
    assert!(has_all(&lab, 1, id));
    assert_eq!(snapshot(&lab).durability, Durability::Durable);
    assert!(lab.kept(1).0 > 0, "and it is pinned");
}

#[tokio::test(start_paused = true)]
async fn a_gone_keeper_is_replaced_and_ends_its_copy_when_back() {
    let mut lab = lab(4).await;
    let id = snapshot(&lab).checkpoint;
    let gone = keepers(&lab)[0];
    let spare = (1..4).find(|i| !keepers(&lab).contains(i)).unwrap();
    lab.power_off(gone);
    tokio::time::sleep(EVERY * 2).await;
    assert!(keepers(&lab).contains(&gone), "it may come back");
    tokio::time::sleep(EVERY * 4).await;
    assert!(keepers(&lab).contains(&spare) && !keepers(&lab).contains(&gone));
    assert!(has_all(&lab, spare, id));
    assert_eq!(snapshot(&lab).durability, Durability::Durable);
    assert_ne!(lab.kept(gone).0, 0);
    lab.up(gone).await;
    tokio::time::sleep(EVERY).await;
    assert_eq!(lab.kept(gone).0, 0, "its copy is not needed any more");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_deleted_while_it_is_copied_stays_nowhere() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let quiet = watch::Sender::default();
    let taken = lab.host(0).snapshot("web", "one", &quiet).await.unwrap();
    lab.host(0).delete_snapshot("web", "one").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for i in [1, 2] {
        assert_eq!(lab.kept(i).0, 0, "{i}");
    }
    assert!(taken.copies.has_changed().is_err(), "nothing copies it");
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_daemon_no_longer_names_is_let_go() {
    let mut lab = lab(3).await;
    let quiet = watch::Sender::default();
    lab.host(0).snapshot("web", "two", &quiet).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = [0, 1, 2].map(|i| lab.kept(i).0);
    lab.kill_daemon(0);
    // As a daemon leaves it that dies in a deletion, when it has written the VM's entry.
    let registry = Registry::open(&lab.sites[0].dir.join("vms")).unwrap();
    let (mut entries, _) = registry.load().unwrap();
    entries[0].snapshots.retain(|s| s.name == "two");
    registry.save(&entries[0]).unwrap();
    lab.up(0).await;
    tokio::time::sleep(EVERY).await;
    let after = [0, 1, 2].map(|i| lab.kept(i).0);
    assert_eq!(after, before.map(|pins| pins - 1));
    let two = snapshot(&lab);
    assert_eq!((&*two.name, two.durability), ("two", Durability::Durable));
    assert!((0..3).all(|i| has_all(&lab, i, two.checkpoint)));
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_was_off_at_a_deletion_ends_its_copy() {
    let mut lab = lab(3).await;
    lab.power_off(2);
    lab.host(0).delete_snapshot("web", "one").await.unwrap();
    assert_eq!((lab.kept(1).0, lab.kept(2).0), (0, 1));
    // The host that deleted it starts anew meanwhile.
    lab.kill_daemon(0);
    lab.up(0).await;
    lab.up(2).await;
    tokio::time::sleep(EVERY).await;
    assert_eq!(lab.kept(2).0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_repair_of_copies_brings_the_snapshot_to_its_vms_new_host() {
    let lab = lab(4).await;
    let id = snapshot(&lab).checkpoint;
    let keeper = keepers(&lab)[0];
    let to = (1..4).find(|i| !keepers(&lab).contains(i)).unwrap();
    let quiet = watch::Sender::default();
    let options = MigrateOptions::default();
    let (host, target) = (lab.host(0), lab.me(to));
    host.migrate("web", target, options, quiet.clone())
        .await
        .unwrap();
    for part in ["chunks", "pins", "names"] {
        let dir = chunks(&lab, keeper).join(part);
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
    }
    let host = lab.host(to);
    let checked = host.verify_snapshot("web", "one", true, &quiet).await;
    let lacks = |c: &Copy| c.lacking > Some(0);
    assert!(checked.unwrap().copies.iter().any(lacks));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let there = &lab.host(to).list()[0];
    assert_eq!(there.snapshots[0].durability, Durability::Durable);
    assert!(there.backups.degraded.is_empty());
    let providers = &there.snapshots[0].providers;
    assert!(providers.contains(&lab.me(to)) && providers.len() == 3);
    for i in (0..4).filter(|i| providers.contains(&lab.me(*i))) {
        assert!(has_all(&lab, i, id), "{i}");
    }
}
