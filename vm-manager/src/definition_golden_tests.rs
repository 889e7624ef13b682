//! A VM for the samples of all documents, and the bytes of its definition.

use super::*;
use crate::golden;
use p2pvm_snapshot_sync::ChunkId;

pub(crate) const IMAGE: ManifestId = ManifestId(ChunkId([0x11; 32]));

pub(crate) fn keys() -> KeyPair {
    KeyPair::from_seed(&[0x21; 32])
}

pub(crate) fn definition() -> Definition {
    Definition {
        vm: keys().vm_id(),
        name: "web".into(),
        cpus: 2,
        memory_mib: 512,
        disk_bytes: 10 << 30,
        image: IMAGE,
        voters: vec![MemberId([0x31; 32]), MemberId([0x32; 32])],
        address: GuestAddress {
            v4: Ipv4Addr::new(10, 1, 2, 3),
            prefix: 16,
            v6: Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7),
            mac: [2, 3, 4, 5, 6, 7],
            mtu: 1340,
        },
        created: UnixTime(1_796_000_000),
    }
}

#[test]
fn the_previous_version_reads_a_vms_definition_and_key() {
    golden::check("definition", |golden| {
        golden.message(
            "definition",
            &definition(),
            |vm| postcard::to_allocvec(vm).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.message(
            "secret",
            &VmSecret::of(&keys()),
            |secret| postcard::to_allocvec(secret).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
    });
}
