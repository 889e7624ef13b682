//! Revoked tokens for a VM: kept with its definition, and taken along by moves, its record and
//! restores, because the host that has the VM checks tokens for it. The host that receives a
//! revocation first decides whether its signer may revoke; later hosts believe the hosts that had
//! the VM before them.

use super::{Host, Slot};
use crate::Error;
use p2pvm_authority::{Principal, Resource, Revocation, Revocations};
use p2pvm_overlay::{UnixTime, VmId, chain};

/// The revocations that another member or a record tells, as far as they are signed and have not
/// expired.
pub(crate) fn checked(vm: VmId, told: &Revocations) -> Revocations {
    let now = UnixTime::now().0;
    Revocations::of_told(Resource::Vm(vm), told.iter().copied(), now)
}

impl Host {
    /// The revoked tokens for a VM here; none for a VM elsewhere.
    pub fn revoked(&self, vm: VmId) -> Revocations {
        let slot = self.slot_of(vm);
        slot.map_or(Revocations::NONE, |slot| slot.entry().revoked)
    }

    /// Keeps a revocation with a VM here; says whether it was new. The caller has decided that its
    /// signer counts. Without room it replaces one whose signer does not. It is in the VM's record
    /// after the next round.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the VM is not here, [`Error::Refused`] with the reason, or the file
    /// system's.
    pub fn revoke(
        &self,
        vm: VmId,
        revocation: Revocation,
        counts: impl Fn(&Principal) -> bool,
    ) -> Result<bool, Error> {
        let slot = self.slot_of(vm);
        let slot = slot.ok_or_else(|| Error::NotFound(format!("the VM {}", vm.short())))?;
        let mut revoked = slot.entry().revoked;
        let signers = revoked.iter().map(|one| one.signer);
        let strangers: Vec<Principal> = signers.filter(|signer| !counts(signer)).collect();
        let keeps = |signer: &Principal| !strangers.contains(signer);
        let now = UnixTime::now().0;
        let added = revoked.add_over(Resource::Vm(vm), revocation, now, keeps);
        let refused = |why: p2pvm_authority::RevokeError| Error::Refused(why.to_string());
        if !added.map_err(refused)? {
            return Ok(false);
        }
        // Once more on the entry as it is then: another revocation may have come between.
        self.update(&slot, |entry| {
            let _ = entry
                .revoked
                .add_over(Resource::Vm(vm), revocation, now, keeps);
        })?;
        slot.set_unpublished(true);
        Ok(true)
    }

    /// Forgets revocations of tokens that have ended by themselves.
    pub(crate) fn drop_ended_revocations(&self, slot: &Slot) {
        let (now, mut revoked) = (UnixTime::now().0, slot.entry().revoked);
        if !revoked.drop_ended(now) {
            return;
        }
        let dropped = self.update(slot, |entry| {
            entry.revoked.drop_ended(now);
        });
        match dropped {
            Ok(_) => slot.set_unpublished(true),
            Err(error) => tracing::warn!(error = %chain(&error), "cannot forget revocations of \
                tokens that have expired"),
        }
    }
}
