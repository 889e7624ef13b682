//! Reads what the VMs and replicas here use, every ten seconds, and settles the accounts every
//! minute: keeps them on the disk and sends the receipts that are due.

use super::{
    desk::{self, Desk},
    files::Files,
    meter::{Amount, Meter, Reading, SeenFlow, SeenVm},
    sums::{self, Key, Rows},
};
use crate::parts::Parts;
use p2pvm_authority::Usage;
use p2pvm_host::{chain, lock};
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use p2pvm_snapshot_sync::Exchange;
use p2pvm_vm_manager::{
    directory::Directory,
    host::{Host, VmState, VmStatus},
};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};
use tokio::time::MissedTickBehavior;

/// How often what is used here is read.
/// Reason: what a VM uses between its start or end and the next reading is not counted.
const READ_EVERY: Duration = Duration::from_secs(10);
/// How often the accounts are written and receipts sent.
/// Reason: a killed daemon loses the use of this time.
const SETTLE_EVERY: Duration = Duration::from_secs(60);
/// How many of these rounds pass before the replicas are measured again.
/// Reason: measuring reads the list of chunks of each replica.
const MEASURE_ROUNDS: u32 = 60;

/// The accounts of this member.
pub(crate) struct Accounting {
    pub(super) parts: Arc<Parts>,
    pub(super) desk: Arc<Desk>,
    host: Arc<Host>,
    chunks: Weak<Exchange>,
    /// Its clock, CLOCK_MONOTONIC, stands still while the machine sleeps, as its guests do.
    began: Instant,
    meter: Mutex<Meter>,
    /// By owner, since the daemon started.
    totals: Mutex<Rows>,
    /// MiB of replicas stored for other members, as last measured.
    kept: Mutex<BTreeMap<MemberId, u64>>,
}

impl Accounting {
    /// Reads what was kept in `dir`, and answers other members from now on.
    pub(crate) fn open(
        (parts, host, chunks): (Arc<Parts>, Arc<Host>, Weak<Exchange>),
        dir: PathBuf,
    ) -> Arc<Self> {
        let directory = Arc::new(Directory::new(parts.records.clone()));
        let identity = parts.identity.clone();
        Arc::new(Self {
            desk: Desk::open(parts.fabric(), identity, directory, Files::new(dir)),
            parts,
            host,
            chunks,
            began: Instant::now(),
            meter: Mutex::default(),
            totals: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    /// Reads and settles until the daemon ends.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.keep_reading(), self.keep_settling());
    }

    /// Keeps what was used until now.
    pub(crate) async fn close(&self) {
        self.read().await;
        self.desk.keep(UnixTime::now());
    }

    async fn keep_reading(&self) {
        let mut every = tokio::time::interval(READ_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.read().await;
        }
    }

    async fn keep_settling(&self) {
        for round in 0u32.. {
            tokio::time::sleep(SETTLE_EVERY).await;
            if round.is_multiple_of(MEASURE_ROUNDS) {
                self.measure_replicas().await;
            }
            self.desk.settle(UnixTime::now()).await;
        }
    }

    async fn read(&self) {
        let here = once_each(self.host.list());
        let stats = self.host.stats().await.vms.into_iter();
        let cpu: HashMap<VmId, Duration> = stats.map(|vm| (vm.vm, vm.machine.cpu_time)).collect();
        let me = self.parts.me();
        let seen = |vm: &VmStatus| {
            let address = &vm.definition.address;
            SeenVm {
                vm: vm.definition.vm,
                owner: vm.owner.unwrap_or(me),
                size: desk::size_of(&vm.definition),
                has_memory: has_memory(vm.state),
                cpu: cpu.get(&vm.definition.vm).copied(),
                addresses: [address.v4.into(), address.v6.into()],
            }
        };
        let flows = self.parts.plane.traffic().flows.into_iter();
        let reading = Reading {
            at: self.began.elapsed(),
            vms: here.values().map(seen).collect(),
            flows: flows
                .map(|flow| SeenFlow {
                    local: flow.local,
                    remote: flow.remote,
                    sent: flow.sent,
                    received: flow.received,
                })
                .collect(),
            kept: lock(&self.kept).clone(),
        };
        let (elapsed, amounts) = lock(&self.meter).measure(reading);
        let named = |(vm, status): (VmId, VmStatus)| {
            let name = status.definition.name;
            (vm, (status.owner.unwrap_or(me), name))
        };
        let here = here.into_iter().map(named).collect();
        self.add_up(&amounts);
        // The period of a receipt has whole seconds.
        let seconds = elapsed.as_millis().div_ceil(1000) as u64;
        let mut state = self.desk.state();
        state.ledger.note(me, (UnixTime::now(), seconds), &amounts);
        state.ledger.note_here(&here);
    }

    fn add_up(&self, amounts: &[Amount]) {
        for amount in amounts {
            let key = Key {
                member: Some(amount.owner),
                vm: None,
            };
            sums::put(&mut lock(&self.totals), key, amount.used);
        }
    }

    /// How many snapshots and images here lack chunks that no connected member could give.
    pub(crate) fn unrepaired(&self) -> Option<f64> {
        let chunks = self.chunks.upgrade()?;
        Some(chunks.unrepaired() as f64)
    }

    /// What was used here since the daemon started, by the owner's name.
    pub(crate) fn totals(&self) -> Vec<(String, Usage)> {
        let totals = lock(&self.totals).clone();
        let named = |(key, used): (Key, Usage)| (self.name(key.member), used);
        totals.into_iter().map(named).collect()
    }

    async fn measure_replicas(&self) {
        let Some(chunks) = self.chunks.upgrade() else {
            return;
        };
        let store = chunks.store().clone();
        let measured = tokio::task::spawn_blocking(move || store.kept_by_member()).await;
        match measured {
            Ok(Ok(kept)) => {
                let me = self.parts.me();
                let others = kept.into_iter().filter(|(owner, _)| *owner != me);
                *lock(&self.kept) = others.map(|(owner, bytes)| (owner, bytes >> 20)).collect();
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "the replicas are not measured");
            }
            Err(error) => tracing::debug!(error = %chain(&error), "the replicas are not measured"),
        }
    }
}

/// The VMs here, each once, without copies that lost their VM.
fn once_each(list: Vec<VmStatus>) -> BTreeMap<VmId, VmStatus> {
    let held = list.into_iter().filter(|vm| vm.state != VmState::Branch);
    held.map(|vm| (vm.definition.vm, vm)).collect()
}

/// Whether a guest has been given its memory.
fn has_memory(state: VmState) -> bool {
    match state {
        VmState::Running | VmState::Paused | VmState::Leaving | VmState::Doubtful => true,
        VmState::Stopped | VmState::Arriving | VmState::Branch | VmState::Remote => false,
    }
}
