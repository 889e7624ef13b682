//! The bytes of a VM in a checkpoint.

use super::*;
use crate::{
    definition::golden_tests::{definition, keys},
    golden,
};

#[test]
fn the_previous_version_reads_the_vm_in_a_checkpoint() {
    golden::check("checkpoint", |golden| {
        let saved = SavedVm {
            definition: definition(),
            secret: VmSecret::of(&keys()),
            sealing: HoldingKeys::NONE,
        };
        golden.message("saved-vm", &saved, SavedVm::to_bytes, SavedVm::from_bytes);
    });
}

#[test]
fn a_saved_vm_brings_the_keys_of_its_snapshots() {
    let mut sealing = HoldingKeys::NONE;
    let key = [vec![0, 0, 0, 0, 0, 0, 0, 3], vec![9; 32]].concat();
    sealing.add_field(&key);
    let saved = SavedVm {
        definition: definition(),
        secret: VmSecret::of(&keys()),
        sealing,
    };
    let bytes = saved.to_bytes();
    assert!(bytes.ends_with(&[vec![KEY, 40], key].concat()));
    let later = [&bytes[..], &[200, 2, 7, 7]].concat();
    for bytes in [bytes, later] {
        assert_eq!(SavedVm::from_bytes(&bytes), Some(saved.clone()));
    }
}
