//! Whether a snapshot stays durable when the members that keep it lose their copies.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_snapshot_sync::{ChunkStore, ManifestId};
use p2pvm_vm_manager::{directory::Snapshot, vault::Durability};
use std::{path::PathBuf, time::Duration};

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
