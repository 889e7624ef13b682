//! Sealed snapshots: what members that store them see, and who opens them.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, Site};
use p2pvm_snapshot_sync::{
    Checkpoint, ChunkStore, Kind, Manifest, ManifestId, SealKey, export_sealed, import_file,
};
use p2pvm_vm_manager::{
    Error, HoldingKeys,
    checkpoint::{RestoreOptions, SavedVm},
    host::{Entry, VmState},
    hypervisor::MigrateOptions,
    migrate::RunningSide,
    vault::Durability,
};
use std::{fs, path::PathBuf, sync::atomic::Ordering, time::Duration};
use tokio::sync::watch;

const FORCE: RestoreOptions = RestoreOptions { force: true };

/// The file of the one VM of a member.
fn entry_file(site: &Site) -> PathBuf {
    let mut vms = fs::read_dir(site.dir.join("vms")).unwrap();
    vms.next().unwrap().unwrap().path().join("vm.json")
}

fn entry(site: &Site) -> Entry {
    serde_json::from_slice(&fs::read(entry_file(site)).unwrap()).unwrap()
}

/// Whether a chunk of the member has `pattern` in it.
fn has_bytes(site: &Site, pattern: &[u8]) -> bool {
    let store = ChunkStore::open(site.dir.join("chunks")).unwrap();
    let chunks = store.list().unwrap().into_iter();
    chunks
        .map(|id| store.get(id).unwrap())
        .any(|content| content.windows(pattern.len()).any(|at| at == pattern))
}

/// The members but the first: those that vote on its VM, and the others.
async fn voters_and_others(lab: &Lab) -> (Vec<usize>, Vec<usize>) {
    let voters = lab.host(0).status("web").await.unwrap().definition.voters;
    (1..lab.sites.len()).partition(|i| voters.contains(&lab.me(*i)))
}

