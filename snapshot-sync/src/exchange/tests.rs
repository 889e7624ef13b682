//! Members on a wide area inside one process: streams have a delay and a rate, and break or fall
//! silent after a number of bytes. Time is virtual: file work takes none.

use super::*;
use crate::{Checkpoint, Extent, Hold, Kind, Manifest, Progress, wide_area::WideArea};
use p2pvm_overlay::{Epoch, UnixTime, VmId, fabric::memory::MemoryNet};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

mod replicas;

const BLOCK: usize = 64 << 10;

struct Member {
    dir: tempfile::TempDir,
    fabric: Arc<WideArea>,
    exchange: Arc<Exchange>,
}

fn quiet() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}

fn id(n: u8) -> MemberId {
    MemberId([n; 32])
}

impl Member {
    fn new(net: &MemoryNet, n: u8, one_way: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fabric = WideArea::new(net.add(id(n)), one_way);
        let exchange = Exchange::start(
            fabric.clone(),
            ChunkStore::open(dir.path()).unwrap(),
            ExchangeOptions::default(),
        );
        Self {
            dir,
            fabric,
            exchange,
        }
    }

    fn store(&self) -> &ChunkStore {
        self.exchange.store()
    }

    /// A file of random blocks, each made of its number.
    fn file(&self, blocks: impl Iterator<Item = u64>) -> (ManifestId, Hold) {
        let mut batch = self.store().batch();
        let chunks: Vec<_> = blocks
            .enumerate()
            .map(|(at, seed)| Extent {
                block: at as u64,
                chunk: batch.put(&random(seed)).unwrap(),
            })
            .collect();
        let size = (chunks.len() * BLOCK) as u64;
        let file = Manifest {
            kind: Kind::Disk,
            size,
            chunk_bytes: BLOCK as u32,
            chunks,
            meta: BTreeMap::new(),
        };
        let id = file.store(&mut batch).unwrap();
        (id, batch.finish().unwrap())
    }

    async fn fetch(&self, file: ManifestId, providers: &[u8]) -> Result<FetchReport, Error> {
        let providers: Vec<_> = providers.iter().copied().map(id).collect();
        self.exchange.fetch(file, &providers, &quiet()).await
    }
}

fn random(seed: u64) -> Vec<u8> {
    let mut content = vec![0; BLOCK];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut content);
    content
}

const NEAR: Duration = Duration::from_millis(5);

#[tokio::test(start_paused = true)]
async fn a_fetch_brings_everything_once_and_nothing_again() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..100);
    let first = b.fetch(file, &[1]).await.unwrap();
    assert_eq!((first.fetched_chunks, first.duplicate_chunks), (102, 0));
    assert_eq!(b.store().hold_all(file).unwrap().len(), 102);
    let second = b.fetch(file, &[1]).await.unwrap();
    assert_eq!((second.fetched_chunks, second.present_chunks), (0, 102));
    net.kill(id(1));
    assert!(
        b.fetch(file, &[1]).await.is_ok(),
        "a complete manifest needs no provider"
    );
}

#[tokio::test(start_paused = true)]
async fn only_what_is_missing_moves() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (_, _old) = b.file(0..100);
    let (file, _new) = a.file((0..50).chain([1000]).chain(51..100));
    let report = b.fetch(file, &[1]).await.unwrap();
    assert_eq!(
        (report.fetched_chunks, report.present_chunks),
        (3, 99),
        "one block, its page and the root"
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_path_is_filled() {
    let far = Duration::from_millis(100);
    let net = MemoryNet::new(far);
    let (a, b) = (Member::new(&net, 1, far), Member::new(&net, 2, far));
    let (file, _hold) = a.file(0..512);
    let begun = Instant::now();
    b.fetch(file, &[1]).await.unwrap();
    // 32 MiB one chunk a round trip would take 102 s.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn chunks_that_a_broken_provider_owed_come_from_another() {
    let net = MemoryNet::new(NEAR);
    let (a, b, c) = (
        Member::new(&net, 1, NEAR),
        Member::new(&net, 2, NEAR),
        Member::new(&net, 3, NEAR),
    );
    let (file, _a) = a.file(0..200);
    let (_, _c) = c.file(0..200);
    b.fabric.break_after(id(1), 2 << 20);
    let report = b.fetch(file, &[1, 3]).await.unwrap();
    assert_eq!(report.fetched_chunks, 202);
    assert!(report.by_provider.len() == 2, "{:?}", report.by_provider);
}

#[tokio::test(start_paused = true)]
async fn a_silent_provider_holds_nothing_up_for_long() {
    let net = MemoryNet::new(NEAR);
    let (a, b, c) = (
        Member::new(&net, 1, NEAR),
        Member::new(&net, 2, NEAR),
        Member::new(&net, 3, NEAR),
    );
    let (file, _a) = a.file(0..200);
    let (_, _c) = c.file(0..200);
    b.fabric.silent_after(id(1), 1 << 20);
    let begun = Instant::now();
    b.fetch(file, &[1, 3]).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_provider_does_not_set_the_pace() {
    let net = MemoryNet::new(NEAR);
    let (a, b, c) = (
        Member::new(&net, 1, NEAR),
        Member::new(&net, 2, NEAR),
        Member::new(&net, 3, NEAR),
    );
    let (file, _a) = a.file(0..400);
    let (_, _c) = c.file(0..400);
    b.fabric.slow_to(id(1), 100_000);
    b.fabric.slow_to(id(3), 20_000_000);
    let begun = Instant::now();
    let report = b.fetch(file, &[1, 3]).await.unwrap();
    // 25 MiB at 20 MB/s are 1.3 s; all of it at 0.1 MB/s would be 262 s.
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?} {:?}",
        begun.elapsed(),
        report.by_provider
    );
}

