//! What uses the disk: each chunk file counts once, for the first of images, own snapshots,
//! replicas of other members and unreferenced chunks that names it.

use super::{ChunkStore, Pin};
use crate::{ChunkId, Error, ManifestId};
use p2pvm_overlay::MemberId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Chunks on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub chunks: u64,
    /// Their bytes on disk, compressed.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }
}

/// A pinned manifest: how much it names, and how much of that nothing else names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedManifest {
    /// The manifest.
    pub manifest: ManifestId,
    /// The labels of its pins.
    pub labels: BTreeSet<String>,
    /// Whether this member pinned it for itself.
    pub is_own: bool,
    /// The other members that had it pinned.
    pub owners: BTreeSet<MemberId>,
    /// All that it names here.
    pub all: Amount,
    /// What goes if its pins go.
    pub alone: Amount,
}

/// What uses the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All chunks here.
    pub all: Amount,
    /// Those that an image of this host names.
    pub images: Amount,
    /// Those that a snapshot of this host names, and no image.
    pub own: Amount,
    /// Those that only replicas of other members name, by member; a chunk of several members counts
    /// for the first by id.
    pub replicas: BTreeMap<MemberId, Amount>,
    /// Those that nothing names: they go at a collection.
    pub unreferenced: Amount,
    /// Each pinned manifest.
    pub manifests: Vec<PinnedManifest>,
}

/// The part of a chunk in the census; the least one that names it counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Image,
    Own,
    Replica(MemberId),
}

impl ChunkStore {
    /// Counts what uses the disk. `image_label` is the label of images' pins.
    ///
    /// # Errors
    /// [`Error::Io`]; of a damaged manifest what was noted when it was pinned is counted.
    pub fn census(&self, image_label: &str) -> Result<Census, Error> {
        let mut pins: BTreeMap<ManifestId, Vec<Pin>> = BTreeMap::new();
        for pin in self.pins()? {
            pins.entry(pin.manifest).or_default().push(pin);
        }
        // How many manifests name a chunk, and for what it is used.
        let mut used: HashMap<ChunkId, (u32, Use)> = HashMap::new();
        let mut named: Vec<(ManifestId, HashSet<ChunkId>)> = Vec::new();
        for (manifest, pins) in &pins {
            let names = self.names_of(*manifest)?;
            let of = |pin: &Pin| match pin.owner {
                None if pin.label == image_label => Use::Image,
                None => Use::Own,
                Some(owner) => Use::Replica(owner),
            };
            let Some(what) = pins.iter().map(of).min() else {
                continue;
            };
            for chunk in &names {
                let entry = used.entry(*chunk).or_insert((0, what));
                *entry = (entry.0 + 1, entry.1.min(what));
            }
            named.push((*manifest, names));
        }
        let mut census = Census::default();
        let mut sizes: HashMap<ChunkId, u64> = HashMap::new();
        self.each_file(|id, entry| {
            // One that went meanwhile counts no more.
            let Ok(about) = entry.metadata() else { return };
            census.all.add(about.len());
            sizes.insert(id, about.len());
            match used.get(&id) {
                None => census.unreferenced.add(about.len()),
                Some((_, Use::Image)) => census.images.add(about.len()),
                Some((_, Use::Own)) => census.own.add(about.len()),
                Some((_, Use::Replica(owner))) => {
                    census.replicas.entry(*owner).or_default().add(about.len());
                }
            }
        })?;
        for (manifest, names) in named {
            let pins = &pins[&manifest];
            let (mut all, mut alone) = (Amount::default(), Amount::default());
            for (chunk, bytes) in names.iter().filter_map(|c| Some((c, sizes.get(c)?))) {
                all.add(*bytes);
                if used.get(chunk).is_some_and(|(times, _)| *times == 1) {
                    alone.add(*bytes);
                }
            }
            census.manifests.push(PinnedManifest {
                manifest,
                labels: pins.iter().map(|pin| pin.label.clone()).collect(),
                is_own: pins.iter().any(|pin| pin.owner.is_none()),
                owners: pins.iter().filter_map(|pin| pin.owner).collect(),
                all,
                alone,
            });
        }
        Ok(census)
    }

    /// All that a manifest names, as far as is known.
    fn names_of(&self, id: ManifestId) -> Result<HashSet<ChunkId>, Error> {
        let mut names = HashSet::new();
        let walked = self.walk(id, |chunk| {
            names.insert(chunk);
            true
        });
        match walked {
            Ok(()) => {}
            Err(other @ Error::Io { .. }) => return Err(other),
            Err(_) => names.extend(self.noted_names(id).unwrap_or_default()),
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extent, Hold, Kind, Manifest};

    fn manifest(store: &ChunkStore, seeds: &[u8]) -> (ManifestId, Hold) {
        let mut batch = store.batch();
        let chunks = seeds.iter().enumerate().map(|(block, seed)| Extent {
            block: block as u64,
            chunk: batch.put(&[*seed; 4096]).unwrap(),
        });
        let manifest = Manifest {
            kind: Kind::Disk,
            size: 4096 * seeds.len() as u64,
            chunk_bytes: 4096,
            chunks: chunks.collect(),
            meta: BTreeMap::new(),
        };
        let id = manifest.store(&mut batch).unwrap();
        (id, batch.finish().unwrap())
    }

    #[test]
    fn each_chunk_counts_once_and_sums_up_to_all() {
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path()).unwrap();
        let (image, a) = manifest(&store, &[1, 2]);
        let (own, b) = manifest(&store, &[2, 3, 4]);
        let (replica, c) = manifest(&store, &[4, 5]);
        let (_unused, d) = manifest(&store, &[6]);
        let member = MemberId([9; 32]);
        store.pin(image, "image").unwrap();
        store.pin(own, "vm-snapshot").unwrap();
        store
            .set_pin(&Pin::of(member, replica, "vm-snapshot"))
            .unwrap();
        drop((a, b, c, d));
        let census = store.census("image").unwrap();
        // With each manifest's root and page.
        assert_eq!(census.images.chunks, 2 + 2);
        assert_eq!(census.own.chunks, 2 + 2);
        assert_eq!(census.replicas[&member].chunks, 1 + 2);
        assert_eq!(census.unreferenced.chunks, 1 + 2);
        let sum = census.images.chunks + census.own.chunks + 3 + census.unreferenced.chunks;
        assert_eq!(census.all.chunks, sum);
        let of_own = census.manifests.iter().find(|m| m.manifest == own);
        let of_own = of_own.expect("it is pinned");
        assert_eq!((of_own.all.chunks, of_own.alone.chunks), (5, 3));
        let dry = store.gc_dry_run(std::time::Duration::ZERO).unwrap();
        assert_eq!(dry.removed, census.unreferenced.chunks);
        assert_eq!(dry.freed_bytes, census.unreferenced.bytes);
        assert_eq!(store.count().unwrap(), census.all.chunks, "nothing went");
    }
}
