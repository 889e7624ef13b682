//! Replicas kept for other members: which member releases them, how much they may take, and how
//! damage in them is found and repaired.

use super::*;
use p2pvm_overlay::{chain, identity::KeyPair};

/// A checkpoint of the VM of `keys`, in the member's store.
fn checkpoint(member: &Member, keys: &KeyPair) -> (ManifestId, [Hold; 2]) {
    let (disk, file) = member.file(0..20);
    let checkpoint = Checkpoint {
        vm: keys.vm_id(),
        name: "one".into(),
        taken: UnixTime(1),
        epoch: Epoch(1),
        ram: None,
        disk,
        image: None,
        spec: vec![1],
    };
    let (id, hold) = checkpoint.store(member.store()).unwrap();
    (id, [file, hold])
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_released_by_the_member_that_asked_for_it_alone() {
    let net = MemoryNet::new(NEAR);
    let [a, b, c] = [1, 2, 3].map(|n| Member::new(&net, n, NEAR));
    let (file, _hold) = a.file(0..10);
    a.exchange.push(file, "x", id(2), &quiet()).await.unwrap();
    let refused = c
        .exchange
        .release(file, "x", id(2), None)
        .await
        .unwrap_err();
    let why = chain(&refused);
    assert!(
        why.contains("is kept for") && why.contains(&id(1).short()),
        "{why}"
    );
    assert_eq!(b.store().pins().unwrap(), [Pin::of(id(1), file, "x")]);
    assert!(b.store().is_complete(file));
    c.exchange.release(file, "y", id(2), None).await.unwrap();
    a.exchange.release(file, "x", id(2), None).await.unwrap();
    assert!(b.store().pins().unwrap().is_empty());
    a.exchange.release(file, "x", id(2), None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_other_member_releases_a_members_own_pin() {
    let net = MemoryNet::new(NEAR);
    let [a, b] = [1, 2].map(|n| Member::new(&net, n, NEAR));
    let (file, _hold) = b.file(0..10);
    b.store().pin(file, "image").unwrap();
    let keys = KeyPair::from_seed(&[7; 32]);
    for proof in [None, Some(&keys)] {
        let refused = a.exchange.release(file, "image", id(2), proof).await;
        assert!(matches!(refused, Err(Error::Peer { .. })), "{refused:?}");
    }
    assert_eq!(b.store().pins().unwrap(), [Pin::own(file, "image")]);
}

#[tokio::test(start_paused = true)]
async fn the_vms_key_releases_replicas_of_a_holder_that_is_gone() {
    let net = MemoryNet::new(NEAR);
    let [a, b, c] = [1, 2, 3].map(|n| Member::new(&net, n, NEAR));
    let (keys, other) = (KeyPair::from_seed(&[7; 32]), KeyPair::from_seed(&[8; 32]));
    let (snapshot, _hold) = checkpoint(&a, &keys);
    a.exchange
        .push(snapshot, "x", id(2), &quiet())
        .await
        .unwrap();
    // As the first release pinned it: for no member.
    b.store().pin(snapshot, "x").unwrap();
    net.kill(id(1));
    let forged = c.exchange.release(snapshot, "x", id(2), Some(&other)).await;
    assert!(forged.is_err());
    assert_eq!(b.store().pins().unwrap().len(), 2);
    c.exchange
        .release(snapshot, "x", id(2), Some(&keys))
        .await
        .unwrap();
    assert!(b.store().pins().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_release_does_not_end_what_another_member_has_fetched() {
    let net = MemoryNet::new(NEAR);
    let [a, b, c] = [1, 2, 3].map(|n| Member::new(&net, n, NEAR));
    let (file, _hold) = a.file(0..100);
    b.fabric.slow_to(id(1), 4_000_000);
    let pushing = {
        let exchange = a.exchange.clone();
        tokio::spawn(async move { exchange.push(file, "x", id(2), &quiet()).await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!pushing.is_finished());
    c.exchange.release(file, "x", id(2), None).await.unwrap();
    pushing.await.unwrap().unwrap();
    assert_eq!(b.store().pins().unwrap(), [Pin::of(id(1), file, "x")]);
}

#[tokio::test(start_paused = true)]
async fn a_members_replicas_take_no_more_than_its_share() {
    let net = MemoryNet::new(NEAR);
    let [a, c] = [1, 3].map(|n| Member::new(&net, n, NEAR));
    let dir = tempfile::tempdir().unwrap();
    let none = ExchangeOptions {
        replica_percent: 0,
        ..ExchangeOptions::default()
    };
    let b = Exchange::start(net.add(id(2)), ChunkStore::open(dir.path()).unwrap(), none);
    let (file, _hold) = a.file(0..40);
    let refused = a
        .exchange
        .push(file, "x", id(2), &quiet())
        .await
        .unwrap_err();
    let why = chain(&refused);
    assert!(
        why.contains("would take 3 MiB") && why.contains("may have 0 MiB"),
        "{why}"
    );
    assert_eq!(
        b.store().list().unwrap().len(),
        2,
        "root and page, no content"
    );
    a.exchange.push(file, "x", id(3), &quiet()).await.unwrap();
    assert!(c.store().is_complete(file));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_fit_is_refused_before_its_content_comes() {
    let net = MemoryNet::new(NEAR);
    let a = Member::new(&net, 1, NEAR);
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64M", "p2pvm"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return eprintln!("NOT RUN: a file system of its own needs root");
    }
    let options = ExchangeOptions {
        reserve_bytes: 8 << 20,
        replica_percent: 100,
        ..ExchangeOptions::default()
    };
    let b = Exchange::start(
        net.add(id(2)),
        ChunkStore::open(dir.path()).unwrap(),
        options,
    );
    // 200 MiB, of which only the names are made here.
    let mut batch = a.store().batch();
    let chunks = (0..3200).map(|block| Extent {
        block,
        chunk: ChunkId::of(&block.to_le_bytes()),
    });
    let file = Manifest {
        kind: Kind::Disk,
        size: 200 << 20,
        chunk_bytes: BLOCK as u32,
        chunks: chunks.collect(),
        meta: BTreeMap::new(),
    };
    let large = file.store(&mut batch).unwrap();
    let _held = batch.finish().unwrap();
    let (small, _hold) = a.file(0..100);
    let refused = a.core_push(large, id(2)).await.unwrap_err();
    let fits = a.exchange.push(small, "x", id(2), &quiet()).await;
    let listed = b.store().list().unwrap().len();
    drop(b);
    let _ = std::process::Command::new("umount")
        .arg("--lazy")
        .arg(dir.path())
        .status();
    let why = chain(&refused);
    assert!(
        why.contains("220 MiB are needed") && why.contains("8 MiB are kept"),
        "{why}"
    );
    fits.unwrap();
    assert_eq!(listed, 2 + 102, "of the large one its root and page alone");
}

impl Member {
    /// Pushes a manifest without checking that it is complete here.
    async fn core_push(&self, manifest: ManifestId, to: MemberId) -> Result<(), Error> {
        self.exchange
            .core
            .push_held(manifest, "x", to, &[], &quiet())
            .await
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_chunks_of_a_pin_are_repaired_from_another_member() {
    let net = MemoryNet::new(NEAR);
    let [a, b] = [1, 2].map(|n| Member::new(&net, n, NEAR));
    let (file, _hold) = a.file(0..30);
    a.exchange.push(file, "x", id(2), &quiet()).await.unwrap();
    let chunk = |name: ChunkId| {
        let shard = b
            .dir
            .path()
            .join("chunks")
            .join(format!("{:02x}", name.0[0]));
        shard.join(name.to_string())
    };
    let content = ChunkId::of(&random(3));
    let page =
        b.store().list().unwrap().into_iter().find(|name| {
            *name != file.0 && (0..30).all(|seed| *name != ChunkId::of(&random(seed)))
        });
    for damaged in [page.unwrap(), content] {
        std::fs::write(chunk(damaged), b"damaged").unwrap();
        let mut found = 0;
        // A pass has four rounds; a fifth ends it where a repair has added a chunk.
        let pace = (Duration::from_secs(4), Duration::from_secs(1));
        let began = UnixTime(b.exchange.scrub_state().finished.map_or(1, |at| at.0 + 4));
        for second in 0..5 {
            let now = began.plus(second);
            found += b.exchange.scrub(pace, u64::MAX, now).await.unwrap();
        }
        assert!(b.exchange.scrub_state().finished.is_some());
        assert_eq!(found, 1);
        assert!(b.store().is_complete(file));
        b.store().get(damaged).unwrap();
    }
    std::fs::write(chunk(page.unwrap()), b"damaged").unwrap();
    let collected = b.exchange.collect(Duration::ZERO).await.unwrap();
    assert_eq!((collected.removed, collected.damaged.len()), (0, 1));
    b.store().get(page.unwrap()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_with_a_damaged_chunk_is_not_called_kept() {
    let net = MemoryNet::new(NEAR);
    let [a, b] = [1, 2].map(|n| Member::new(&net, n, NEAR));
    let (first, _first) = a.file(0..30);
    a.exchange.push(first, "x", id(2), &quiet()).await.unwrap();
    let damaged = ChunkId::of(&random(3));
    let shard = b
        .dir
        .path()
        .join("chunks")
        .join(format!("{:02x}", damaged.0[0]));
    std::fs::write(shard.join(damaged.to_string()), b"damaged").unwrap();
    let (second, _second) = a.file(0..31);
    a.exchange.push(second, "x", id(2), &quiet()).await.unwrap();
    b.store().get(damaged).unwrap();
}
