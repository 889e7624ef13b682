//! Puts on the board that voters of VMs here are gone for good. A VM's voters are named when it is
//! made; without a majority of them its guest runs on, but is never started, moved or restored
//! again. While a majority is left, a person can still act. Replicas of VMs here that are too old
//! are looked for at the same time.

use super::{absent::AbsentHosts, replicas};
use crate::parts::Parts;
use p2pvm_api::EventKind;
use p2pvm_authority::Subject;
use p2pvm_host::Finding;
use p2pvm_overlay::{MemberId, VmId};
use p2pvm_vm_manager::{
    Definition,
    heal::Untaken,
    host::{Host, VmState},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often the voters are looked at. Reason: it matters after a day.
const EVERY: Duration = Duration::from_secs(30);
/// How long a member without a connection may still come back.
const LOST_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The board's area.
const AREA: &str = "voters";

/// The board's area about VMs of lost hosts that no heir starts.
const HEIRS: &str = "heirs";

/// The VMs of lost hosts that this heir does not start.
fn untaken(parts: &Parts, host: &Host) -> Vec<Finding> {
    let all = host.untaken().into_iter();
    let finding = |one: Untaken| {
        let from = parts.name_of(one.from);
        Finding::warning(
            format!(
                "{} of the lost host {from} is not started here: {}",
                one.name, one.why
            ),
            format!("'p2pvm vm show {}' says what can be done", one.name),
        )
    };
    all.map(finding).collect()
}

/// Looks until the daemon ends.
pub(crate) async fn watch(parts: Arc<Parts>, host: Arc<Host>, absent: Arc<AbsentHosts>) {
    let mut missed = Absences::default();
    let mut told = BTreeMap::new();
    loop {
        let vms = host.list();
        parts.board.set(replicas::AREA, replicas::findings(&vms));
        let vms = vms.into_iter().filter(|vm| vm.state != VmState::Branch);
        let vms: Vec<_> = vms.map(|vm| vm.definition).collect();
        let voters = vms.iter().flat_map(|vm| vm.voters.iter().copied());
        let voters: BTreeSet<_> = voters.filter(|voter| *voter != parts.me()).collect();
        let connected: BTreeSet<_> = parts.fabric().connected().into_iter().collect();
        // In a large network no member is connected with all, nor does it know all.
        let is_large = parts.control.size_estimate().is_some();
        let there = |voter: &MemberId| is_large || connected.contains(voter);
        let now = Instant::now();
        missed.note(now, &voters, there);
        let lost: BTreeSet<_> = voters
            .iter()
            .filter(|voter| missed.is_lost(now, voter) || !absent.is_member(**voter))
            .copied()
            .collect();
        let findings = vms.iter().filter_map(|vm| {
            let gone = vm.voters.iter().filter(|voter| lost.contains(voter));
            let gone: Vec<_> = gone.map(|voter| parts.name_of(*voter)).collect();
            finding(&vm.name, &gone, vm.voters.len())
        });
        parts.board.set(AREA, findings.collect());
        tell(&parts, &vms, &lost, &mut told);
        parts.board.set(HEIRS, untaken(&parts, &host));
        tokio::time::sleep(EVERY).await;
    }
}

/// Writes down which voters of which VMs are lost, each once until it is back; `told` has how often
/// in a row each was found lost. A daemon that has just started may not know all members yet.
fn tell(
    parts: &Parts,
    vms: &[Definition],
    lost: &BTreeSet<MemberId>,
    told: &mut BTreeMap<(VmId, MemberId), u32>,
) {
    let mut now = BTreeMap::new();
    for vm in vms {
        for voter in vm.voters.iter().filter(|voter| lost.contains(voter)) {
            let before = told.get(&(vm.vm, *voter)).copied().unwrap_or(0);
            now.insert((vm.vm, *voter), before.saturating_add(1));
            if before != 1 {
                continue;
            }
            let (name, voter) = (vm.name.clone(), parts.name_of(*voter));
            let text = format!("{voter}, a voter of {name}, left or was not seen for a day.");
            let (fields, subject) = ([("voter", voter)], Subject::Vm(vm.vm, name));
            parts
                .events
                .record(EventKind::VoterLost, subject, &fields, text);
        }
    }
    *told = now;
}

/// Members without a connection, and since when.
#[derive(Default)]
struct Absences(HashMap<MemberId, Instant>);

impl Absences {
    fn note(
        &mut self,
        now: Instant,
        voters: &BTreeSet<MemberId>,
        there: impl Fn(&MemberId) -> bool,
    ) {
        self.0
            .retain(|member, _| voters.contains(member) && !there(member));
        for voter in voters.iter().filter(|voter| !there(voter)) {
            self.0.entry(*voter).or_insert(now);
        }
    }

    fn is_lost(&self, now: Instant, member: &MemberId) -> bool {
        let since = self.0.get(member);
        since.is_some_and(|since| now.duration_since(*since) >= LOST_AFTER)
    }
}

/// The finding about a VM with this many voters, of which some are gone.
fn finding(name: &str, gone: &[String], voters: usize) -> Option<Finding> {
    let left = voters - gone.len();
    let majority = voters / 2 + 1;
    let who = match gone {
        [] => return None,
        [one] => format!("the member {one}"),
        several => format!("the members {}", several.join(", ")),
    };
    let back = "start its voters again, with their state directories";
    let copy = format!(
        "copy what {name} has into a new VM while it runs ('p2pvm vm create'): the new one gets \
            voters that are there"
    );
    let said =
        format!("{who} of the {voters} that vote on {name} left, or were not seen for a day");
    Some(if left < majority {
        Finding::failed(
            format!(
                "{said}: once it stops, it can be neither started, moved, restored nor deleted"
            ),
            format!("do not stop it; {back}, or {copy}"),
        )
    } else if left == majority {
        Finding::warning(
            format!("{said}: if one more goes, it can be neither started, moved nor restored"),
            format!("{back}, or {copy}"),
        )
    } else {
        Finding::note(format!("{said}: the others decide"), back)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::finding::Level;

    #[test]
    fn a_voter_is_lost_a_day_after_its_last_connection() {
        let (mut missed, begin) = (Absences::default(), Instant::now());
        let voter = MemberId([1; 32]);
        let voters = BTreeSet::from([voter]);
        missed.note(begin, &voters, |_| false);
        let soon = begin + LOST_AFTER - EVERY;
        missed.note(soon, &voters, |_| false);
        assert!(!missed.is_lost(soon, &voter));
        assert!(missed.is_lost(begin + LOST_AFTER, &voter));
        missed.note(begin + LOST_AFTER, &voters, |_| true);
        missed.note(begin + LOST_AFTER + EVERY, &voters, |_| false);
        assert!(!missed.is_lost(begin + LOST_AFTER + EVERY, &voter));
    }

    #[test]
    fn a_vm_warns_while_a_majority_of_voters_is_left() {
        let gone = |names: &[&str], voters| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            finding("web", &names, voters)
        };
        assert_eq!(gone(&[], 3), None);
        let one = gone(&["attic"], 3).unwrap();
        assert_eq!(one.level, Level::Warning);
        assert!(one.found.contains("the member attic of the 3"), "{one:?}");
        let two = gone(&["attic", "cellar"], 3).unwrap();
        assert_eq!(two.level, Level::Failed);
        assert!(two.advice.starts_with("do not stop it"), "{two:?}");
        assert_eq!(gone(&["attic"], 5).unwrap().level, Level::Ok);
        assert_eq!(gone(&["attic"], 1).unwrap().level, Level::Failed);
    }
}
