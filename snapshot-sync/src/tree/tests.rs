//! Nodes come from peers: whatever the bytes, parsing says what is wrong and never more than that.

use super::*;
use crate::ManifestId;
use proptest::prelude::*;

fn roles() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Root),
        Just(Role::File),
        (0..=PAGE_BLOCKS).prop_map(|blocks| Role::Page {
            blocks,
            block_bytes: 65536
        }),
        Just(Role::Data { bytes: 65536 }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        role in roles(), body in any::<Vec<u8>>(), magic in 0u8..3
    ) {
        let head: &[u8] = match magic { 0 => ROOT_MAGIC, 1 => PAGE_MAGIC, _ => &[] };
        let _ = children(role, &[head, &body].concat());
    }

    #[test]
    fn a_page_never_reaches_beyond_its_file(
        blocks in 0u64..100, within in proptest::collection::btree_set(0u16..200, 0..50)
    ) {
        let page = Page(within.iter().map(|w| (*w, ChunkId([1; 32]))).collect());
        let parsed = children(Role::Page { blocks, block_bytes: 4096 }, &encode(PAGE_MAGIC, &page));
        prop_assert_eq!(parsed.is_ok(), within.last().is_none_or(|last| u64::from(*last) < blocks));
    }
}

#[test]
fn a_root_with_pages_out_of_order_or_bounds_is_refused() {
    let of = |pages: Vec<u32>| {
        let pages = pages
            .into_iter()
            .map(|number| (number, ChunkId([2; 32])))
            .collect();
        encode(
            ROOT_MAGIC,
            &Root::File(FileRoot {
                kind: Kind::Disk,
                size: 32 << 20,
                chunk_bytes: 4096,
                pages,
                meta: BTreeMap::new(),
            }),
        )
    };
    assert!(parse_root(&of(vec![0, 1])).is_ok());
    assert!(parse_root(&of(vec![1, 0])).is_err());
    assert!(parse_root(&of(vec![1, 1])).is_err());
    assert!(parse_root(&of(vec![2])).is_err());
}

#[test]
fn a_checkpoint_within_a_checkpoint_is_refused() {
    let disk = ManifestId(ChunkId([3; 32]));
    let checkpoint = Checkpoint {
        vm: p2pvm_overlay::VmId([1; 32]),
        name: String::new(),
        taken: p2pvm_overlay::UnixTime(0),
        epoch: p2pvm_overlay::Epoch(1),
        ram: None,
        disk,
        image: None,
        spec: Vec::new(),
    };
    let bytes = encode(ROOT_MAGIC, &Root::Checkpoint(checkpoint));
    assert_eq!(
        children(Role::Root, &bytes).unwrap(),
        vec![(Role::File, disk.0)]
    );
    assert!(children(Role::File, &bytes).is_err());
}
