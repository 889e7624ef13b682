//! The bytes of every node of a manifest's tree. A node's name is the hash of them: were they
//! others, the same file would have another id.

use super::*;
use crate::{
    ManifestId,
    golden::{self, variants},
};
use p2pvm_overlay::{Epoch, UnixTime, VmId};

fn file(kind: Kind) -> Root {
    Root::File(FileRoot {
        kind,
        size: (1 << 30) - 5,
        chunk_bytes: 64 << 10,
        pages: vec![(0, ChunkId([1; 32])), (3, ChunkId([2; 32]))],
        meta: BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]),
    })
}

fn checkpoint(ram: Option<ManifestId>, image: Option<ManifestId>) -> Root {
    Root::Checkpoint(Checkpoint {
        vm: VmId([3; 32]),
        name: "before".into(),
        taken: UnixTime(1_796_000_000),
        epoch: Epoch(300),
        ram,
        disk: ManifestId(ChunkId([4; 32])),
        image,
        spec: vec![1, 2, 3],
    })
}

fn roots() -> Vec<(&'static str, Root)> {
    let (ram, image) = (ManifestId(ChunkId([5; 32])), ManifestId(ChunkId([6; 32])));
    variants! {
        Root::File(FileRoot { kind: Kind::Image, .. }) => { "root.image": file(Kind::Image) }
        Root::File(FileRoot { kind: Kind::Disk, .. }) => { "root.disk": file(Kind::Disk) }
        Root::File(FileRoot { kind: Kind::Ram, .. }) => { "root.ram": file(Kind::Ram) }
        Root::File(FileRoot { kind: Kind::Other, .. }) => { "root.other": file(Kind::Other) }
        Root::Checkpoint(Checkpoint { ram: Some(_), .. }) => {
            "root.checkpoint": checkpoint(Some(ram), Some(image))
        }
        Root::Checkpoint(Checkpoint { ram: None, .. }) => {
            "root.checkpoint-stopped": checkpoint(None, Some(image)),
            "root.checkpoint-alone": checkpoint(None, None),
        }
    }
}

#[test]
fn the_previous_version_reads_every_node_of_a_manifest() {
    golden::check("manifest", |golden| {
        golden.messages(
            roots(),
            |root| encode(ROOT_MAGIC, root),
            |bytes| parse_root(bytes).ok(),
        );
        golden.message(
            "page",
            &Page(vec![(0, ChunkId([7; 32])), (4095, ChunkId([8; 32]))]),
            |page| encode(PAGE_MAGIC, page),
            |bytes| parse_page(bytes, PAGE_BLOCKS).ok(),
        );
    });
}
