//! Moves the VMs of this host elsewhere: a few at a time, the smallest first, each to the member
//! that has been given least so far. A failed move is tried with other members and then skipped;
//! the other VMs go on. docs/decisions/0033 has the reasons.

use super::{manager::Manager, moves};
use crate::{http::report::Reporter, parts::Parts};
use futures::{StreamExt, stream};
use p2pvm_api::{
    DrainAnswer, DrainItem, DrainStopping, EventKind, Outcome, VmDrained, VmMoved, VmStayed,
};
use p2pvm_authority::Subject;
use p2pvm_host::lock;
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::{
    Error,
    host::{Activity, Host, VmState, VmStatus},
    hypervisor::MigrateOptions,
    migrate::{Occasion, RunningSide},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// How many VMs are moved at a time. Reason: a move spends most of its time waiting for the target
/// and for round trips, and several share one uplink.
const LANES: usize = 2;
/// How many members one VM is offered to before it stays.
const TRIES: usize = 3;
/// How long before a VM that another request is moving is checked again.
const LOOK: Duration = Duration::from_millis(500);

/// The drains of this host: one at a time.
pub(crate) struct Drains {
    parts: Arc<Parts>,
    host: Arc<Host>,
    manager: Arc<Manager>,
    one: tokio::sync::Mutex<()>,
    stopped: AtomicBool,
}

/// The targets of the VMs.
#[derive(Default)]
struct Places {
    /// How many MiB each member has been given by this drain, or is about to be given.
    given: BTreeMap<MemberId, u64>,
}

impl Places {
    /// The member for a VM of `mib` MiB: of `known`, best first, the one that has been given least;
    /// none of `tried`.
    fn choose(&mut self, known: &[MemberId], tried: &[MemberId], mib: u64) -> Option<MemberId> {
        let free = known.iter().filter(|member| !tried.contains(member));
        let best = free
            .min_by_key(|member| self.given.get(member).copied().unwrap_or_default())
            .copied()?;
        *self.given.entry(best).or_default() += mib;
        Some(best)
    }

    /// Takes the VM back from a member that it did not move to.
    fn give_back(&mut self, member: MemberId, mib: u64) {
        if let Some(given) = self.given.get_mut(&member) {
            *given = given.saturating_sub(mib);
        }
    }
}

/// The result for one VM.
enum VmResult {
    Moved(VmMoved),
    /// The reason why it stays.
    Stays(String),
    /// It went without this drain.
    Gone,
}

/// The order of the VMs. Reason: with a deadline, most of them are away soonest.
fn in_order(mut vms: Vec<VmStatus>) -> Vec<VmStatus> {
    vms.sort_by(|a, b| (a.definition.memory_mib, &a.name).cmp(&(b.definition.memory_mib, &b.name)));
    vms
}

impl Drains {
    pub(crate) fn new(parts: Arc<Parts>, host: Arc<Host>, manager: Arc<Manager>) -> Self {
        Self {
            parts,
            host,
            manager,
            one: tokio::sync::Mutex::default(),
            stopped: AtomicBool::default(),
        }
    }

    /// This host's VMs.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Moves every VM that runs here elsewhere; a VM that stays is reported with the reason. A
    /// second call waits for the first and then moves the rest.
    pub async fn drain(&self, reporter: &Reporter<DrainItem>) -> Outcome<DrainAnswer> {
        let _one = self.one.lock().await;
        self.manager.accept(false);
        let done = self.move_all(&|_| true, reporter).await;
        if done.cancelled {
            self.manager.accept(true);
        } else {
            self.manager.rest();
        }
        let (moved, stayed) = (done.moved.len(), done.stayed.len());
        let fields = [("moved", moved.to_string()), ("stayed", stayed.to_string())];
        let text = format!("A drain of this host ended: {moved} VMs moved, {stayed} stayed.");
        let (kind, subject) = (EventKind::HostDrained, Subject::Host);
        self.parts.events.record(kind, subject, &fields, text);
        Ok(done)
    }

    /// Moves those of the running VMs elsewhere that `which` names; new VMs may come meanwhile, as
    /// far as the offer of this host allows it.
    pub async fn evacuate(
        &self,
        which: &(dyn Fn(&VmStatus) -> bool + Sync),
        reporter: &Reporter<DrainItem>,
    ) -> DrainAnswer {
        let _one = self.one.lock().await;
        self.move_all(which, reporter).await
    }

    async fn move_all(
        &self,
        which: &(dyn Fn(&VmStatus) -> bool + Sync),
        reporter: &Reporter<DrainItem>,
    ) -> DrainAnswer {
        self.stopped.store(false, Ordering::Release);
        let places = Mutex::new(Places::default());
        let (mut handled, mut moved, mut stayed) = (BTreeSet::new(), Vec::new(), Vec::new());
        loop {
            let runs = |vm: &VmStatus| {
                matches!(
                    vm.state,
                    VmState::Running | VmState::Leaving | VmState::Paused
                ) || vm.still.is_some()
            };
            let left: Vec<_> = self
                .host
                .list()
                .into_iter()
                .filter(|vm| runs(vm) && which(vm) && !handled.contains(&vm.name))
                .collect();
            if left.is_empty() {
                break;
            }
            handled.extend(left.iter().map(|vm| vm.name.clone()));
            let all = handled.len();
            let moves =
                stream::iter(in_order(left)).map(|vm| self.move_away(vm, &places, reporter));
            let mut moves = moves.buffer_unordered(LANES);
            while let Some((name, end)) = moves.next().await {
                let vm = match end {
                    VmResult::Moved(vm) => {
                        moved.push(vm.clone());
                        VmDrained::Moved(vm)
                    }
                    VmResult::Stays(why) => {
                        let vm = VmStayed { name, why };
                        stayed.push(vm.clone());
                        VmDrained::Stayed(vm)
                    }
                    VmResult::Gone => continue,
                };
                // The caller may have gone; the drain goes on.
                let _ = reporter
                    .item(&DrainItem {
                        done: moved.len() + stayed.len(),
                        of: all,
                        vm,
                    })
                    .await;
            }
        }
        let stopped: Vec<String> = self
            .host
            .list()
            .into_iter()
            .filter(|vm| vm.state == VmState::Stopped && which(vm))
            .map(|vm| vm.name)
            .collect();
        DrainAnswer {
            cancelled: self.stopped.load(Ordering::Acquire),
            moved,
            stayed,
            stopped,
        }
    }

    /// Starts no more moves; those under way run to their end.
    pub fn stop(&self) -> DrainStopping {
        let stopping = self.one.try_lock().is_err();
        self.stopped.store(true, Ordering::Release);
        DrainStopping { stopping }
    }

    /// The members that a VM may go to, best first.
    fn places_for(&self, vm: &VmStatus) -> Vec<MemberId> {
        let connected = self.parts.fabric().connected();
        let mut known: Vec<MemberId> = self.manager.places_for(vm.definition.vm);
        known.extend(self.manager.by_load());
        known.extend(connected.iter().copied());
        let mut seen = BTreeSet::new();
        known.retain(|member| connected.contains(member) && seen.insert(*member));
        known
    }

    async fn move_away(
        &self,
        vm: VmStatus,
        places: &Mutex<Places>,
        reporter: &Reporter<DrainItem>,
    ) -> (String, VmResult) {
        let (name, mib) = (vm.name.clone(), vm.definition.memory_mib);
        let lock = || lock(places);
        let (mut tried, mut why) = (
            Vec::new(),
            "no other member is connected that could take it".to_owned(),
        );
        while tried.len() < TRIES {
            if self.stopped.load(Ordering::Acquire) {
                return (
                    name,
                    VmResult::Stays("not begun: the drain was stopped".to_owned()),
                );
            }
            match self.here_now(&name).await.map(|vm| vm.state) {
                None => return (name, VmResult::Gone),
                Some(VmState::Running) => {}
                Some(_) => {
                    return (
                        name,
                        VmResult::Stays("it does not run: only a running VM moves".to_owned()),
                    );
                }
            }
            let Some(to) = lock().choose(&self.places_for(&vm), &tried, mib) else {
                break;
            };
            tried.push(to);
            reporter.phase(&format!("{name} to {}", self.parts.name_of(to)));
            let progress = watch::Sender::default();
            self.manager
                .moves
                .follow(&name, self.parts.name_of(to), &progress);
            let occasion = Occasion {
                cause: "drain",
                ..Occasion::default()
            };
            match self
                .host
                .migrate_because(occasion, &name, to, MigrateOptions::default(), progress)
                .await
            {
                Ok(outcome) => {
                    match moves::moved(&self.parts, &outcome) {
                        Ok(vm) => return (name, VmResult::Moved(vm)),
                        Err(failure) => why = failure.message,
                    }
                    if outcome.cancelled || outcome.runs_on == RunningSide::Undecided {
                        return (name, VmResult::Stays(why));
                    }
                }
                Err(Error::NotFound(_)) => return (name, VmResult::Gone),
                Err(error) => return (name, VmResult::Stays(p2pvm_host::chain(&error))),
            }
            lock().give_back(to, mib);
        }
        (name, VmResult::Stays(why))
    }

    /// A VM here, once no request is moving it.
    async fn here_now(&self, name: &str) -> Option<VmStatus> {
        loop {
            let vm = self.host.list().into_iter().find(|vm| vm.name == name)?;
            if vm.activity != Some(Activity::Migrating) {
                return Some(vm);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_spreads_vms_and_follows_a_refusal_to_the_next() {
        let [a, b] = [1, 2].map(|n| MemberId([n; 32]));
        let mut places = Places::default();
        let mut choose = |tried: &[MemberId], mib| places.choose(&[a, b], tried, mib);
        assert_eq!(
            [choose(&[], 128), choose(&[], 256), choose(&[], 64)],
            [Some(a), Some(b), Some(a)],
            "the best first, then the least given"
        );
        assert_eq!((choose(&[a], 512), choose(&[a, b], 64)), (Some(b), None));
        places.give_back(b, 512);
        places.give_back(b, 256);
        assert_eq!(
            places.choose(&[a, b], &[], 64),
            Some(b),
            "what it refused does not count"
        );
    }
}
