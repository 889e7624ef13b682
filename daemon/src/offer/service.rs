//! The owner's offer for the control API, and its task: puts changes into force at once, closes and
//! opens the offer by the clock and by signs of a person at the machine, and moves the VMs of other
//! members away when it ends. [`super::gate`] decides when.

use super::{
    gate::{Facts, Gate},
    kept::KeptOffer,
    load::OwnLoad,
};
use crate::{
    http::report::Reporter,
    parts::Parts,
    placement::{drain::Drains, manager::Manager},
};
use p2pvm_api::{
    DrainItem, EventKind, OfferChange, OfferEnded, OfferOff, OfferView, Outcome, VmDrained,
    VmStayed,
};
use p2pvm_authority::Subject;
use p2pvm_host::{chain, lock, presence};
use p2pvm_overlay::network_time::steady_millis;
use p2pvm_vm_manager::{
    directory::RunGoal,
    host::{Host, VmState},
    limit_processors,
    offer::Closed,
};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet};

/// How long between two looks at the clock and at signs of the owner.
/// Reason: the grace before VMs are moved is a minute.
const LOOK: Duration = Duration::from_secs(5);

/// The offer of this host.
pub(crate) struct Offers {
    pub(super) parts: Arc<Parts>,
    pub(super) host: Arc<Host>,
    manager: Arc<Manager>,
    drains: Arc<Drains>,
    /// This host's capacity in processors; 0 for all of the machine.
    cpus: u32,
    state: Mutex<State>,
    /// Wakes the task after a change.
    changed: Notify,
}

pub(super) struct State {
    pub(super) kept: KeptOffer,
    gate: Gate,
    /// The sign that the machine is busy, as last seen.
    busy: Option<String>,
    pub(super) closed: Option<Closed>,
    pub(super) evacuating: bool,
    /// The offer has opened, and the task has started no VM for that yet.
    opened: bool,
    /// VMs are to be moved away, and the task has not begun.
    evacuate: bool,
    /// Whether the processors of all guests together have been bounded here.
    bounded: bool,
}

