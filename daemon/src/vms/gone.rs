//! The VMs of hosts that are gone, as the control API shows them: what their records say, why no
//! host answers for them, and what a person can do about it.

use super::{
    absent::{MAX_ASKED, Sighting, merged},
    service::Vms,
};
use crate::{clock, failure::OrFailure};
use p2pvm_api::{Outcome, VmStateView, VmView};
use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_vm_manager::{
    directory::{Snapshot, VmRecord},
    heal::heirs_of,
    host::{ReplicationStatus, VmState, VmStatus},
    protection::Replace,
    recovery::states,
};
use std::collections::BTreeSet;

/// "14:02 UTC", with the day where it was another.
fn time_of(seen: UnixTime, now: UnixTime) -> String {
    let (seen, now) = (clock::shown(seen), clock::shown(now));
    match (seen.get(..10), seen.get(11..16), now.get(..10)) {
        (Some(day), Some(time), Some(today)) if day == today => format!("{time} UTC"),
        (Some(day), Some(time), _) => format!("{day} {time} UTC"),
        _ => seen,
    }
}

/// Why no host answers for a VM.
fn sentence(host: &str, seen: Option<UnixTime>, now: UnixTime) -> String {
    match seen {
        Some(seen) => format!(
            "host {host} is dead since {} (last seen), or cut off from here",
            time_of(seen, now)
        ),
        None => format!(
            "host {host} is dead, or cut off from here: no member remembers when it was seen last"
        ),
    }
}

/// What a person can do about it; a host that is no member any more has no name here.
fn advice(name: &str, host: Option<&String>, holder: MemberId, snapshots: &[Snapshot]) -> String {
    let wait = host.map_or_else(String::new, |host| {
        format!("wait: when {host} is back, {name} is as it was; or ")
    });
    let elsewhere =
        |snapshot: &&Snapshot| snapshot.providers.iter().any(|member| *member != holder);
    match snapshots.iter().rev().find(elsewhere) {
        Some(newest) => format!(
            "{wait}'p2pvm vm restore {name}@{} --force' brings it back here as it was at {}: what \
                it did since is lost, and the copy \
             on its host becomes a branch",
            newest.name,
            clock::shown(newest.taken)
        ),
        None => {
            let why = if snapshots.is_empty() {
                "it has no snapshot"
            } else {
                "its snapshots are on that host alone"
            };
            format!(
                "{}{why}: nothing can bring it back elsewhere",
                wait.replace("; or ", "; ")
            )
        }
    }
}

/// What a person can do about a VM whose heirs wait for one.
fn takeover(name: &str, heirs: &[String]) -> Option<String> {
    let first = heirs.first()?;
    Some(format!(
        "it waits for a person: 'p2pvm vm takeover {name} --on {first}' starts it there from its \
            newest copy"
    ))
}

impl Vms {
    /// The heirs of a VM that wait for a person, by name.
    fn waiting_heirs(&self, record: &VmRecord) -> Vec<String> {
        if record.protection.replace != Replace::Ask {
            return Vec::new();
        }
        let heirs = heirs_of(record).into_iter();
        heirs.map(|member| self.parts.name_of(member)).collect()
    }

    /// A VM of a host that is gone, as its record has it.
    pub(crate) fn absent_view(&self, record: &VmRecord, seen: Option<UnixTime>) -> VmView {
        let (host, name) = (self.parts.name_of(record.holder), &record.definition.name);
        let member = self.absent.is_member(record.holder);
        let (state, note) = match member {
            true => (
                VmStateView::Unreachable,
                sentence(&host, seen, UnixTime::now()),
            ),
            false => (
                VmStateView::Orphaned,
                format!("its host {host} has left the network, or was expelled"),
            ),
        };
        let status = VmStatus {
            name: name.clone(),
            state: VmState::Remote,
            holder: record.holder,
            epoch: record.epoch,
            wanted: record.wanted,
            activity: None,
            definition: record.definition.clone(),
            snapshots: record.snapshots.clone(),
            still: None,
            replication: ReplicationStatus::of_record(
                &record.protection,
                record.replica.as_ref(),
                UnixTime::now(),
            ),
            note: Some(note),
            owner: record.owner,
            restart: None,
            user: record.user,
            backups: record.backups.clone(),
        };
        VmView {
            state,
            last_seen: seen.map(clock::shown),
            advice: takeover(name, &self.waiting_heirs(record)).or_else(|| {
                let host = member.then_some(&host);
                let mut states = states(record);
                states.reverse();
                Some(advice(name, host, record.holder, &states))
            }),
            cpu: None,
            moving: None,
            bandwidth: None,
            ..self.view(&status)
        }
    }

