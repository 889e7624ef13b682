//! What the heirs of the VMs here have answered.

use p2pvm_overlay::{Epoch, MemberId, VmId};
use std::{collections::BTreeMap, sync::Mutex};

/// An heir's answer to its host.
pub(super) type Said = Result<(), String>;

/// What the heirs of one VM have answered, each in which epoch of it.
type Answers = BTreeMap<MemberId, (Epoch, Said)>;

/// What the heirs of the VMs here have answered.
#[derive(Default)]
pub(crate) struct ToldHeirs(pub(super) Mutex<BTreeMap<VmId, Answers>>);
