//! `[heal]`: what this host does for VMs that are to outlive it.

use p2pvm_snapshot_sync::exchange::MIN_RATE;
use p2pvm_vm_manager::HostOptions;
use serde::{Deserialize, Serialize};

/// `[heal]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heal {
    /// At which rate replicas of running disks are sent to other members, bytes a second for all
    /// of them together.
    pub replica_rate: u64,
    /// Protect VMs here against the loss of this host, and start VMs of lost hosts here of which
    /// this one has a copy.
    pub protect: bool,
}

impl Default for Heal {
    fn default() -> Self {
        Self {
            replica_rate: HostOptions::default().replica_rate,
            protect: HostOptions::default().protects,
        }
    }
}

impl Heal {
    /// The error is a sentence for the user.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.replica_rate {
            rate if rate < MIN_RATE => Err(format!(
                "[heal] replica_rate must be at least {MIN_RATE} bytes a second, not {rate}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_at_which_copies_never_end_is_refused() {
        Heal::default().check().unwrap();
        let slow = Heal {
            replica_rate: 1000,
            ..Heal::default()
        };
        assert!(slow.check().unwrap_err().contains("replica_rate"));
    }
}