    /// The VMs of hosts that are gone, as far as this node knows without asking others.
    pub(crate) fn gone_here(&self) -> Vec<VmView> {
        self.absent
            .here()
            .iter()
            .map(|(record, seen)| self.absent_view(record, *seen))
            .collect()
    }

    /// Of what members `told`, the VMs whose host is not among those `heard`. A host that is not
    /// known to be gone is asked itself first, and what it says counts: its VMs come into `vms`.
    pub(crate) async fn absent_of(
        &self,
        told: Vec<Sighting>,
        heard: &BTreeSet<MemberId>,
        vms: &mut Vec<VmView>,
    ) -> Vec<VmView> {
        let read = |told: Sighting| {
            Some((
                VmRecord::of(&told.record).filter(|_| told.record.is_authentic())?,
                told.seen,
            ))
        };
        let unheard =
            |(vm, _): &(VmRecord, _)| vm.holder != self.parts.me() && !heard.contains(&vm.holder);
        let missing: Vec<(VmRecord, Option<UnixTime>)> = merged(told)
            .into_iter()
            .filter_map(read)
            .filter(unheard)
            .collect();
        let hosts: BTreeSet<MemberId> = missing.iter().map(|(vm, _)| vm.holder).collect();
        let doubtful = hosts
            .iter()
            .filter(|host| self.absent.gone(**host).is_none())
            .take(MAX_ASKED);
        let asked =
            doubtful.map(|host| async move { (*host, self.host.list_of(*host).await.ok()) });
        let mut there = BTreeSet::new();
        for (host, theirs) in futures::future::join_all(asked).await {
            let Some(theirs) = theirs else { continue };
            there.insert(host);
            vms.extend(theirs.iter().map(|vm| self.view(vm)));
        }
        let held: BTreeSet<&str> = vms
            .iter()
            .filter(|vm| !matches!(vm.state, VmStateView::Branch | VmStateView::Leftover))
            .map(|vm| vm.id.as_str())
            .collect();
        let missing = missing.iter().filter(|(vm, _)| {
            !there.contains(&vm.holder) && !held.contains(vm.definition.vm.to_string().as_str())
        });
        missing
            .map(|(vm, seen)| {
                self.absent_view(vm, (*seen).max(self.absent.gone(vm.holder).flatten()))
            })
            .collect()
    }

    /// A VM of a host that cannot be reached, as its record has it.
    pub async fn show_gone(&self, name: &str) -> Outcome<VmView> {
        let record = self.host.record(name).await.or_failure()?;
        Ok(self.absent_view(&record, self.absent.gone(record.holder).flatten()))
    }

    /// Whether a host is known to be gone.
    pub fn is_gone(&self, host: MemberId) -> bool {
        self.absent.gone(host).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixTime = UnixTime(1_795_953_720);

    fn member(n: u8) -> MemberId {
        MemberId([n; 32])
    }

    #[test]
    fn a_death_is_told_with_time_and_if_needed_the_day() {
        assert_eq!(
            sentence("lab3", Some(NOON), NOON.plus(60)),
            "host lab3 is dead since 12:02 UTC (last seen), or cut off from here"
        );
        let later = sentence("lab3", Some(NOON), NOON.plus(86_400));
        assert!(later.contains("2026-11-29 12:02 UTC"), "{later}");
        assert!(sentence("lab3", None, NOON).contains("no member remembers"));
    }

    #[test]
    fn the_advice_names_an_heir_that_waits_for_a_person() {
        assert_eq!(takeover("web", &[]), None);
        let said = takeover("web", &["lab2".into(), "lab3".into()]).unwrap();
        assert!(said.contains("vm takeover web --on lab2"), "{said}");
    }

    #[test]
    fn the_advice_names_a_snapshot_only_if_another_member_has_it() {
        let snapshot = |name: &str, holders: &[u8]| Snapshot {
            name: name.into(),
            checkpoint: p2pvm_snapshot_sync::ManifestId(p2pvm_snapshot_sync::ChunkId([1; 32])),
            taken: NOON,
            epoch: p2pvm_overlay::Epoch(1),
            with_ram: true,
            durability: p2pvm_vm_manager::vault::Durability::Local,
            providers: holders.iter().map(|n| member(*n)).collect(),
        };
        let of =
            |snapshots: &[Snapshot]| advice("web", Some(&"lab3".to_owned()), member(3), snapshots);
        assert!(
            of(&[snapshot("old", &[3, 4]), snapshot("new", &[3])])
                .contains("vm restore web@old --force")
        );
        assert!(of(&[snapshot("new", &[3])]).contains("on that host alone"));
        assert!(of(&[]).contains("no snapshot"));
        assert!(of(&[]).starts_with("wait: when lab3 is back, web is as it was"));
        assert!(
            !advice("web", None, member(3), &[]).contains("wait"),
            "for nobody"
        );
    }
}
