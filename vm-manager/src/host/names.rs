//! Two VMs of one name: each was made while the network was cut in two. When it is whole again the
//! records of names come to one owner everywhere (`p2pvm_dht::conflict`: the one that more of the
//! name's replicas have, and between equal halves a coin that falls the same way for all). That VM
//! keeps the name. The other runs on under the name and the beginning of its own id.

use super::{Entry, Host, Role, Slot};
use crate::Error;
use p2pvm_overlay::{MemberId, VmId, chain};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

/// Rounds of the guard after a member came in which names are looked at. Reason: records need a
/// while to come to one owner.
pub(super) const LOOKS: u32 = 4;
/// Letters of its id that a VM's new name ends with; more if that name is taken as well.
const LETTERS: [usize; 2] = [4, 8];
/// Letters that a name may have: a DNS label's.
const LONGEST: usize = 63;

/// The name of a VM that cannot keep its own.
fn suffixed(name: &str, vm: VmId, letters: usize) -> String {
    let id = vm.to_string();
    let kept = &name[..name.len().min(LONGEST - 1 - letters)];
    format!("{}-{}", kept.trim_end_matches('-'), &id[..letters])
}

/// Which rounds look at names.
#[derive(Default)]
pub(super) struct Looks {
    known: BTreeSet<MemberId>,
    left: u32,
}

impl Looks {
    /// Whether this round does: for a while after a member came, which may be from the other half
    /// of a network that was cut.
    pub(super) fn due(&mut self, connected: Vec<MemberId>) -> bool {
        let now: BTreeSet<MemberId> = connected.into_iter().collect();
        if !now.is_subset(&self.known) {
            self.left = LOOKS;
        }
        self.known = now;
        let due = self.left > 0;
        self.left = self.left.saturating_sub(1);
        due
    }
}

impl Host {
    /// Sees to it that the VM has its name in the network, or takes another. `renew` makes the
    /// name's record last longer.
    pub(super) async fn keep_name(&self, slot: &Arc<Slot>, renew: bool) {
        // While something is done with the VM its name stays; the next round looks again.
        let Ok(_busy) = slot.begin_quietly() else {
            return;
        };
        let entry = slot.entry();
        if entry.role != Role::Held {
            return;
        }
        let (name, vm) = (&entry.definition.name, entry.definition.vm);
        let kept = match self.directory.resolve(name).await {
            Ok(Some(owner)) if owner == vm && !renew => Ok(()),
            Ok(Some(owner)) if owner != vm => self.rename(slot, &entry).await,
            Ok(_) => self.directory.take_name(&entry.secret.keys(), name).await,
            Err(e) => Err(e),
        };
        if let Err(e) = kept {
            tracing::info!(vm = %name, error = %chain(&e), "the VM's name will be looked at again");
        }
    }

    async fn rename(&self, slot: &Arc<Slot>, entry: &Entry) -> Result<(), Error> {
        let (keys, old, vm) = (
            entry.secret.keys(),
            entry.definition.name.clone(),
            entry.definition.vm,
        );
        let new = self.take_suffixed(&keys, &old, vm).await?;
        let note = format!(
            "it was called {old} until another VM of that name came with the rest of the network, \
                which was cut off"
        );
        let entry = self.update(slot, |e| {
            (e.definition.name, e.note) = (new.clone(), Some(note))
        })?;
        tracing::warn!(vm = %new, was = %old, "another VM has the name since the network is whole \
            again: this one is called so from now on");
        self.publish(slot).await;
        if slot.machine().is_some() {
            // The guest's port answers by the new name.
            self.parts
                .port
                .attach(
                    &self.registry.spec(&entry),
                    &entry.definition.address,
                    entry.epoch,
                )
                .await?;
        }
        self.parts
            .port
            .renamed(&keys, &entry.definition, entry.epoch, &old)
            .await?;
        slot.unpublished.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn take_suffixed(
        &self,
        keys: &p2pvm_overlay::identity::KeyPair,
        old: &str,
        vm: VmId,
    ) -> Result<String, Error> {
        let mut last = None;
        for letters in LETTERS {
            let new = suffixed(old, vm, letters);
            match self.directory.take_name(keys, &new).await {
                Ok(()) => return Ok(new),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::NotFound(old.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_suffix_is_still_a_name() {
        let vm = VmId([7; 32]);
        for name in [
            "dup",
            "a-b",
            &"x".repeat(63),
            &format!("{}-{}", "x".repeat(57), "y".repeat(5)),
        ] {
            for letters in LETTERS {
                let new = suffixed(name, vm, letters);
                assert!(
                    crate::definition::check_name(&new).is_ok() && new != *name,
                    "{new}"
                );
            }
        }
        assert!(suffixed("dup", vm, 4).starts_with("dup-"));
    }

    #[test]
    fn names_are_looked_at_for_a_while_after_a_member_came_and_not_in_between() {
        let (a, b) = (MemberId([1; 32]), MemberId([2; 32]));
        let mut looks = Looks::default();
        assert!((0..LOOKS).all(|_| looks.due(vec![a])));
        assert!(!looks.due(vec![a]) && !looks.due(vec![]), "nobody new");
        assert!(looks.due(vec![a, b]), "one came");
    }
}
