//! The bytes of a VM's record, and where it lies.

use super::*;
use crate::{
    definition::golden_tests::{definition, keys},
    golden::{self, variants},
};
use p2pvm_snapshot_sync::ChunkId;

/// A snapshot for each durability.
pub(crate) fn snapshots() -> Vec<(&'static str, Snapshot)> {
    let of = |with_ram, durability| Snapshot {
        name: "before".into(),
        checkpoint: ManifestId(ChunkId([0x12; 32])),
        taken: UnixTime(1_796_000_100),
        epoch: Epoch(2),
        with_ram,
        durability,
        providers: vec![MemberId([0x33; 32])],
    };
    let replicating = Durability::Replicating { done: 1, wanted: 2 };
    variants! {
        Snapshot { durability: Durability::Local, .. } => {
            "snapshot.local": of(false, Durability::Local)
        }
        Snapshot { durability: Durability::Replicating { .. }, .. } => {
            "snapshot.replicating": of(true, replicating)
        }
        Snapshot { durability: Durability::Durable, .. } => {
            "snapshot.durable": of(true, Durability::Durable)
        }
    }
}

/// A revocation of a token for the VM.
pub(crate) fn revoked() -> Revocations {
    let vm = p2pvm_authority::Resource::Vm(definition().vm);
    Revocations::unchecked([Revocation::sign(&keys(), vm, [0x36; 16], 1_796_000_000)])
}

fn record(wanted: RunGoal, owner: Option<MemberId>) -> VmRecord {
    VmRecord {
        definition: definition(),
        holder: MemberId([0x34; 32]),
        epoch: Epoch(300),
        wanted,
        snapshots: snapshots().into_iter().map(|(_, one)| one).collect(),
        owner,
        user: None,
        revoked: Revocations::NONE,
        protection: Protection::default(),
        replica: None,
        backups: crate::backups::Backups::NONE,
        restored: None,
    }
}

#[test]
fn members_of_the_previous_version_read_a_vms_record() {
    golden::check("directory", |golden| {
        let records = variants! {
            VmRecord { wanted: RunGoal::Running, owner: None, .. } => {
                "record.running": record(RunGoal::Running, None)
            }
            VmRecord { wanted: RunGoal::Stopped, owner: None, .. } => {
                "record.stopped": record(RunGoal::Stopped, None)
            }
            VmRecord { owner: Some(_), .. } => {
                "record.owned": record(RunGoal::Running, Some(MemberId([0x35; 32])))
            }
        };
        golden.messages(records, VmRecord::to_bytes, VmRecord::from_bytes);
        let revoking = VmRecord {
            revoked: revoked(),
            ..record(RunGoal::Running, Some(MemberId([0x35; 32])))
        };
        golden.message(
            "record.revoked",
            &revoking,
            VmRecord::to_bytes,
            VmRecord::from_bytes,
        );
        let of_user = VmRecord {
            user: Some([0x36; 32]),
            ..record(RunGoal::Running, Some(MemberId([0x35; 32])))
        };
        golden.message(
            "record.user",
            &of_user,
            VmRecord::to_bytes,
            VmRecord::from_bytes,
        );
        golden.messages(
            snapshots(),
            |one| postcard::to_allocvec(one).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.bytes("record.key", &vm_key(keys().vm_id()).0);
        golden.bytes("record.version", &version(Epoch(3), 7).to_be_bytes());
        golden.bytes("name.key", &name_key("web").0);
    });
}
