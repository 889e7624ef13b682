//! An heir's watch over the hosts of its VMs: a thin shell around [`Heir`], one task a VM.

use super::{
    inheritance::{Inheritance, not_heir},
    take::{Outcome, RECORD_LIMIT, Tries},
};
use crate::{
    Host,
    checkpoint::Right,
    directory::VmRecord,
    host::remote::{VmAnswer, VmRequest},
};
use p2pvm_dht::votes::lease::{Heir, HeirInput, HeirOutput, Terms, Ward};
use p2pvm_overlay::{Epoch, MemberId, VmId, chain};
use std::{collections::VecDeque, time::Duration};

/// How long a task sleeps at most before it looks whether its VM's heirs have changed.
const LOOK: Duration = Duration::from_secs(10);
/// How long it sleeps at least.
const LEAST: Duration = Duration::from_millis(20);
/// How long a host's word that it runs a VM counts, if it answers for another VM then.
const RAN: Duration = Duration::from_secs(30);

/// What an heir finds at its VM's host.
enum Found {
    /// No answer.
    Silent,
    /// The guest, or one that may be the VM's.
    Guest,
    /// The VM without a guest: stopped, or a branch.
    NoGuest,
    /// No such VM.
    NoVm,
}

/// One heir's machine with what it is about to be told.
struct Watched {
    heir: Heir,
    ward: Ward,
    inputs: VecDeque<HeirInput>,
    tries: Tries,
    /// When the host was asked that said last that it has the VM's guest.
    ran: Option<Duration>,
    /// The VM has another host by now.
    is_past: bool,
}

impl Watched {
    fn new(ward: Ward) -> Self {
        Self {
            heir: Heir::new(Terms::REAL, ward),
            ward,
            inputs: VecDeque::from([HeirInput::Tick]),
            tries: Tries::default(),
            ran: None,
            is_past: false,
        }
    }

    fn is_over(&self) -> bool {
        self.is_past || self.heir.is_over()
    }
}

impl Host {
    /// Watches the hosts of all VMs that this host is an heir of, in tasks.
    pub(crate) fn watch_inheritances(&self) {
        for vm in self.inheritances.vms() {
            self.watch_inheritance(vm);
        }
    }

    /// Watches one VM's host in a task, until this host is no heir of it.
    pub(super) fn watch_inheritance(&self, vm: VmId) {
        if !self.inheritances.begin_watch(vm) {
            return;
        }
        let (this, clock) = (self.weak(), self.clock.clone());
        self.spawn(async move {
            let mut watched: Option<Watched> = None;
            loop {
                let wait = {
                    let Some(host) = this.upgrade() else { return };
                    let Some(one) = host.inheritances.get(vm) else {
                        match host.inheritances.end_watch(vm) {
                            true => return,
                            false => continue,
                        }
                    };
                    let ward = host.ward_of(&one);
                    let watched = match &mut watched {
                        Some(same) if same.ward == ward && !same.is_over() => same,
                        // Another host, or another place among the heirs.
                        other => other.insert(Watched::new(ward)),
                    };
                    let input = watched.inputs.pop_front().unwrap_or(HeirInput::Tick);
                    let outputs = watched.heir.handle(host.boottime(), input);
                    for output in outputs {
                        host.follow_heir(watched, &one, output).await;
                    }
                    if watched.is_over() || !watched.inputs.is_empty() {
                        continue;
                    }
                    let due = watched.heir.next_tick().unwrap_or_default();
                    let left = due.saturating_sub(host.boottime());
                    left.clamp(LEAST, LOOK)
                };
                clock.passed(wait).await;
            }
        });
    }

    fn ward_of(&self, one: &Inheritance) -> Ward {
        Ward {
            me: self.me,
            host: one.record.holder,
            lost_after: one.record.protection.lost_after,
            rank: one.rank(self.me) as u32,
        }
    }