impl Offers {
    /// Puts the offer into force.
    pub(crate) fn new(
        parts: Arc<Parts>,
        host: Arc<Host>,
        (manager, drains): (Arc<Manager>, Arc<Drains>),
        kept: KeptOffer,
        cpus: u32,
    ) -> Arc<Self> {
        let state = State {
            kept,
            gate: Gate::default(),
            busy: None,
            closed: None,
            evacuating: false,
            opened: false,
            evacuate: false,
            bounded: false,
        };
        let offers = Arc::new(Self {
            parts,
            host,
            manager,
            drains,
            cpus,
            state: Mutex::new(state),
            changed: Notify::new(),
        });
        offers.judge();
        offers
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether a VM of another member runs here.
    fn has_tenants(&self) -> bool {
        let others = self.host.names_of_others();
        let vms = self.host.list();
        vms.iter()
            .any(|vm| vm.state == VmState::Running && others.contains(&vm.name))
    }

    /// Asks the gate, and puts its answer into force. What follows from it the task does, whoever
    /// asked.
    fn judge(&self) {
        let has_tenants = self.has_tenants();
        let mut state = self.state();
        let facts = Facts {
            off: state.kept.now().off,
            not_in: state.kept.not_in(),
            busy: state.busy.clone().filter(|_| state.kept.now().idle_only),
            has_tenants,
        };
        let now = Duration::from_millis(steady_millis());
        let verdict = state.gate.handle(now, &facts);
        if was_told(&state.closed) != was_told(&verdict.closed) {
            match &verdict.closed {
                Some(closed) => tracing::info!("no VMs of other members are taken: {closed}"),
                None => tracing::info!("VMs of other members are taken"),
            }
        }
        state.closed.clone_from(&verdict.closed);
        let is_open = verdict.closed.is_none();
        state.opened = is_open && (state.opened || verdict.opened);
        state.evacuate = !is_open && (state.evacuate || verdict.evacuate);
        let terms = state.kept.terms(&self.parts, verdict.closed);
        self.host.offer(self.parts.certificate.name(), terms);
        let all_cpus = state.kept.now().all_cpus;
        if all_cpus > 0 || state.bounded {
            limit_processors((all_cpus > 0).then_some(all_cpus));
            state.bounded = all_cpus > 0;
        }
        drop(state);
        self.limit_guests();
        self.manager.offer(is_open);
    }

    /// Puts the bandwidth of each guest here into force; a later guest asks when it comes.
    fn limit_guests(&self) {
        for vm in self.host.list() {
            let vm = vm.definition.vm;
            self.parts
                .plane
                .limit_port(vm, self.host.bits_per_second(vm));
        }
    }

    /// Whether the offer has opened, and whether VMs are to be moved away; each is said once.
    pub(super) fn due(&self) -> (bool, bool) {
        let mut state = self.state();
        let due = (state.opened, state.evacuate);
        (state.opened, state.evacuate) = (false, false);
        due
    }

    /// Follows the clock and the signs of the owner, until the daemon ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut watch = presence::Watch::default();
        let mut load = OwnLoad::new(self.cpus);
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.changed.notified() => {}
            }
            let idle = {
                let state = self.state();
                let offer = state.kept.now();
                offer.idle_only.then(|| offer.idle.clone())
            };
            let busy = match idle {
                Some(idle) => {
                    let load = load.sample(&self.host).await;
                    idle.busy(&watch.look(), load)
                }
                None => None,
            };
            self.state().busy = busy;
            self.judge();
            let (opened, evacuate) = self.due();
            while tasks.try_join_next().is_some() {}
            // Both take long, and the offer may end or open again meanwhile.
            if opened {
                let this = self.clone();
                tasks.spawn(async move { this.start_again().await });
            }
            if evacuate {
                let this = self.clone();
                tasks.spawn(async move { this.evacuate().await });
            }
        }
    }

    /// Moves the VMs of other members away because the offer has ended. Those that cannot be moved
    /// run on, and are tried again.
    async fn evacuate(&self) {
        if std::mem::replace(&mut self.state().evacuating, true) {
            return;
        }
        tracing::info!("moving the VMs of other members away: the offer has ended");
        let others = self.host.names_of_others();
        let done = self
            .drains
            .evacuate(&|vm| others.contains(&vm.name), &Reporter::unheard())
            .await;
        for vm in &done.stayed {
            tracing::warn!(vm = %vm.name, why = %vm.why, "it runs on here although the offer has \
                ended: 'p2pvm offer off' stops it");
        }
        self.state().evacuating = false;
    }

    /// Starts VMs of other members that should run and were refused while the offer was closed.
    async fn start_again(&self) {
        let others = self.host.names_of_others();
        for vm in self.host.list() {
            let waits = vm.state == VmState::Stopped && vm.wanted == RunGoal::Running;
            if !waits || !others.contains(&vm.name) {
                continue;
            }
            if let Err(error) = self.host.start(&vm.name).await {
                tracing::info!(vm = %vm.name, error = %chain(&error), "it stays stopped");
            }
        }
    }

    /// Changes the offer, at once and for later starts.
    pub(crate) fn change(&self, change: &OfferChange) -> Outcome<OfferView> {
        self.state().kept.change(change)?;
        let text = "What this host offers to other members was changed.";
        let events = &self.parts.events;
        events.record(EventKind::OfferChanged, Subject::Host, &[], text);
        self.judge();
        self.changed.notify_one();
        Ok(self.show())
    }

    /// Ends the offer: nothing more is taken, other members' VMs are moved away, and those that
    /// cannot be moved are stopped, unless they are to be kept.
    pub(crate) async fn off(
        &self,
        wanted: OfferOff,
        reporter: &Reporter<DrainItem>,
    ) -> Outcome<OfferEnded> {
        self.change(&OfferChange {
            off: Some(true),
            ..OfferChange::default()
        })?;
        let others = self.host.names_of_others();
        let done = self
            .drains
            .evacuate(&|vm| others.contains(&vm.name), reporter)
            .await;
        let mut ended = OfferEnded {
            cancelled: done.cancelled,
            moved: done.moved,
            ..OfferEnded::default()
        };
        if wanted.keep || done.cancelled {
            ended.kept = done.stayed;
            return Ok(ended);
        }
        let (moved, all) = (ended.moved.len(), done.stayed.len());
        for (n, vm) in done.stayed.into_iter().enumerate() {
            reporter.phase(&format!("stopping {}", vm.name));
            let (stopped, why) = match self.host.stop(&vm.name).await {
                Ok(_) => (true, vm.why),
                Err(error) => {
                    let why = format!("{}; it cannot be stopped: {}", vm.why, chain(&error));
                    (false, why)
                }
            };
            let vm = VmStayed { name: vm.name, why };
            let said = VmStayed {
                why: match stopped {
                    true => format!("stopped, because it cannot be moved: {}", vm.why),
                    false => vm.why.clone(),
                },
                ..vm.clone()
            };
            // The caller may have gone; the VMs are stopped all the same.
            let _ = reporter
                .item(&DrainItem {
                    done: moved + n + 1,
                    of: moved + all,
                    vm: VmDrained::Stayed(said),
                })
                .await;
            match stopped {
                true => ended.stopped.push(vm),
                false => ended.kept.push(vm),
            }
        }
        Ok(ended)
    }
}

/// The reason without its figures: the log repeats no reason whose figures alone have changed.
fn was_told(closed: &Option<Closed>) -> Option<u8> {
    closed.as_ref().map(|closed| match closed {
        Closed::Off => 0,
        Closed::Hours(_) => 1,
        Closed::Busy(_) => 2,
    })
}