#[tokio::test(start_paused = true)]
async fn a_fetch_cut_off_fails_and_the_next_goes_on_from_there() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..200);
    b.fabric.break_after(id(1), 6 << 20);
    b.fabric.on_break(id(1), net.clone());
    let cut = b.fetch(file, &[1]).await;
    assert!(matches!(cut, Err(Error::NoProvider { .. })), "{cut:?}");
    let had = b.store().list().unwrap().len();
    assert!(had > 50, "{had} chunks came before the cut");
    net.set_cut(id(1), id(2), false);
    b.fabric.restore(id(1));
    let report = b.fetch(file, &[1]).await.unwrap();
    assert_eq!(report.fetched_chunks as usize, 202 - had);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_no_provider_has_ends_the_fetch_at_once() {
    let net = MemoryNet::new(NEAR);
    let (a, b, c) = (
        Member::new(&net, 1, NEAR),
        Member::new(&net, 2, NEAR),
        Member::new(&net, 3, NEAR),
    );
    let (file, hold) = a.file(0..10);
    let lost = ChunkId::of(&random(4));
    std::fs::remove_file(
        a.dir
            .path()
            .join("chunks")
            .join(format!("{:02x}", lost.0[0]))
            .join(lost.to_string()),
    )
    .unwrap();
    let begun = Instant::now();
    assert!(matches!(
        b.fetch(file, &[1, 3]).await,
        Err(Error::NoProvider { .. })
    ));
    assert!(matches!(
        b.fetch(file, &[]).await,
        Err(Error::NoProvider { .. })
    ));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    drop((hold, c));
}

#[tokio::test(start_paused = true)]
async fn a_lying_provider_is_not_asked_again_nor_its_chunks_kept() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..50);
    let liar = net.add(id(9));
    let mut streams = p2pvm_overlay::Fabric::accept_streams(&*liar, SERVICE);
    let (told, mut lies) = mpsc::channel(1000);
    tokio::spawn(async move {
        while let Some((_, mut stream)) = streams.recv().await {
            while let Ok(Some(wire::Frame::Want(ids))) = wire::Frame::read(&mut stream).await {
                for id in ids {
                    let _ = told.send(id).await;
                    let _ = wire::Frame::Chunk(id, vec![0, 1, 2, 3])
                        .write(&mut stream)
                        .await;
                }
            }
        }
    });
    let report = b.fetch(file, &[9, 1]).await.unwrap();
    assert_eq!(
        report.by_provider.keys().copied().collect::<Vec<_>>(),
        vec![id(1)]
    );
    assert!(lies.try_recv().is_ok(), "the liar was asked");
    for chunk in b.store().list().unwrap() {
        b.store().get(chunk).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_brings_its_files() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let ((ram, _r), (disk, _d), (image, _i)) = (a.file(0..30), a.file(20..50), a.file(100..120));
    let checkpoint = Checkpoint {
        vm: VmId([1; 32]),
        name: "one".into(),
        taken: UnixTime(1),
        epoch: Epoch(1),
        ram: Some(ram),
        disk,
        image: Some(image),
        spec: vec![1],
    };
    let (snapshot, _hold) = checkpoint.store(a.store()).unwrap();
    let report = b.fetch(snapshot, &[1]).await.unwrap();
    assert_eq!(Checkpoint::load(b.store(), snapshot).unwrap(), checkpoint);
    assert!(b.store().is_complete(snapshot));
    assert_eq!(
        report.fetched_chunks,
        1 + 3 * 2 + 70,
        "blocks in two of the files come once"
    );
}

