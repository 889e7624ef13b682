//! The text of a VM's file on its host.

use super::*;
use crate::{
    definition::golden_tests::{definition, keys},
    directory::golden_tests::{revoked, snapshots},
    golden::{self, variants},
};

const OTHER: MemberId = MemberId([0x51; 32]);

fn roles() -> Vec<(&'static str, Role)> {
    let doubtful = |side| Role::Doubtful {
        id: 7,
        side,
        other: OTHER,
    };
    let (to, from, holder) = (OTHER, OTHER, OTHER);
    variants! {
        Role::Held => { "held": Role::Held }
        Role::Leaving { .. } => { "leaving": Role::Leaving { id: 7, to, epoch: Epoch(4) } }
        Role::Arriving { .. } => { "arriving": Role::Arriving { id: 7, from } }
        Role::Doubtful { side: Side::Source, .. } => { "doubtful-source": doubtful(Side::Source) }
        Role::Doubtful { side: Side::Target, .. } => { "doubtful-target": doubtful(Side::Target) }
        Role::Unmade => { "unmade": Role::Unmade }
        Role::Branch { .. } => { "branch": Role::Branch { holder, newer: Epoch(4) } }
    }
}

fn entry(role: Role) -> Entry {
    Entry {
        definition: definition(),
        secret: VmSecret::of(&keys()),
        epoch: Epoch(3),
        arrived: Epoch(2),
        seq: 5,
        role,
        wanted: RunGoal::Running,
        snapshots: snapshots().into_iter().map(|(_, one)| one).collect(),
        note: Some("held".into()),
        gives_way: Some(MemberId([0x52; 32])),
        owner: Some(MemberId([0x53; 32])),
        user: None,
        revoked: Revocations::NONE,
        protection: Protection::default(),
        replica: None,
        sending: None,
        leased: false,
        healed: None,
        bits_per_second: None,
        backups: crate::backups::Backups::NONE,
        sealing: HoldingKeys::NONE,
        restored: None,
    }
}

/// An entry of a version without the fields that came later.
fn former() -> Entry {
    Entry {
        snapshots: Vec::new(),
        note: None,
        gives_way: None,
        owner: None,
        user: None,
        wanted: RunGoal::Stopped,
        ..entry(Role::Held)
    }
}

#[test]
fn the_next_version_reads_every_vms_file() {
    golden::check_texts("registry", |golden| {
        let entries = roles()
            .into_iter()
            .map(|(name, role)| (name, entry(role)))
            .collect();
        golden.messages(
            entries,
            |entry| serde_json::to_vec(entry).expect("plain fields"),
            |text| serde_json::from_slice(text).ok(),
        );
        golden.message(
            "stopped",
            &former(),
            |entry| serde_json::to_vec(entry).expect("plain fields"),
            |text| serde_json::from_slice(text).ok(),
        );
        let revoking = Entry {
            revoked: revoked(),
            ..entry(Role::Held)
        };
        golden.message(
            "revoking",
            &revoking,
            |entry| serde_json::to_vec(entry).expect("plain fields"),
            |text| serde_json::from_slice(text).ok(),
        );
        golden.previous("stopped.first", &former(), |text| {
            serde_json::from_slice(text).ok()
        });
        let name = incarnation(keys().vm_id(), Epoch(2));
        golden.bytes("directory", name.as_bytes());
    });
}
