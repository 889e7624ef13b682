//! Chunks, images, snapshots and the pins that keep them.

use super::{Attempt, DAEMONS, Stage, member::Member};
use p2pvm_overlay::{MemberId, identity::KeyPair};
use p2pvm_snapshot_sync::{
    ChunkId, ManifestId,
    exchange::wire::{Answer, Frame, RELEASE_DOMAIN, Request, release_message},
};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// The labels of the pins that keep snapshots and images.
const SNAPSHOT: &str = "vm-snapshot";
const IMAGE: &str = "image";
/// How long replicas of a snapshot may take to be made.
const REPLICATED: Duration = Duration::from_secs(90);
/// How many replicas for one member wait at a time.
const MAX_KEEPING: usize = 64;

/// What the rogue sends to a member that fetches chunks from it.
#[derive(Clone, Copy)]
pub enum Provider {
    /// Nothing.
    Silent,
    /// Other content than was asked for.
    Wrong,
}

/// Lets the rogue answer fetches in its way from now on.
pub fn provide(rogue: &Member, how: Provider) {
    let fabric = rogue.fabric();
    rogue.run(async move {
        let mut streams = fabric.accept_streams("chunk");
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some((_, mut stream)) = streams.recv().await {
                match how {
                    Provider::Silent => held.push(stream),
                    Provider::Wrong => drop(tokio::spawn(async move {
                        while let Ok(Some(Frame::Want(ids))) = Frame::read(&mut stream).await {
                            for id in ids {
                                let frame = Frame::Chunk(id, b"\0other".to_vec());
                                if frame.write(&mut stream).await.is_err() {
                                    return;
                                }
                            }
                            let _ = stream.flush().await;
                        }
                    })),
                }
            }
        });
    });
}

fn id(text: &str) -> ManifestId {
    ManifestId(text.parse().expect("an id"))
}

fn ask(by: &Member, to: MemberId, request: &Request) -> Answer {
    let answer = by.call(to, "chunk", request.to_bytes()).unwrap();
    Answer::parse(&answer).unwrap()
}

/// Whether a daemon has a chunk.
fn has(stage: &Stage, host: &str, chunk: ChunkId) -> bool {
    let request = Request::Has(vec![chunk]);
    ask(&stage.honest, stage.id(host), &request) == Answer::Has(vec![1])
}

/// The daemons that have a manifest.
fn holders(stage: &Stage, manifest: ManifestId) -> Vec<&'static str> {
    let has = |host: &&str| has(stage, host, manifest.0);
    DAEMONS.into_iter().filter(has).collect()
}

fn release(stage: &Stage, manifest: ManifestId, label: &str, by: Option<&KeyPair>, to: &str) {
    let to = stage.id(to);
    let sign = |keys: &KeyPair| keys.sign(RELEASE_DOMAIN, &release_message(manifest, label, to));
    let request = Request::Release {
        manifest,
        label: label.into(),
        proof: by.map(sign),
    };
    let why = stage.rogue.refused(to, "chunk", request.to_bytes());
    assert!(why.contains("is kept for"), "{why}");
}

pub const ATTEMPTS: &[Attempt] = &[
    (
        "the replicas of another's snapshot released",
        snapshot_released,
    ),
    (
        "the same with a signature of its own",
        snapshot_released_by_proof,
    ),
    ("an image released on its host", image_released),
    ("replicas of what nobody has, without end", endless_replicas),
    ("other content for a chunk that is fetched", wrong_content),
    ("a request with too many chunks", too_many_chunks),
    ("a label that no pin takes", long_label),
    ("all streams of chunks taken", all_streams),
];

