//! An heir's watch over the hosts of its VMs: a thin shell around [`Heir`], one task a VM.

use super::{
    inheritance::Inheritance,
    take::{Outcome, Tries},
};
use crate::{Host, checkpoint::Right, host::remote::VmRequest};
use p2pvm_dht::votes::lease::{Heir, HeirInput, HeirOutput, Terms, Ward};
use p2pvm_overlay::{MemberId, VmId, chain};
use std::{collections::VecDeque, time::Duration};

/// How long a task sleeps at most before it looks whether its VM's heirs have changed.
const LOOK: Duration = Duration::from_secs(10);
/// How long it sleeps at least.
const LEAST: Duration = Duration::from_millis(20);

/// One heir's machine with what it is about to be told.
struct Watched {
    heir: Heir,
    ward: Ward,
    inputs: VecDeque<HeirInput>,
    tries: Tries,
}

impl Watched {
    fn new(ward: Ward) -> Self {
        Self {
            heir: Heir::new(Terms::REAL, ward),
            ward,
            inputs: VecDeque::from([HeirInput::Tick]),
            tries: Tries::default(),
        }
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
                        Some(same) if same.ward == ward => same,
                        // Another host, or another place among the heirs.
                        other => other.insert(Watched::new(ward)),
                    };
                    let input = watched.inputs.pop_front().unwrap_or(HeirInput::Tick);
                    let outputs = watched.heir.handle(host.boottime(), input);
                    for output in outputs {
                        host.follow_heir(watched, &one, output).await;
                    }
                    if watched.heir.is_over() {
                        host.inheritances.forget(vm);
                        continue;
                    }
                    if !watched.inputs.is_empty() {
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
                let said = match self.answers(one.record.holder, one.set.vm).await {
                    true => {
                        self.inheritances.clear(one.set.vm);
                        HeirInput::HostAnswers
                    }
                    false => HeirInput::HostSilent,
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
            HeirOutput::Elsewhere { epoch, holder } => tracing::info!(
                vm = %one.set.vm.short(), %epoch, holder = %holder.short(),
                "another member has the VM of a lost host"
            ),
            HeirOutput::Wait(_) => {}
        }
    }

    /// Whether a VM's host is there.
    async fn answers(&self, host: MemberId, vm: VmId) -> bool {
        let heard = &self.inheritances.heard;
        let asked = self.boottime();
        if let Some(said) = heard.lately(host, asked) {
            return said;
        }
        let said = self.ask_member(host, &VmRequest::Runs(vm)).await;
        let answered = said.is_ok().then(|| self.boottime());
        heard.note(host, asked, answered);
        answered.is_some()
    }
}
