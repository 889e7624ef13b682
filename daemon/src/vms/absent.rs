//! The VMs of hosts that are dead or cut off. No host answers for them; what the network knows of
//! them is in their records, which other members hold. Each member looks through its own replica
//! for VMs whose host is gone (its health follows from that), and tells a member that asks for all
//! VMs what it holds. Records are signed by the VMs' own keys: no member can make up another's VM.
//!
//! Whether a silent host is dead or only cut off from here cannot be told from here; both are said.

use crate::parts::Parts;
use p2pvm_dht::{Record, StoreError};
use p2pvm_host::lock;
use p2pvm_overlay::{MemberId, RingAddr, UnixTime, VmId};
use p2pvm_vm_manager::{
    directory::{VmRecord, vm_key},
    host::Host,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How long between two looks through this node's own records.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long before a host without a connection counts as gone. Reason: after a start, and after a
/// change of network, all hosts are without one for a moment.
const GRACE: Duration = Duration::from_secs(10);
/// How many members nearest to a record's place tell of it. Reason: the nearest may have died
/// itself and not be missed yet.
const TELLERS: usize = 3;
/// How many hosts are asked one by one. Reason: one that is only slow must not be called dead.
pub(super) const MAX_ASKED: usize = 32;

/// A VM's record, and when the member that tells of it last saw the VM's host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sighting {
    pub(super) record: Record,
    pub(super) seen: Option<UnixTime>,
}

/// What is told of several VMs, each once: the newest record, and the last time that a member saw
/// its host.
pub(crate) fn merged(told: impl IntoIterator<Item = Sighting>) -> Vec<Sighting> {
    let mut newest: BTreeMap<RingAddr, Sighting> = BTreeMap::new();
    for one in told {
        let known = newest.entry(one.record.key).or_insert_with(|| one.clone());
        let seen = known.seen.max(one.seen);
        if one.record.version > known.record.version {
            known.record = one.record;
        }
        known.seen = seen;
    }
    newest.into_values().collect()
}

#[derive(Default)]
struct State {
    /// The VM records that this node holds, as last looked at.
    held: Vec<(Record, VmRecord)>,
    /// When each host was seen last.
    seen: HashMap<MemberId, UnixTime>,
    /// Hosts without a connection, and since when.
    missed: HashMap<MemberId, Instant>,
    /// Those of them that are gone.
    gone: BTreeSet<MemberId>,
}

impl State {
    /// Takes in which of the VMs' hosts are there.
    fn note(&mut self, now: Instant, at: UnixTime, there: &BTreeMap<MemberId, bool>) {
        self.missed
            .retain(|member, _| there.get(member) == Some(&false));
        for (member, there) in there {
            if *there {
                self.seen.insert(*member, at);
            } else {
                self.missed.entry(*member).or_insert(now);
            }
        }
        self.gone = self
            .missed
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= GRACE)
            .map(|(member, _)| *member)
            .collect();
        self.seen.retain(|member, _| there.contains_key(member));
    }
}

/// Watches for hosts that are gone.
pub struct AbsentHosts {
    parts: Arc<Parts>,
    host: Arc<Host>,
    state: Mutex<State>,
}