fn memory(lab: &Lab, i: usize) -> u64 {
    let vm = lab.host(i).list()[0].definition.vm;
    let machine = lab.world.machine(vm, lab.me(i)).unwrap();
    machine.memory.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn members_that_store_a_snapshot_have_no_byte_of_it_in_clear() {
    let lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let holders: Vec<_> = (1..5).filter(|i| lab.kept(*i).0 > 0).collect();
    assert_eq!(holders.len(), 2);
    let saved = entry(&lab.sites[0]);
    for site in holders.into_iter().chain([0]).map(|i| &lab.sites[i]) {
        assert!(
            has_bytes(site, &saved.definition.vm.0),
            "the VM's id is public"
        );
        assert!(!has_bytes(site, &saved.secret.keys().seed()[..]), "its key");
        assert!(!has_bytes(site, b"disk "), "its disk");
        assert!(!has_bytes(site, &42u64.to_be_bytes()), "its memory");
        let store = ChunkStore::open(site.dir.join("chunks")).unwrap();
        let snapshot = Checkpoint::load(&store, saved.snapshots[0].checkpoint).unwrap();
        assert_eq!(SavedVm::from_bytes(&snapshot.spec), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_refuses_keeps_a_snapshot_closed() {
    let mut lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let (voters, others) = voters_and_others(&lab).await;
    let snapshot = entry(&lab.sites[0]).snapshots[0].checkpoint;
    let has_all = |lab: &Lab, i: usize| {
        let store = ChunkStore::open(lab.sites[i].dir.join("chunks")).unwrap();
        store.is_complete(snapshot)
    };
    let mut without = others.iter().filter(|i| !has_all(&lab, **i));
    let (voter, other) = (voters[0], *without.next().unwrap_or(&others[0]));
    let had_all = has_all(&lab, other);
    lab.power_off(0);
    let refuses = &lab.sites[voter].releases.refuses;
    refuses.store(true, Ordering::SeqCst);
    let (host, proofs) = (lab.host(other), [vec![1], vec![2]]);
    let restore = async || {
        let progress = watch::Sender::default();
        host.restore_with("web", "one", (FORCE, &proofs), &progress)
            .await
    };
    let refused = restore().await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused(why) if why.contains("lacks the right")),
        "{refused}"
    );
    assert_eq!(
        lab.sites[voter].releases.asked.lock().unwrap()[..],
        [(lab.me(other), 2)]
    );
    assert_eq!(has_all(&lab, other), had_all, "its content is not fetched");
    refuses.store(false, Ordering::SeqCst);
    let back = restore().await.unwrap();
    assert_eq!((back.state, back.holder), (VmState::Running, lab.me(other)));
    assert_eq!(memory(&lab, other), 42);
}

#[tokio::test(start_paused = true)]
async fn the_owner_of_a_vm_opens_its_snapshots_by_itself() {
    let mut lab = Lab::new(5).await;
    let owner = lab.me(4);
    let quiet = watch::Sender::default();
    let new = lab.new_vm("web");
    lab.host(0).create_for(owner, new, &quiet).await.unwrap();
    lab.take_snapshot(0).await;
    for site in &lab.sites {
        site.releases.refuses.store(true, Ordering::SeqCst);
    }
    lab.power_off(0);
    let host = lab.host(4);
    let back = host.restore("web", "one", FORCE, &quiet).await.unwrap();
    assert_eq!((back.state, back.holder), (VmState::Running, owner));
    let asked = |site: &Site| site.releases.asked.lock().unwrap().len();
    assert_eq!(lab.sites.iter().map(asked).sum::<usize>(), 0);
}

/// Makes the snapshot of the VM of `site`, whose daemon does not run, one of the previous release.
async fn unseal(site: &Site) -> ManifestId {
    let (mut entry, store) = (
        entry(site),
        ChunkStore::open(site.dir.join("chunks")).unwrap(),
    );
    let sealed = Checkpoint::load(&store, entry.snapshots[0].checkpoint).unwrap();
    let quiet = watch::Sender::default();
    let memory = 42u64.to_be_bytes();
    let file = site.dir.join("plain");
    fs::write(&file, memory).unwrap();
    let ram = import_file(&store, &file, Kind::Ram, &quiet).await.unwrap();
    fs::write(&file, [b"disk ", &memory[..]].concat()).unwrap();
    let disk = import_file(&store, &file, Kind::Disk, &quiet)
        .await
        .unwrap();
    let saved = SavedVm {
        definition: entry.definition.clone(),
        secret: entry.secret.clone(),
        sealing: HoldingKeys::NONE,
    };
    let plain = Checkpoint {
        ram: Some(ram.id),
        disk: disk.id,
        spec: saved.to_bytes(),
        ..sealed
    };
    let (id, _hold) = plain.store(&store).unwrap();
    store.pin(id, "vm-snapshot").unwrap();
    entry.snapshots[0].checkpoint = id;
    fs::write(entry_file(site), serde_json::to_vec(&entry).unwrap()).unwrap();
    id
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_the_previous_release_is_restored() {
    let mut lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.kill_daemon(0);
    let plain = unseal(&lab.sites[0]).await;
    lab.up(0).await;
    lab.settles_on(vm, &[0], "taken up again").await;
    lab.host(0).stop("web").await.unwrap();
    let told = async || {
        let status = lab.host(4).status("web").await.unwrap();
        status.snapshots[0].checkpoint == plain
    };
    for _ in 0..100 {
        if told().await {
            break;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!(told().await, "the record has the snapshot");
    let (host, quiet) = (lab.host(4), watch::Sender::default());
    let options = RestoreOptions::default();
    let back = host.restore("web", "one", options, &quiet).await.unwrap();
    assert_eq!((back.state, back.holder), (VmState::Running, lab.me(4)));
    assert_eq!(memory(&lab, 4), 42);
    let asked = |site: &Site| site.releases.asked.lock().unwrap().len();
    assert_eq!(lab.sites.iter().map(asked).sum::<usize>(), 0);
}

/// Takes a snapshot of "web" on member `i`; waits until it is durable and the record says so.
async fn snapshot(lab: &Lab, i: usize, name: &str) -> ManifestId {
    let quiet = watch::Sender::default();
    let mut taken = lab.host(i).snapshot("web", name, &quiet).await.unwrap();
    let is_durable = |c: &p2pvm_vm_manager::vault::Copies| c.durability == Durability::Durable;
    taken.copies.wait_for(is_durable).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    taken.snapshot.checkpoint
}

async fn moves(lab: &Lab, from: usize, to: usize) {
    let (host, to) = (lab.host(from), lab.me(to));
    let quiet = watch::Sender::default();
    let outcome = host.migrate("web", to, MigrateOptions::default(), quiet);
    assert_eq!(outcome.await.unwrap().runs_on, RunningSide::Target);
}

/// Whether a snapshot that the member stores opens with a key.
async fn opens(site: &Site, snapshot: ManifestId, key: &SealKey) -> bool {
    let store = ChunkStore::open(site.dir.join("chunks")).unwrap();
    let snapshot = Checkpoint::load(&store, snapshot).unwrap();
    let disk = Manifest::load(&store, snapshot.disk).unwrap();
    let quiet = watch::Sender::default();
    let to = site.dir.join("opened");
    export_sealed(&store, &disk, key, &to, &quiet).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_former_host_opens_no_snapshot_from_after_the_move() {
    let mut lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    let one = snapshot(&lab, 0, "one").await;
    let known = SealKey::derive(&entry(&lab.sites[0]).secret.keys().seed());
    assert!(opens(&lab.sites[0], one, &known).await);
    moves(&lab, 0, 1).await;
    let two = snapshot(&lab, 1, "two").await;
    assert!(!opens(&lab.sites[1], two, &known).await);
    // Another snapshot of the same holding has the same key.
    let kept = entry(&lab.sites[1]).sealing;
    snapshot(&lab, 1, "three").await;
    assert_eq!(entry(&lab.sites[1]).sealing, kept);

    // The VM's next host opens what both hosts before it have stored.
    moves(&lab, 1, 2).await;
    let quiet = watch::Sender::default();
    let asked = |lab: &Lab| {
        let asked = |site: &Site| site.releases.asked.lock().unwrap().len();
        lab.sites.iter().map(asked).sum::<usize>()
    };
    for name in ["two", "one"] {
        let host = lab.host(2);
        host.stop("web").await.unwrap();
        let back = host.restore("web", name, RestoreOptions::default(), &quiet);
        assert_eq!(back.await.unwrap().state, VmState::Running);
        assert_eq!(memory(&lab, 2), 42);
    }
    assert_eq!(asked(&lab), 0, "nobody was asked");

    // A host that never had it opens them with the voters, and seals with a key of its own.
    lab.power_off(2);
    let host = lab.host(4);
    let back = host.restore("web", "two", FORCE, &quiet).await.unwrap();
    assert_eq!((back.state, back.holder), (VmState::Running, lab.me(4)));
    assert_eq!(memory(&lab, 4), 42);
    assert!(asked(&lab) > 0);
    snapshot(&lab, 4, "four").await;
    assert_ne!(entry(&lab.sites[4]).sealing, kept);
}

/// The public key that ends replicas of a snapshot that the member stores.
fn releaser(site: &Site, snapshot: ManifestId) -> [u8; 32] {
    let store = ChunkStore::open(site.dir.join("chunks")).unwrap();
    Checkpoint::load(&store, snapshot).unwrap().vm.0
}

#[tokio::test(start_paused = true)]
async fn a_later_host_ends_replicas_that_a_former_one_cannot() {
    let lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    let one = snapshot(&lab, 0, "one").await;
    assert_eq!(releaser(&lab.sites[0], one), vm.0);
    moves(&lab, 0, 1).await;
    let two = snapshot(&lab, 1, "two").await;
    assert_ne!(releaser(&lab.sites[1], two), vm.0);
    moves(&lab, 1, 2).await;
    let host = lab.host(2);
    for name in ["two", "one"] {
        host.delete_snapshot("web", name).await.unwrap();
    }
    let pins = |site: &Site| {
        let store = ChunkStore::open(site.dir.join("chunks")).unwrap();
        let kept = [one, two].map(|id| store.pins_of(id, "vm-snapshot").unwrap().len());
        kept.iter().sum::<usize>()
    };
    let left: Vec<_> = lab.sites.iter().map(pins).collect();
    assert_eq!(left, [0; 5], "no member keeps one of them");
}
