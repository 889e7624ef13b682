//! Two VMs of one name: each was made while the network was cut in two. When it is whole again the
//! records of names come to one owner everywhere (`p2pvm_dht::conflict`: the one that more of the
//! name's replicas have, and between equal halves a coin that falls the same way for all). That VM
//! keeps the name. The other runs on under the name and the beginning of its own id.

use super::{Activity, Entry, Host, Role, Slot};
use crate::Error;
use p2pvm_overlay::{MemberId, VmId, chain};
use std::{collections::BTreeSet, sync::Arc};

/// How many rounds after a member connected check names. Reason: records need a while to come to
/// one owner.
const ROUNDS: u32 = 4;
/// How many letters of its id a VM's new name ends with; the second number if the first leads to a
/// taken name.
const LETTERS: [usize; 2] = [4, 8];
/// How many letters a name may have. Reason: it is a DNS label.
const LONGEST: usize = 63;

/// The name of a VM that cannot keep its own.
fn suffixed(name: &str, vm: VmId, letters: usize) -> String {
    let id = vm.to_string();
    let kept = &name[..name.len().min(LONGEST - 1 - letters)];
    format!("{}-{}", kept.trim_end_matches('-'), &id[..letters])
}

/// Which rounds check names.
#[derive(Default)]
pub(crate) struct NameChecks {
    known: BTreeSet<MemberId>,
    left: u32,
}

impl NameChecks {
    /// Whether this round checks names: for a while after a member connected, which may come from
    /// the other half of a network that was cut.
    pub(crate) fn due(&mut self, connected: Vec<MemberId>) -> bool {
        let now: BTreeSet<MemberId> = connected.into_iter().collect();
        if !now.is_subset(&self.known) {
            self.left = ROUNDS;
        }
        self.known = now;
        let due = self.left > 0;
        self.left = self.left.saturating_sub(1);
        due
    }
}

impl Host {
    /// Checks that the VM has its name in the network; takes another if it has not. `renew` extends
    /// the life of the name's record.
    pub(crate) async fn keep_name(&self, slot: &Arc<Slot>, renew: bool) {
        // While an operation works on the VM its name stays; the next round checks again.
        let Ok(_operation) = slot.begin(Activity::Checking) else {
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
            tracing::info!(vm = %name, error = %chain(&e), "the VM's name will be checked again");
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
            again: this one is renamed");
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
        slot.set_unpublished(true);
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
    fn names_are_checked_only_for_a_while_after_a_member_came() {
        let (a, b) = (MemberId([1; 32]), MemberId([2; 32]));
        let mut checks = NameChecks::default();
        assert!((0..ROUNDS).all(|_| checks.due(vec![a])));
        assert!(!checks.due(vec![a]) && !checks.due(vec![]), "nobody new");
        assert!(checks.due(vec![a, b]), "one came");
    }
}
