//! All VMs of the network, and where a branch lies.

use super::{absent::Sighting, service::Vms};
use crate::cluster::ask::{Question, read_all};
use p2pvm_api::{ClusterVms, Failure, Outcome, VmIdText, VmStateView, VmView};
use p2pvm_overlay::MemberId;
use std::collections::{BTreeMap, BTreeSet};

impl Vms {
    /// All VMs of the network, and the members that did not say which they have. Connected members
    /// that the ring does not reach yet are asked directly; VMs of hosts that do not answer are
    /// known from the records that others hold.
    pub async fn of_cluster(&self) -> Outcome<ClusterVms> {
        let connected = self.parts.fabric().connected();
        let (answers, told) = tokio::join!(
            self.questions.ask(Question::Vms),
            self.questions.ask(Question::Records)
        );
        let answers = answers?;
        let mut silent = self.questions.silent(&answers.dead);
        let mut heard: BTreeSet<MemberId> =
            answers.items.iter().map(|(member, _)| *member).collect();
        let mut vms: Vec<VmView> = read_all::<Vec<VmView>>(&answers)
            .into_iter()
            .flatten()
            .collect();
        if answers.asked <= connected.len() as u64 {
            let (more, unheard) = self.host.list_all().await;
            vms.extend(more.iter().map(|vm| self.view(vm)));
            heard.extend(connected.iter().filter(|member| !unheard.contains(member)));
            silent = unheard
                .into_iter()
                .map(|member: MemberId| self.parts.name_of(member))
                .collect();
        }
        if answers.truncated > 0 {
            silent.push(format!(
                "{} members whose answers did not fit",
                answers.truncated
            ));
        }
        // Without the others' records there is still what this node holds.
        let mut told: Vec<Sighting> = told
            .iter()
            .flat_map(|told| &told.items)
            .filter_map(|(_, bytes)| postcard::from_bytes::<Vec<Sighting>>(bytes).ok())
            .flatten()
            .collect();
        told.extend(self.absent.told_to_self().await);
        let absent = self.absent_of(told, &heard, &mut vms).await;
        vms.extend(absent);
        Ok(ClusterVms {
            vms: newest(vms),
            silent,
        })
    }

    /// All VMs of the network.
    pub async fn list(&self) -> Outcome<Vec<VmView>> {
        let found = self.of_cluster().await?;
        if !found.silent.is_empty() {
            tracing::info!(
                members = found.silent.len(),
                "some members did not say which VMs they have"
            );
        }
        Ok(found.vms)
    }

    /// On which member a branch lies: no record names it, so all are asked.
    pub(super) async fn has_branch(&self, name: &str) -> Outcome<MemberId> {
        let all = self.of_cluster().await?.vms;
        let found = all
            .iter()
            .find(|vm| vm.name == name)
            .and_then(|vm| vm.host_id.parse().ok());
        found.ok_or_else(|| {
            Failure::not_found(format!(
                "there is no branch '{name}' on a member that answers: see 'p2pvm vm list'"
            ))
        })
    }
}

/// Each VM once. While it moves two hosts name it: it is where it leaves from until it runs at the
/// other, which has the next epoch as soon as it waits for the guest. Otherwise the newer epoch is
/// right, and before that the one that knows of the move.
fn newest(vms: Vec<VmView>) -> Vec<VmView> {
    let rank = |vm: &VmView| {
        let is_there = vm.state != VmStateView::Arriving;
        (is_there, vm.epoch, vm.moving.is_some())
    };
    let mut newest: BTreeMap<(String, VmIdText), VmView> = BTreeMap::new();
    for vm in vms {
        let known = newest
            .entry((vm.name.clone(), vm.id.clone()))
            .or_insert_with(|| vm.clone());
        if rank(&vm) > rank(known) {
            *known = vm;
        }
    }
    newest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Moving;

    #[test]
    fn a_vm_named_twice_is_shown_by_epoch_then_by_mover() {
        let named = |host: &str, epoch, moving: Option<Moving>| VmView {
            name: "web".into(),
            host: host.into(),
            epoch,
            moving,
            ..VmView::default()
        };
        let of = |vms| {
            newest(vms)
                .into_iter()
                .map(|vm| vm.host)
                .collect::<Vec<_>>()
        };
        let (source, target) = (
            named("source", 3, Some(Moving::default())),
            named("target", 3, None),
        );
        assert_eq!(of(vec![target.clone(), source.clone()]), ["source"]);
        assert_eq!(of(vec![source.clone(), target]), ["source"]);
        assert_eq!(
            of(vec![source.clone(), named("target", 4, None)]),
            ["target"]
        );
        let waits = VmView {
            state: VmStateView::Arriving,
            ..named("target", 4, None)
        };
        assert_eq!(
            of(vec![waits.clone(), source.clone()]),
            ["source"],
            "the guest is not there yet"
        );
        assert_eq!(of(vec![source, waits.clone()]), ["source"]);
        assert_eq!(of(vec![waits]), ["target"], "nobody else says anything");
    }
}