/// Waits until another daemon than the VM's has the snapshot.
fn replicated(stage: &Stage) -> (ManifestId, Vec<&'static str>) {
    let snapshot = id(&stage.snapshot);
    let began = Instant::now();
    loop {
        let there = holders(stage, snapshot);
        if there.len() > 1 {
            return (snapshot, there);
        }
        assert!(began.elapsed() < REPLICATED, "only {there:?} have it");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn snapshot_released(stage: &Stage) {
    let (snapshot, before) = replicated(stage);
    // The VM's own host pins it for itself: that pin is nobody else's.
    release(stage, snapshot, SNAPSHOT, None, "a");
    for host in before.iter().filter(|host| **host != "a") {
        until_pinned(stage, snapshot, host);
    }
    assert_eq!(holders(stage, snapshot), before);
    stage.lab.p2pvm("a", &["vm", "show", "web"]).unwrap();
}

/// A replica may have all chunks a moment before its pin, and refuses a release from then on.
fn until_pinned(stage: &Stage, snapshot: ManifestId, host: &str) {
    let request = Request::Release {
        manifest: snapshot,
        label: SNAPSHOT.into(),
        proof: None,
    };
    let began = Instant::now();
    loop {
        match stage
            .rogue
            .call(stage.id(host), "chunk", request.to_bytes())
        {
            Err(p2pvm_overlay::FabricError::Refused(_, why)) => {
                assert!(why.contains("is kept for"), "{why}");
                return;
            }
            Ok(_) => assert!(began.elapsed() < REPLICATED, "{host} lets go of it"),
            Err(other) => panic!("{host}: {other}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn snapshot_released_by_proof(stage: &Stage) {
    let (snapshot, before) = replicated(stage);
    let own = KeyPair::generate();
    release(stage, snapshot, SNAPSHOT, Some(&own), "a");
    assert_eq!(holders(stage, snapshot), before);
}

fn image_released(stage: &Stage) {
    let image = id(&stage.web.image);
    assert!(has(stage, "a", image.0));
    let own = KeyPair::generate();
    for by in [None, Some(&own)] {
        release(stage, image, IMAGE, by, "a");
    }
    assert!(has(stage, "a", image.0));
}

fn keep(manifest: [u8; 32]) -> Request {
    Request::Keep {
        manifest: ManifestId(ChunkId(manifest)),
        label: "rogue".into(),
        providers: Vec::new(),
        wait_ms: 0,
    }
}

fn endless_replicas(stage: &Stage) {
    provide(&stage.rogue, Provider::Silent);
    let bodies = (0..200).map(|_| keep(rand::random()).to_bytes()).collect();
    let tally = stage.rogue.flood(stage.id("b"), "chunk", bodies, 16);
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let is_begun = |answer: &&Vec<u8>| matches!(Answer::parse(answer), Ok(Answer::Keeping(_)));
    let begun = tally.answers.iter().filter(is_begun).count();
    assert!(begun <= MAX_KEEPING, "{begun} replicas are being fetched");
    assert!(tally.refused >= 200 - MAX_KEEPING, "{tally:?}");
}

fn wrong_content(stage: &Stage) {
    provide(&stage.rogue, Provider::Wrong);
    let wanted: [u8; 32] = rand::random();
    let began = Instant::now();
    // "c": of what "b" still fetches for the rogue there may be many.
    loop {
        match ask(&stage.rogue, stage.id("c"), &keep(wanted)) {
            Answer::Failed(why) => break println!("  {why}"),
            Answer::Keeping(_) => assert!(began.elapsed() < REPLICATED, "it never ends"),
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(!has(stage, "c", ChunkId(wanted)));
    // Nor under the name that its content has.
    assert!(!has(stage, "c", ChunkId::of(b"other")));
}

fn too_many_chunks(stage: &Stage) {
    let request = Request::Has(vec![ChunkId([1; 32]); 5000]);
    let why = stage
        .rogue
        .refused(stage.id("b"), "chunk", request.to_bytes());
    assert!(why.contains("too many ids"), "{why}");
}

fn long_label(stage: &Stage) {
    for label in ["x".repeat(100_000), "x".repeat(70_000)] {
        let request = Request::Release {
            manifest: id(&stage.snapshot),
            label,
            proof: None,
        };
        let why = stage
            .rogue
            .refused(stage.id("b"), "chunk", request.to_bytes());
        assert!(why.contains("too long a label"), "{why}");
    }
}

/// The rogue holds as many streams as it gets; an honest member still fetches.
fn all_streams(stage: &Stage) {
    let (to, fabric) = (stage.id("a"), stage.rogue.fabric());
    let held = stage.rogue.run(async move {
        let mut held = Vec::new();
        for _ in 0..100 {
            held.extend(fabric.open_stream(to, "chunk").await.ok());
        }
        held
    });
    assert!(!held.is_empty());
    let (fabric, wanted) = (stage.honest.fabric(), id(&stage.web.image).0);
    let frame = stage.honest.run(async move {
        let mut stream = fabric.open_stream(to, "chunk").await.unwrap();
        Frame::Want(vec![wanted]).write(&mut stream).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), Frame::read(&mut stream)).await
    });
    let frame = frame.expect("an honest member is served").unwrap();
    assert!(
        matches!(frame, Some(Frame::Chunk(id, _)) if id == wanted),
        "{frame:?}"
    );
}
