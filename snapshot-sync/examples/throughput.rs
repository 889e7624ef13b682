//! Prints how fast files become chunks and files again, and what a second snapshot costs.
//!
//! `cargo run --release -p p2pvm-snapshot-sync --example throughput [-- <directory>]`: the files
//! are made in the directory, so it chooses the disk that is measured.

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

fn rate(bytes: u64, took: Duration) -> String {
    format!(
        "{:6.2} s {:7.0} MiB/s",
        took.as_secs_f64(),
        bytes as f64 / MIB as f64 / took.as_secs_f64()
    )
}

async fn import(
    what: &str,
    store: &ChunkStore,
    path: &Path,
    kind: Kind,
) -> Result<ImportedFile, Error> {
    let begun = Instant::now();
    let quiet = watch::channel(Progress::default()).0;
    let imported = import_file(store, path, kind, &quiet).await?;
    let manifest = &imported.manifest;
    println!(
        "{what:<34} {}   {:4} blocks, {:4} new chunks, {:6.1} MiB new on disk ({:.0} % of the \
            file)",
        rate(manifest.size, begun.elapsed()),
        manifest.chunks.len(),
        imported.new_chunks,
        imported.new_bytes as f64 / MIB as f64,
        imported.new_bytes as f64 * 100.0 / manifest.size as f64,
    );
    Ok(imported)
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
    let store = ChunkStore::open(dir.path().join("a"))?;
    let quiet = watch::channel(Progress::default()).0;

    ram_file(&ram, 128, 0)?;
    ram_file(&disk, 50, 0)?;
    let first = import("import RAM, 128 MiB", &store, &ram, Kind::Ram).await?;
    import(
        "import disk, 50 MiB (same content)",
        &store,
        &disk,
        Kind::Disk,
    )
    .await?;
    ram_file(&ram, 128, 10)?;
    let second = import("import RAM, 1 % of pages changed", &store, &ram, Kind::Ram).await?;
    import("import RAM, unchanged", &store, &ram, Kind::Ram).await?;

    let begun = Instant::now();
    export_file(&store, &second.manifest, &back, &quiet).await?;
    println!(
        "{:<34} {}",
        "export RAM",
        rate(second.manifest.size, begun.elapsed())
    );

    let net = MemoryNet::new(Duration::from_micros(100));
    let (a, b) = (net.add(MemberId([1; 32])), net.add(MemberId([2; 32])));
    let source = Exchange::start(a.clone(), store.clone(), ExchangeOptions::default());
    let target = Exchange::start(
        b,
        ChunkStore::open(dir.path().join("b"))?,
        ExchangeOptions::default(),
    );
    for (what, imported) in [
        ("fetch RAM, in one process", &first),
        ("fetch RAM, 1 % of pages changed", &second),
    ] {
        let begun = Instant::now();
        let report = target.fetch(imported.id, &[a.me()], &quiet).await?;
        println!(
            "{what:<34} {}   {:4} chunks came, {:4} were there, {:6.1} MiB on the wire",
            rate(imported.manifest.size, begun.elapsed()),
            report.fetched_chunks,
            report.present_chunks,
            report.fetched_bytes as f64 / MIB as f64,
        );
        target
            .store()
            .pin(imported.id, imported.id.short().as_str())?;
    }
    drop(source);
    Ok(())
}