impl AbsentHosts {
    pub(crate) fn new(parts: Arc<Parts>, host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            parts,
            host,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The records of VMs that this node holds.
    async fn vm_records(&self) -> Result<Vec<Record>, StoreError> {
        self.parts
            .records
            .held_here(|record| record.key == vm_key(VmId(record.owner)))
            .await
    }

    /// Looks until the daemon ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut broken = false;
        loop {
            let held = self.vm_records().await;
            // Once, not at each look.
            if let Err(error) = held.as_ref()
                && !broken
            {
                tracing::warn!(error = %p2pvm_host::chain(error), "the VMs of dead hosts cannot \
                    be found out here");
            }
            broken = held.is_err();
            if let Ok(records) = held {
                self.look(records).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, records: Vec<Record>) {
        let read = |record: Record| VmRecord::of(&record).map(|vm| (record, vm));
        let held: Vec<_> = records.into_iter().filter_map(read).collect();
        let me = self.parts.me();
        let hosts: BTreeSet<MemberId> = held
            .iter()
            .map(|(_, vm)| vm.holder)
            .filter(|holder| *holder != me)
            .collect();
        let connected: BTreeSet<MemberId> = self.parts.fabric().connected().into_iter().collect();
        // In a large network no member is connected with all.
        let large = self.parts.control.size_estimate().is_some();
        let asked = hosts
            .iter()
            .filter(|host| large && !connected.contains(*host))
            .take(MAX_ASKED);
        let asked =
            asked.map(|host| async move { (*host, self.host.list_of(*host).await.is_ok()) });
        let answered: BTreeMap<MemberId, bool> =
            futures::future::join_all(asked).await.into_iter().collect();
        let there = |host: &MemberId| {
            answered
                .get(host)
                .copied()
                .unwrap_or_else(|| connected.contains(host) || large)
        };
        let there: BTreeMap<MemberId, bool> =
            hosts.iter().map(|host| (*host, there(host))).collect();
        let mut state = self.lock();
        state.held = held;
        state.note(Instant::now(), UnixTime::now(), &there);
    }

    /// What this node tells a member that asks for all VMs: the records whose place it is near.
    pub(crate) fn told_here(&self) -> Vec<Sighting> {
        let (fabric, me) = (self.parts.fabric(), self.parts.me());
        let state = self.lock();
        let near = state
            .held
            .iter()
            .filter(|(record, _)| fabric.nearby(record.key, TELLERS).contains(&me));
        near.map(|(record, vm)| Sighting {
            record: record.clone(),
            seen: state.seen.get(&vm.holder).copied(),
        })
        .collect()
    }

    /// All that this node holds, read again. Reason: the asker may have been told of a record since
    /// the last look, and where a host has just died its neighbours may not be asked in time.
    pub(crate) async fn told_to_self(&self) -> Vec<Sighting> {
        let held = self.vm_records().await.unwrap_or_default();
        let state = self.lock();
        let seen = |record: &Record| {
            VmRecord::of(record).and_then(|vm| state.seen.get(&vm.holder).copied())
        };
        held.into_iter()
            .map(|record| Sighting {
                seen: seen(&record),
                record,
            })
            .collect()
    }

    /// The VMs of hosts that are gone, as far as this node knows without asking others.
    pub(crate) fn here(&self) -> Vec<(VmRecord, Option<UnixTime>)> {
        let state = self.lock();
        let gone = state
            .held
            .iter()
            .filter(|(_, vm)| state.gone.contains(&vm.holder));
        gone.map(|(_, vm)| (vm.clone(), state.seen.get(&vm.holder).copied()))
            .collect()
    }

    /// Whether a host is still one of this network, as far as is known: in a large one nobody knows
    /// all.
    pub(super) fn is_member(&self, host: MemberId) -> bool {
        let control = &self.parts.control;
        control.size_estimate().is_some() || control.peers().iter().any(|peer| peer.member == host)
    }

    /// When a host that is gone was seen last; `None` for one that is there, or that this node
    /// knows nothing of.
    pub(crate) fn gone(&self, host: MemberId) -> Option<Option<UnixTime>> {
        let state = self.lock();
        state
            .gone
            .contains(&host)
            .then(|| state.seen.get(&host).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::identity::KeyPair;

    fn member(n: u8) -> MemberId {
        MemberId([n; 32])
    }

    #[test]
    fn a_host_missed_for_a_while_is_gone_and_back_at_once() {
        let (mut state, begin) = (State::default(), Instant::now());
        let look = |there| BTreeMap::from([(member(1), there)]);
        state.note(begin, UnixTime(100), &look(true));
        state.note(begin + LOOK_EVERY, UnixTime(105), &look(false));
        assert!(
            state.gone.is_empty(),
            "a moment without a connection is no death"
        );
        state.note(begin + LOOK_EVERY + GRACE, UnixTime(115), &look(false));
        assert_eq!(
            (state.gone.len(), state.seen.get(&member(1))),
            (1, Some(&UnixTime(100)))
        );
        state.note(begin + 2 * GRACE, UnixTime(120), &look(true));
        assert_eq!(
            (state.gone.len(), state.seen.get(&member(1))),
            (0, Some(&UnixTime(120)))
        );
    }

    #[test]
    fn of_what_several_tell_the_newest_record_and_the_last_sight_count() {
        let keys = KeyPair::generate();
        let told = |version, seen| Sighting {
            record: Record::sign(
                &keys,
                vm_key(keys.vm_id()),
                version,
                UnixTime(9),
                Some(vec![1]),
            ),
            seen: Some(UnixTime(seen)),
        };
        let one = merged([told(2, 5), told(3, 4), told(1, 7)]);
        assert_eq!(
            one.iter()
                .map(|t| (t.record.version, t.seen))
                .collect::<Vec<_>>(),
            [(3, Some(UnixTime(7)))]
        );
    }
}

#[cfg(test)]
#[path = "absent_golden_tests.rs"]
mod golden_tests;