    async fn follow_heir(&self, watched: &mut Watched, one: &Inheritance, output: HeirOutput) {
        match output {
            HeirOutput::AskHost => {
                let found = self.look_at_host(watched, one).await;
                if matches!(found, Found::NoGuest | Found::NoVm) && self.follow_vm(one, None).await
                {
                    watched.is_past = true;
                    return;
                }
                let said = match found {
                    Found::Guest | Found::NoGuest => {
                        self.inheritances.clear(one.set.vm);
                        HeirInput::HostAnswers
                    }
                    // The voters say which member has it, and whether it may run somewhere.
                    Found::Silent | Found::NoVm => HeirInput::HostSilent,
                };
                watched.inputs.push_back(said);
            }
            HeirOutput::AskVoters => {
                let view = self.parts.ballot.lease(&one.set).await;
                if let Err(e) = &view {
                    tracing::debug!(vm = %one.set.vm.short(), error = %chain(e), "the voters \
                        cannot be asked about the lease of a silent host");
                }
                watched.inputs.push_back(HeirInput::View(view.ok()));
            }
            HeirOutput::TakeOver(_) => {
                let right = Right::Heir(&one.set);
                let said = match self.take_over_lost(one, right, &mut watched.tries).await {
                    Outcome::Runs => HeirInput::Granted,
                    Outcome::NotNow(pause) => {
                        self.clock.passed(pause).await;
                        HeirInput::Refused
                    }
                };
                watched.inputs.push_back(said);
            }
            HeirOutput::Elsewhere { epoch, holder } => {
                tracing::info!(
                    vm = %one.set.vm.short(), %epoch, holder = %holder.short(),
                    "another member has the VM of a lost host"
                );
                self.follow_vm(one, Some((epoch, holder))).await;
            }
            HeirOutput::Wait(_) => {}
        }
    }

    /// What the VM's host has of it. An answer about another VM a moment ago counts for a while.
    async fn look_at_host(&self, watched: &mut Watched, one: &Inheritance) -> Found {
        let host = one.record.holder;
        let heard = &self.inheritances.heard;
        let asked = self.boottime();
        let ran = watched.ran.is_some_and(|at| asked < at + RAN);
        match heard.lately(host, asked) {
            Some(false) => return Found::Silent,
            Some(true) if ran => return Found::Guest,
            Some(true) | None => {}
        }
        let said = self.ask_member(host, &VmRequest::Runs(one.set.vm)).await;
        let answered = said.is_ok().then(|| self.boottime());
        heard.note(host, asked, answered);
        watched.ran = None;
        match said {
            Err(_) => Found::Silent,
            Ok(VmAnswer::Runs(None)) => Found::NoVm,
            Ok(VmAnswer::Runs(Some(false))) => Found::NoGuest,
            Ok(_) => {
                watched.ran = Some(asked);
                Found::Guest
            }
        }
    }

    /// Looks up which member has a VM that its host does not run, or of which the voters have
    /// `seen` a newer holder, and goes on as an heir of that one, if this host is one. False: the
    /// VM is where it was, as far as that can be found out.
    async fn follow_vm(&self, one: &Inheritance, seen: Option<(Epoch, MemberId)>) -> bool {
        let vm = one.set.vm;
        let looking = self.directory.record(vm);
        let known = match tokio::time::timeout(RECORD_LIMIT, looking).await {
            Ok(Ok(Some(found))) if found.epoch >= one.record.epoch => found,
            // Its host does not run it, and no member knows it: it was deleted.
            Ok(Ok(None)) if seen.is_none() => {
                self.inheritances.forget(vm);
                return true;
            }
            _ => one.record.clone(),
        };
        let record = self.as_voters_know(one, known, seen).await;
        if self.inheritances.get(vm).as_ref() != Some(one) {
            // Its new host has told this one meanwhile.
            return true;
        }
        if record.epoch <= one.record.epoch {
            return false;
        }
        let holder = record.holder;
        if holder == self.me || not_heir(&record, self.me).is_some() {
            self.inheritances.forget(vm);
            return true;
        }
        tracing::info!(vm = %vm.short(), epoch = %record.epoch, holder = %holder.short(), "an heir \
            of this VM's present host from now on");
        let set = one.set.clone();
        match self.inheritances.keep(Inheritance { set, record }) {
            Ok(_) => holder != one.record.holder,
            Err(why) => {
                tracing::warn!(vm = %vm.short(), why, "cannot write down which host a VM has");
                false
            }
        }
    }

    /// The VM's record with the holder that its voters know, if that is a newer one: the host may
    /// have died before it could publish that it has the VM.
    async fn as_voters_know(
        &self,
        one: &Inheritance,
        known: VmRecord,
        seen: Option<(Epoch, MemberId)>,
    ) -> VmRecord {
        if known.epoch > one.record.epoch && seen.is_none() {
            return known;
        }
        let newest = match seen {
            Some(newest) => Some(newest),
            None => {
                let view = self.parts.ballot.lease(&one.set).await;
                let newest = view.ok().and_then(|view| view.newest);
                let newest = newest.filter(|newest| newest.confirmed && newest.granted);
                newest.map(|newest| (newest.epoch, newest.holder))
            }
        };
        match newest {
            Some((epoch, holder)) if epoch > known.epoch => VmRecord {
                epoch,
                holder,
                ..known
            },
            _ => known,
        }
    }
}
