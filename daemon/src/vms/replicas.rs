//! Puts on the board which VMs here have a replica that is too old, so that a loss of this host
//! would cost more than was asked for.

use p2pvm_host::Finding;
use p2pvm_vm_manager::host::VmStatus;

/// The board's area.
pub(super) const AREA: &str = "replicas";

/// The findings about these VMs.
pub(super) fn findings(vms: &[VmStatus]) -> Vec<Finding> {
    vms.iter().filter_map(finding).collect()
}

fn finding(vm: &VmStatus) -> Option<Finding> {
    let status = vm.replication.as_ref().filter(|status| status.is_late)?;
    let name = &vm.name;
    let found = format!(
        "the disk of {name} is replicated too late ({status}): every {} s was asked for",
        status.every_s
    );
    let advice = format!(
        "see that {} other members are connected and have room, or ask for less: 'p2pvm vm \
            replicate {name} --every 5m'",
        status.wanted
    );
    Some(Finding::warning(found, advice))
}
