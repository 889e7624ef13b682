//! Both sides of becoming an heir: the host tells, and the member that is told judges.

use super::inheritance::{Inheritance, not_heir};
use crate::{
    Host,
    host::{
        Slot, lock,
        remote::{VmAnswer, VmRequest},
    },
    protection::Replace,
    recovery::heirs_of,
    sealed::{KeyShare, ShareLetter},
};
use p2pvm_dht::VoterSet;
use p2pvm_overlay::{MemberId, VmId, chain};

impl Host {
    /// Tells the heirs of a protected VM here that they are heirs, those that do not know it;
    /// `again`: all of them.
    pub(crate) async fn tell_heirs(&self, slot: &Slot, again: bool) {
        let entry = slot.entry();
        let vm = entry.definition.vm;
        if !self.is_leased(vm) || entry.protection.replace == Replace::Never {
            lock(&self.told.0).remove(&vm);
            return;
        }
        let heirs = heirs_of(&entry.record(self.me));
        if let Some(told) = lock(&self.told.0).get_mut(&vm) {
            told.retain(|heir, _| heirs.contains(heir));
        }
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        for heir in heirs {
            let known = lock(&self.told.0)
                .get(&vm)
                .and_then(|told| told.get(&heir))
                .is_some_and(|(epoch, _)| *epoch == entry.epoch);
            if known && !again {
                continue;
            }
            let said = match self.ask_member(heir, &VmRequest::Heir(set.clone())).await {
                Ok(VmAnswer::Heir(said)) => said,
                Ok(_) => Err("it answers something else".into()),
                Err(e) => {
                    tracing::debug!(vm = %vm.short(), heir = %heir.short(), error = %chain(&e),
                        "an heir could not be told");
                    continue;
                }
            };
            if let Err(why) = &said {
                tracing::info!(vm = %entry.definition.name, heir = %heir.short(), why, "a member \
                    that has the VM's newest state is no heir of it");
            }
            let mut told = lock(&self.told.0);
            told.entry(vm)
                .or_default()
                .insert(heir, (entry.epoch, said));
        }
    }

    /// The members that start a VM of this host if the host is lost, as they have answered.
    pub fn heirs(&self, vm: VmId) -> Vec<MemberId> {
        let told = lock(&self.told.0);
        let heirs = told.get(&vm).into_iter().flatten();
        heirs
            .filter(|(_, (_, said))| said.is_ok())
            .map(|(heir, _)| *heir)
            .collect()
    }

    /// Becomes an heir of a VM that `from` has, if the VM's own record says so and this host may
    /// run it.
    pub(crate) async fn become_heir(&self, from: MemberId, set: &VoterSet) -> Result<(), String> {
        if !self.options.protects {
            return Err("this member is no heir: protect in [heal] of its node.toml".into());
        }
        if !set.is_authentic() {
            return Err("the voters are not signed with the VM's key".into());
        }
        let record = self.directory.record(set.vm).await.map_err(|e| chain(&e))?;
        let record = record.ok_or("no member has the VM's record")?;
        if record.holder != from {
            return Err("the VM is another member's by its record".into());
        }
        let mut voters = record.definition.voters.clone();
        voters.sort();
        if voters != set.voters {
            return Err("the VM has other voters by its record".into());
        }
        if let Some(why) = not_heir(&record, self.me) {
            self.inheritances.forget(set.vm);
            return Err(why.into());
        }
        let need = self
            .envelope
            .need_from(&record.definition, record.owner, record.holder);
        self.envelope.check(&need, true).map_err(|e| chain(&e))?;
        let one = Inheritance {
            set: set.clone(),
            record,
        };
        if self.inheritances.keep(one)? {
            tracing::info!(vm = %set.vm.short(), from = %from.short(), "an heir of this VM from \
                now on");
            self.watch_inheritance(set.vm);
        }
        Ok(())
    }

    /// As a voter: opens the envelope of a VM's snapshot for an heir that the VM's record names,
    /// once the lease of the VM's host has run out.
    pub(crate) async fn release_to_heir(
        &self,
        to: MemberId,
        envelope: &[u8],
        set: &VoterSet,
    ) -> Result<KeyShare, String> {
        let letter = ShareLetter::open(&self.parts.identity, envelope)
            .ok_or("the envelope is not for this member, or damaged")?;
        if letter.vm != set.vm || !set.is_authentic() {
            return Err("the voters are not those of the VM in the envelope".into());
        }
        let record = self
            .directory
            .record(letter.vm)
            .await
            .map_err(|e| chain(&e))?;
        let record = record.ok_or("no member has the VM's record")?;
        if let Some(why) = not_heir(&record, to) {
            return Err(why.into());
        }
        if record.protection.replace != Replace::Auto {
            return Err("the VM is started elsewhere only when a person says so".into());
        }
        let view = self.parts.ballot.lease(set).await.map_err(|e| chain(&e))?;
        if !view.protected || !view.free_in.is_zero() {
            return Err(format!(
                "the lease of its host runs for {} s more",
                view.free_in.as_secs() + 1
            ));
        }
        tracing::info!(vm = %letter.vm, to = %to.short(), "released a share of a snapshot's key \
            to an heir");
        Ok(letter.share)
    }
}