#[tokio::test(start_paused = true)]
async fn has_is_answered_in_the_order_of_the_ids() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (_, _hold) = a.file(0..10);
    let ids: Vec<_> = (0..20).map(|seed| ChunkId::of(&random(seed))).collect();
    let has = b.exchange.has(id(1), &ids).await.unwrap();
    assert_eq!(has, (0..20).map(|seed| seed < 10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_lost_a_chunk_says_so() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..10);
    let pushed = a.exchange.push(file, "web@one", id(2), &quiet()).await;
    pushed.unwrap();
    let lacking = async || a.exchange.lacking(file, id(2), &[id(2)]).await;
    assert_eq!(lacking().await.unwrap(), 0);
    let lost = ChunkId::of(&random(7));
    let chunks = b.dir.path().join("chunks");
    let shard = chunks.join(format!("{:02x}", lost.0[0]));
    std::fs::remove_file(shard.join(lost.to_string())).unwrap();
    assert_eq!(lacking().await.unwrap(), 1);
    // Also for a member that has only heard of the file.
    let c = Member::new(&net, 3, NEAR);
    let heard = c.exchange.lacking(file, id(2), &[id(2)]).await;
    assert_eq!((heard.unwrap(), c.store().has(lost)), (1, false));
    net.kill(id(2));
    let silent = lacking().await;
    assert!(matches!(silent, Err(Error::Peer { .. })), "{silent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_becomes_durable_on_those_that_live() {
    let net = MemoryNet::new(NEAR);
    let members: Vec<_> = (1..=5).map(|n| Member::new(&net, n, NEAR)).collect();
    let (file, _hold) = members[0].file(0..40);
    net.kill(id(2));
    let mut state = members[0]
        .exchange
        .replicate(file, "web@one", 2, &[id(2), id(3), id(4)]);
    let durable = state
        .wait_for(|r| r.state == ReplicationState::Durable)
        .await
        .unwrap()
        .clone();
    assert_eq!(durable.holders, vec![id(3), id(4)]);
    for holder in [2, 3] {
        assert_eq!(
            members[holder].store().pins().unwrap(),
            vec![Pin::of(id(1), file, "web@one")]
        );
        assert_eq!(
            members[holder].store().gc(Duration::ZERO).unwrap().removed,
            0
        );
    }
    net.kill(id(1));
    assert_eq!(
        members[4]
            .fetch(file, &[1, 3, 4])
            .await
            .unwrap()
            .fetched_chunks,
        42,
        "its first holder is dead"
    );
    assert!(members[2].store().is_complete(file));
}

#[tokio::test(start_paused = true)]
async fn a_push_survives_the_other_sides_restart() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..300);
    b.fabric.slow_to(id(1), 4_000_000);
    let pushing = {
        let exchange = a.exchange.clone();
        tokio::spawn(async move { exchange.push(file, "x", id(2), &quiet()).await })
    };
    tokio::time::sleep(Duration::from_secs(4)).await;
    net.kill(id(2));
    let Member { dir, exchange, .. } = b;
    drop(exchange);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let fabric = WideArea::new(net.add(id(2)), NEAR);
    let store = ChunkStore::open(dir.path()).unwrap();
    let had = store.list().unwrap().len();
    let again = Exchange::start(fabric, store, ExchangeOptions::default());
    pushing.await.unwrap().unwrap();
    assert!(
        had > 30 && had < 302,
        "{had} chunks were kept over the restart"
    );
    assert_eq!(
        again.store().pins().unwrap(),
        vec![Pin::of(id(1), file, "x")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_without_room_refuses() {
    let net = MemoryNet::new(NEAR);
    let a = Member::new(&net, 1, NEAR);
    let dir = tempfile::tempdir().unwrap();
    let full = ExchangeOptions {
        reserve_bytes: u64::MAX,
        ..ExchangeOptions::default()
    };
    let _b = Exchange::start(net.add(id(2)), ChunkStore::open(dir.path()).unwrap(), full);
    let (file, _hold) = a.file(0..3);
    let refused = a.exchange.push(file, "x", id(2), &quiet()).await;
    assert!(p2pvm_overlay::chain(&refused.unwrap_err()).contains("MiB free"));
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_manifest_is_not_pushed() {
    let net = MemoryNet::new(NEAR);
    let a = Member::new(&net, 1, NEAR);
    let _b = Member::new(&net, 2, NEAR);
    let nothing = ManifestId(ChunkId([1; 32]));
    assert!(matches!(
        a.exchange.push(nothing, "x", id(2), &quiet()).await,
        Err(Error::Incomplete { .. })
    ));
    let state = a.exchange.replicate(nothing, "x", 1, &[id(2)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(state.borrow().trouble.is_some());
}

#[tokio::test(start_paused = true)]
async fn too_few_candidates_never_look_durable() {
    let net = MemoryNet::new(NEAR);
    let (a, _b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..3);
    let (none, one) = (
        a.exchange.replicate(file, "x", 2, &[id(1)]),
        a.exchange.replicate(file, "y", 2, &[id(2)]),
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        none.borrow().state,
        ReplicationState::Replicating { n: 0, k: 2 }
    );
    assert_eq!(
        one.borrow().state,
        ReplicationState::Replicating { n: 1, k: 2 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_later_replaces_one_that_refuses() {
    let net = MemoryNet::new(NEAR);
    let (a, dir) = (Member::new(&net, 1, NEAR), tempfile::tempdir().unwrap());
    let full = ExchangeOptions {
        reserve_bytes: u64::MAX,
        ..ExchangeOptions::default()
    };
    let _full = Exchange::start(net.add(id(2)), ChunkStore::open(dir.path()).unwrap(), full);
    let (file, _hold) = a.file(0..3);
    let (come, now) = watch::channel(vec![id(1), id(2)]);
    let candidates = move || now.borrow().clone();
    let mut state = a.exchange.replicate_among(file, "x", 1, candidates);
    let refused = state.wait_for(|r| r.trouble.is_some()).await;
    assert!(refused.unwrap().holders.is_empty());
    let _later = Member::new(&net, 3, NEAR);
    come.send_replace(vec![id(2), id(3)]);
    let durable = state.wait_for(|r| r.state == ReplicationState::Durable);
    assert_eq!(durable.await.unwrap().holders, [id(3)]);
}

#[tokio::test(start_paused = true)]
async fn damaged_chunks_are_fetched_again_from_a_member_that_has_them() {
    let net = MemoryNet::new(NEAR);
    let (a, b) = (Member::new(&net, 1, NEAR), Member::new(&net, 2, NEAR));
    let (file, _hold) = a.file(0..100);
    let _held = b.fetch(file, &[1]).await.unwrap();
    let manifest = Manifest::load(b.store(), file).unwrap();
    // Damages the content (one chunk emptied, one altered, one removed) and every node of the
    // manifest.
    let of = |at: usize| manifest.chunks[at].chunk;
    let chunk = |name: ChunkId| {
        b.dir
            .path()
            .join("chunks")
            .join(format!("{:02x}", name.0[0]))
            .join(name.to_string())
    };
    assert!(chunk(of(3)).exists(), "the layout of the store on disk");
    std::fs::write(chunk(of(3)), b"").unwrap();
    std::fs::write(chunk(of(50)), b"other").unwrap();
    std::fs::remove_file(chunk(of(99))).unwrap();
    let content: std::collections::BTreeSet<_> = manifest.chunks.iter().map(|e| e.chunk).collect();
    for node in b
        .store()
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| !content.contains(name))
    {
        std::fs::write(chunk(node), b"").unwrap();
    }
    assert!(Manifest::load(b.store(), file).is_err());
    b.exchange.mend(file, &[id(1)], &quiet()).await.unwrap();
    let mended = Manifest::load(b.store(), file).unwrap();
    for (at, extent) in mended.chunks.iter().enumerate() {
        assert_eq!(b.store().get(extent.chunk).unwrap(), random(at as u64));
    }
    net.kill(id(1));
    b.exchange
        .mend(file, &[id(1)], &quiet())
        .await
        .expect("an undamaged manifest needs no provider");
    std::fs::write(chunk(of(7)), b"").unwrap();
    assert!(
        b.exchange.mend(file, &[id(1)], &quiet()).await.is_err(),
        "no provider has the chunk"
    );
}
