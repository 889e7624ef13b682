//! A real kill -9: a child process (this test binary again) stores chunks, pins and files, and
//! prints each after it is acknowledged. It is killed at some moment, and all that it printed must
//! hold.

use super::*;
use crate::{Extent, Kind, Manifest, ManifestId, Progress};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

const DIR: &str = "P2PVM_TEST_KILL_DIR";
const NAME: &str = "store::kill::what_was_acknowledged_survives_kill_9";
const FILE_BYTES: usize = 1 << 20;

fn file_content(round: u64) -> Vec<u8> {
    let mut content = vec![0; FILE_BYTES];
    blake3::Hasher::new()
        .update(&round.to_le_bytes())
        .finalize_xof()
        .fill(&mut content);
    content
}

/// Works until it is killed.
fn child(dir: &Path) {
    let say = |line: String| {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
    };
    let store = ChunkStore::open(dir.join("store")).unwrap();
    let quiet = tokio::sync::watch::channel(Progress::default()).0;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for round in u64::from(std::process::id()) << 20.. {
        let single = store.put(&round.to_le_bytes()).unwrap();
        say(format!("chunk {single}"));
        let content = file_content(round);
        let mut batch = store.batch();
        let chunks = content
            .chunks(65536)
            .enumerate()
            .map(|(i, c)| Extent {
                block: i as u64,
                chunk: batch.put(c).unwrap(),
            })
            .collect();
        let manifest = Manifest {
            kind: Kind::Other,
            size: FILE_BYTES as u64,
            chunk_bytes: 65536,
            chunks,
            meta: BTreeMap::new(),
        };
        let id = manifest.store(&mut batch).unwrap();
        let _hold = batch.finish().unwrap();
        store.pin(id, "round").unwrap();
        say(format!("pin {id}"));
        runtime
            .block_on(crate::export_file(
                &store,
                &manifest,
                &dir.join("file"),
                &quiet,
            ))
            .unwrap();
        if round % 4 == 0 {
            store.gc(Duration::from_secs(3600)).unwrap();
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    if let Some(dir) = std::env::var_os(DIR) {
        return child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut chunks, mut pins) = (Vec::<ChunkId>::new(), Vec::<ManifestId>::new());
    for round in 0..8u64 {
        let mut worker = Command::new(std::env::current_exe().unwrap());
        worker
            .args(["--exact", NAME, "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut worker = worker.spawn().unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        // The child has begun to work; it is killed at an odd moment.
        let mut said: Vec<String> = lines
            .by_ref()
            .find(|line| line.starts_with("chunk"))
            .into_iter()
            .collect();
        std::thread::sleep(Duration::from_millis(20 + round * 37));
        worker.kill().unwrap();
        worker.wait().unwrap();
        said.extend(lines);
        for line in said {
            match line.split_once(' ') {
                Some(("chunk", id)) => chunks.extend(id.parse::<ChunkId>()),
                Some(("pin", id)) => pins.extend(id.parse::<ManifestId>()),
                _ => {}
            }
        }
        let store = ChunkStore::open(dir.path().join("store")).unwrap();
        chunks.iter().for_each(|id| drop(store.get(*id).unwrap()));
        let pinned = store.pins().unwrap();
        for id in &pins {
            assert!(
                pinned.contains(&Pin::own(*id, "round")),
                "round {round}: a pin is gone"
            );
            assert!(
                store.is_complete(*id),
                "round {round}: a pinned manifest is incomplete"
            );
        }
        store
            .list()
            .unwrap()
            .into_iter()
            .for_each(|id| drop(store.get(id).unwrap()));
        if let Ok(content) = fs::read(dir.path().join("file")) {
            assert_eq!(
                content.len(),
                FILE_BYTES,
                "round {round}: half a file under a final name"
            );
        }
    }
    assert!(chunks.len() >= 8);
}
