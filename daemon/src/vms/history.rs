//! What happened to a VM, in the words of the control API: its events on this host, their proof,
//! and its restart policy.

use super::service::Vms;
use crate::failure::OrFailure;
use p2pvm_api::{EventsWanted, Explained, Failure, Outcome, ProofView, RestartWord, SetVm, VmView};
use p2pvm_overlay::VmId;
use p2pvm_vm_manager::protection::Restart;

/// How many of a VM's events `explain` lists.
const EXPLAINED: usize = 200;

/// A restart policy as the control API says it.
pub(super) fn restart_word(restart: Restart) -> RestartWord {
    match restart {
        Restart::Always => RestartWord::Always,
        Restart::OnFailure => RestartWord::OnFailure,
        Restart::Never => RestartWord::Never,
    }
}

/// The policy that is meant.
pub(super) fn restart(word: &RestartWord) -> Outcome<Restart> {
    match word {
        RestartWord::Always => Ok(Restart::Always),
        RestartWord::OnFailure => Ok(Restart::OnFailure),
        RestartWord::Never => Ok(Restart::Never),
        RestartWord::Other(word) => Err(Failure::usage(format!(
            "restart must be always, on-failure or never, not '{word}'"
        ))),
    }
}

impl Vms {
    /// Changes a VM's settings.
    pub(crate) async fn set(&self, name: &str, r: &SetVm) -> Outcome<VmView> {
        match &r.restart {
            None => self.show(name).await,
            Some(word) => {
                let set = self.host.set_restart(name, restart(word)?).await;
                Ok(self.view(&set.or_failure()?))
            }
        }
    }

    /// A VM's latest events on this host, as rows of `explain`.
    pub(super) async fn happened(&self, vm: VmId) -> Outcome<Vec<Explained>> {
        let wanted = EventsWanted {
            limit: Some(EXPLAINED),
            vm: Some(vm.to_string()),
            ..EventsWanted::default()
        };
        let page = self
            .parts
            .events
            .page(&wanted, self.parts.certificate.name());
        let row = |event: p2pvm_api::EventView| Explained {
            at: event.at,
            host: event.host,
            text: event.text,
            details: None,
        };
        Ok(page.await?.events.into_iter().map(row).collect())
    }

    /// The signed chain of a VM's events on this host.
    pub(crate) async fn proof(&self, name: &str) -> Outcome<ProofView> {
        let vm = self.host.status(name).await.or_failure()?.definition.vm;
        let certificate = &self.parts.certificate;
        let proof = self.parts.events.proof(certificate, vm).await?;
        Ok(ProofView {
            proof: data_encoding::BASE64.encode(&proof.to_bytes()),
        })
    }
}
