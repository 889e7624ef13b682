//! What the heirs of the VMs here have answered.

use p2pvm_overlay::{Epoch, MemberId, VmId};
use std::{collections::BTreeMap, sync::Mutex};

/// An heir's answer to its host.
pub(super) type Said = Result<(), String>;

/// What the heirs of the VMs here have answered, each in which epoch of its VM.
#[derive(Default)]
pub(crate) struct ToldHeirs(pub(super) Mutex<BTreeMap<VmId, BTreeMap<MemberId, (Epoch, Said)>>>);
