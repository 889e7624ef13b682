//! Measures how fast files become chunks and files again, and what a second snapshot costs.
//!
//! `cargo run --release -p p2pvm-snapshot-sync --example throughput [-- <directory>]`: the files
//! are made in the directory, so it chooses the disk that is measured. `P2PVM_FIGURES=docs/figures`
//! also writes the figures there, for docs/speed.md.

use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{Fabric, MemberId, fabric::memory::MemoryNet};
use p2pvm_snapshot_sync::{
    ChunkStore, Error, Exchange, ExchangeOptions, ImportedFile, Kind, Progress, export_file,
    import_file,
};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::sync::watch;

const MIB: usize = 1 << 20;
/// What measures the figures again.
const COMMAND: &str = if cfg!(debug_assertions) {
    "cargo run -p p2pvm-snapshot-sync --example throughput"
} else {
    "cargo run --release -p p2pvm-snapshot-sync --example throughput"
};

/// RAM as a small guest leaves it: a third empty, a third text-like, a third hard to compress;
/// `changed` of 1000 pages differ from those for `changed` 0.
fn ram_file(path: &Path, mib: usize, changed: u64) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut page = [0; 4096];
    for number in 0..(mib * MIB / 4096) as u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&number.to_le_bytes());
        let draw = u64::from_le_bytes(
            hash.finalize().as_bytes()[..8]
                .try_into()
                .unwrap_or_default(),
        ) % 1000;
        hash.update(&[u8::from(draw < changed)]);
        // Runs of 64 pages alike, as allocators make them.
        match number / 64 % 3 {
            0 => page.fill(0),
            kind => {
                hash.finalize_xof().fill(&mut page);
                if kind == 1 {
                    page.iter_mut()
                        .for_each(|b| *b = b"etaoin shrdlu\0\0\0"[usize::from(*b & 15)]);
                }
            }
        }
        file.write_all(&page)?;
    }
    file.flush()
}

/// Seconds and rate of one step.
fn rates(step: &str, bytes: u64, took: Duration) -> [Figure; 2] {
    let mib = bytes as f64 / MIB as f64;
    [
        Figure::new("time", "time", "s", [took.as_secs_f64()]).digits(2),
        Figure::new("rate", "rate", "MiB/s", [mib / took.as_secs_f64()]),
    ]
    .map(|figure| figure.of(step))
}

/// Chunks and MiB that a step adds, on disk or on the wire.
fn added(step: &str, chunks: u64, bytes: u64) -> [Figure; 2] {
    [
        Figure::new("new-chunks", "new chunks", "", [chunks as f64]),
        Figure::new("new", "their bytes", "MiB", [bytes as f64 / MIB as f64]).digits(1),
    ]
    .map(|figure| figure.of(step))
}

/// Imports a file, measured as a step of this name.
async fn import(
    step: &str,
    store: &ChunkStore,
    path: &Path,
    kind: Kind,
    figures: &mut Vec<Figure>,
) -> Result<ImportedFile, Error> {
    let begun = Instant::now();
    let quiet = watch::channel(Progress::default()).0;
    let imported = import_file(store, path, kind, &quiet).await?;
    figures.extend(rates(step, imported.manifest.size, begun.elapsed()));
    figures.extend(added(step, imported.new_chunks, imported.new_bytes));
    Ok(imported)
}

/// Another member's store fetches the files one after the other, measured as steps.
async fn fetch(
    dir: &Path,
    store: &ChunkStore,
    files: [(&str, &ImportedFile); 2],
    figures: &mut Vec<Figure>,
) -> Result<(), Error> {
    let quiet = watch::channel(Progress::default()).0;
    let net = MemoryNet::new(Duration::from_micros(100));
    let (a, b) = (net.add(MemberId([1; 32])), net.add(MemberId([2; 32])));
    let _source = Exchange::start(a.clone(), store.clone(), ExchangeOptions::default());
    let store = ChunkStore::open(dir.join("b"))?;
    let target = Exchange::start(b, store, ExchangeOptions::default());
    for (step, imported) in files {
        let begun = Instant::now();
        let report = target.fetch(imported.id, &[a.me()], &quiet).await?;
        figures.extend(rates(step, imported.manifest.size, begun.elapsed()));
        figures.extend(added(step, report.fetched_chunks, report.fetched_bytes));
        let pin = imported.id.short();
        target.store().pin(imported.id, pin.as_str())?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let (ram, disk, back) = (
        dir.path().join("ram"),
        dir.path().join("disk"),
        dir.path().join("back"),
    );
    let recorder = Recorder::from_environment();
    let store = ChunkStore::open(dir.path().join("a"))?;
    let quiet = watch::channel(Progress::default()).0;
    let mut figures = Vec::new();

    ram_file(&ram, 128, 0)?;
    ram_file(&disk, 50, 0)?;
    let step = "import RAM, 128 MiB";
    let first = import(step, &store, &ram, Kind::Ram, &mut figures).await?;
    let step = "import disk, 50 MiB of the same content";
    import(step, &store, &disk, Kind::Disk, &mut figures).await?;
    ram_file(&ram, 128, 10)?;
    let step = "import RAM, 1 % of pages changed";
    let second = import(step, &store, &ram, Kind::Ram, &mut figures).await?;
    let step = "import RAM, unchanged";
    import(step, &store, &ram, Kind::Ram, &mut figures).await?;

    let begun = Instant::now();
    export_file(&store, &second.manifest, &back, &quiet).await?;
    figures.extend(rates("export RAM", second.manifest.size, begun.elapsed()));

    let files = [
        ("fetch RAM, in one process", &first),
        ("fetch RAM, 1 % of pages changed", &second),
    ];
    fetch(dir.path(), &store, files, &mut figures).await?;
    recorder.record("chunks", COMMAND, &figures)?;
    figures.sort_by(|a, b| a.name.cmp(&b.name));
    println!("{}", Recorder::overview(&figures));
    Ok(())
}
