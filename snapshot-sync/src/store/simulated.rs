//! Collections beside snapshots, restores, clones, replications, deletions and restarts, in an
//! order that a seed decides: nothing that is reachable goes, and nothing that is not stays.
//!
//! Each run is one thread that interleaves the steps of many operations, also between the two
//! halves of a collection. `P2PVM_GC_RUNS` sets how many runs there are, `P2PVM_GC_SEED` the first
//! seed.

use super::{ChunkStore, Hold, Pin, collect::MarkedChunks};
use crate::{ChunkId, Extent, Kind, Manifest, ManifestId};
use p2pvm_overlay::MemberId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    time::Duration,
};

/// How many runs without the variable. Reason: each writes and flushes some hundred files.
const RUNS: u64 = 8;
/// How many steps a run has.
const STEPS: usize = 60;
/// How many different blocks the simulated disks have. Reason: few, so that files share chunks.
const BLOCKS: u64 = 12;

/// An operation under way.
enum Task {
    /// A snapshot whose chunks are stored and whose pin is not yet set.
    Snapshot(ManifestId, Hold),
    /// A restore that still reads.
    Restore(ManifestId, Hold),
    /// A replica for another member, all of it fetched and not yet pinned.
    Replica(ManifestId, Hold),
}

struct Run {
    rng: ChaCha8Rng,
    dir: tempfile::TempDir,
    store: ChunkStore,
    tasks: Vec<Task>,
    collection: Option<MarkedChunks>,
    next_label: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(dir.path()).unwrap();
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            dir,
            store,
            tasks: Vec::new(),
            collection: None,
            next_label: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.begin_snapshot(),
            25..45 => self.end_task(),
            45..55 => self.begin_restore(),
            55..62 => self.clone_one(),
            62..76 => self.unpin_one(),
            76..82 => self.begin_replica(),
            82..97 => self.half_a_collection(),
            _ => self.restart(),
        }
    }

    /// A file of a few blocks, stored and held.
    fn file(&mut self) -> (ManifestId, Hold) {
        let mut batch = self.store.batch();
        let count = self.rng.random_range(1..5u64);
        let chunks: Vec<Extent> = (0..count)
            .map(|block| {
                let content = [self.rng.random_range(0..BLOCKS) as u8 + 1; 4096];
                Extent {
                    block,
                    chunk: batch.put(&content).unwrap(),
                }
            })
            .collect();
        let manifest = Manifest {
            kind: Kind::Disk,
            size: count * 4096,
            chunk_bytes: 4096,
            chunks,
            meta: BTreeMap::new(),
        };
        let id = manifest.store(&mut batch).unwrap();
        (id, batch.finish().unwrap())
    }

    fn begin_snapshot(&mut self) {
        let (id, hold) = self.file();
        self.tasks.push(Task::Snapshot(id, hold));
    }

    fn begin_replica(&mut self) {
        let (id, hold) = self.file();
        self.tasks.push(Task::Replica(id, hold));
    }

    fn begin_restore(&mut self) {
        let Some(pin) = self.any_pin() else { return };
        let hold = self.store.hold_all(pin.manifest).unwrap();
        self.tasks.push(Task::Restore(pin.manifest, hold));
    }

    fn end_task(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.tasks.len());
        match self.tasks.swap_remove(at) {
            Task::Snapshot(id, hold) => {
                let label = self.label();
                self.store.pin(id, &label).unwrap();
                drop(hold);
            }
            Task::Replica(id, hold) => {
                let member = MemberId([self.rng.random_range(1..3); 32]);
                let pin = Pin::of(member, id, &self.label());
                self.store.set_pin(&pin).unwrap();
                drop(hold);
            }
            Task::Restore(id, hold) => {
                for chunk in reachable(&self.store, id) {
                    self.store.get(chunk).unwrap();
                }
                drop(hold);
            }
        }
    }

    /// A second VM from a snapshot: its own pin.
    fn clone_one(&mut self) {
        if let Some(pin) = self.any_pin() {
            let label = self.label();
            self.store.pin(pin.manifest, &label).unwrap();
        }
    }

    fn unpin_one(&mut self) {
        if let Some(pin) = self.any_pin() {
            assert!(self.store.remove_pin(&pin).unwrap());
        }
    }

    /// Marks, or sweeps what was marked some steps ago.
    fn half_a_collection(&mut self) {
        match self.collection.take() {
            None => {
                self.store.holds().begin_collection();
                self.collection = Some(self.store.mark().unwrap());
            }
            Some(marked) => {
                let remove = |path: &std::path::Path| fs::remove_file(path);
                self.store.sweep(marked, Duration::ZERO, remove).unwrap();
                self.store.holds().end_collection();
            }
        }
    }

    /// A daemon that is killed: what was pinned stays, work under way begins anew.
    fn restart(&mut self) {
        self.tasks.clear();
        self.collection = None;
        self.store = ChunkStore::open(self.dir.path()).unwrap();
    }

    fn label(&mut self) -> String {
        self.next_label += 1;
        self.next_label.to_string()
    }

    fn any_pin(&mut self) -> Option<Pin> {
        let pins = self.store.pins().unwrap();
        (!pins.is_empty()).then(|| pins[self.rng.random_range(0..pins.len())].clone())
    }

    /// All that is pinned or in use is here.
    fn check(&self, seed: u64, step: usize) {
        for pin in self.store.pins().unwrap() {
            let is_here = self.store.is_complete(pin.manifest);
            assert!(is_here, "seed {seed}, step {step}: {pin:?} lost a chunk");
        }
        for task in &self.tasks {
            let (Task::Snapshot(id, _) | Task::Restore(id, _) | Task::Replica(id, _)) = task;
            let is_here = self.store.is_complete(*id);
            assert!(
                is_here,
                "seed {seed}, step {step}: {id:?} in use lost a chunk"
            );
        }
    }

    /// With no work left a collection leaves what is reachable, and no more.
    fn end(mut self, seed: u64) {
        while !self.tasks.is_empty() {
            self.end_task();
        }
        if self.collection.is_some() {
            self.half_a_collection();
        }
        self.store.gc(Duration::ZERO).unwrap();
        self.check(seed, STEPS);
        let pins = self.store.pins().unwrap();
        let live: HashSet<ChunkId> = pins
            .iter()
            .flat_map(|pin| reachable(&self.store, pin.manifest))
            .collect();
        let here: HashSet<ChunkId> = self.store.list().unwrap().into_iter().collect();
        assert_eq!(here, live, "seed {seed}");
    }
}

fn reachable(store: &ChunkStore, id: ManifestId) -> Vec<ChunkId> {
    let mut chunks = Vec::new();
    store
        .walk(id, |chunk| {
            chunks.push(chunk);
            true
        })
        .unwrap();
    chunks
}

fn variable(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn collections_beside_all_other_work_lose_and_leak_nothing() {
    let first = variable("P2PVM_GC_SEED", 1);
    for seed in first..first + variable("P2PVM_GC_RUNS", RUNS) {
        let mut run = Run::new(seed);
        for step in 0..STEPS {
            run.step();
            run.check(seed, step);
        }
        run.end(seed);
    }
}
