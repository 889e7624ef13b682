//! Protection of VMs against the loss of their host.

use super::{Method, Operation, WITH_MEMBERS, json, lines};
use crate::{ProtectVm, TakeOverVm, VmView};

/// What becomes of VMs whose host is lost.
pub(super) const HEALING: &[Operation] = &[
    json::<VmView>(
        Method::Post,
        "/vms/{name}/protection",
        WITH_MEMBERS,
        "Sets how a VM is protected against the loss of its host.",
    )
    .body::<ProtectVm>(),
    lines::<VmView>(
        Method::Post,
        "/vms/{name}/takeover",
        WITH_MEMBERS,
        "Starts a VM whose host is lost on an heir, here or on the member that the request names.",
    )
    .body::<TakeOverVm>(),
];
