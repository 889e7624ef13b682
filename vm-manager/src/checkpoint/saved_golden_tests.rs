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
        };
        golden.message("saved-vm", &saved, SavedVm::to_bytes, SavedVm::from_bytes);
    });
}
