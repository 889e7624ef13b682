//! A guardian without a process, for tests: the same rules on any clock, a virtual one too.

use super::{
    Cause, FrozenVm, GuardedProcess, Guardian, GuardianError, Refusal, Renewal, Ward,
    message::{Ask, Reply},
    rule::{Deed, Offer, Rule},
};
use async_trait::async_trait;
use p2pvm_overlay::{Epoch, VmId, lock};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, broadcast};

/// What is told of each change: whether the guest stands.
type Tell = dyn Fn(VmId, bool) + Send + Sync;

/// A guardian for tests. Its timer is tokio's, so a paused clock moves it.
pub struct FakeGuardian {
    inner: Arc<Inner>,
    _timer: Timer,
}

struct Inner {
    rule: Mutex<Rule<()>>,
    now: Box<dyn Fn() -> Duration + Send + Sync>,
    tell: Box<Tell>,
    frozen: broadcast::Sender<FrozenVm>,
    jumps: broadcast::Sender<i64>,
    changed: Notify,
}

/// The task that freezes, ended with its owner.
struct Timer(tokio::task::JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FakeGuardian {
    /// One by the clock `now`, by which all deadlines are, that tells `tell` which guest stands
    /// (true) and which runs again. Within a runtime.
    pub fn new(
        now: impl Fn() -> Duration + Send + Sync + 'static,
        tell: impl Fn(VmId, bool) + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new(Inner {
            rule: Mutex::new(Rule::new()),
            now: Box::new(now),
            tell: Box::new(tell),
            frozen: broadcast::channel(64).0,
            jumps: broadcast::channel(64).0,
            changed: Notify::new(),
        });
        let timer = Timer(tokio::spawn(inner.clone().watch()));
        Self {
            inner,
            _timer: timer,
        }
    }

    fn ask(&self, ask: Ask) -> Reply {
        let inner = &self.inner;
        inner.strike();
        let now = (inner.now)();
        let offer = Offer {
            hold: (),
            stands: false,
        };
        let mut rule = lock(&inner.rule);
        let ruling = rule.ask(now, ask, Some(offer));
        let (reply, thaws) = (ruling.reply, matches!(ruling.deed, Deed::Thaw(())));
        drop(rule);
        if let (Ask::Thaw { vm, .. }, true) = (ask, thaws) {
            (inner.tell)(vm, false);
        }
        inner.changed.notify_one();
        reply
    }
}

impl Inner {
    fn strike(&self) {
        let now = (self.now)();
        loop {
            let mut rule = lock(&self.rule);
            let Some(due) = rule.due(now) else { return };
            let (vm, late) = (due.vm, now.saturating_sub(due.deadline));
            drop(rule);
            (self.tell)(vm, true);
            // Without a subscriber nobody wants to know.
            let _ = self.frozen.send(FrozenVm {
                vm,
                woke_late: late,
                done: late,
                cause: Cause::Deadline,
            });
        }
    }

    async fn watch(self: Arc<Self>) {
        loop {
            self.strike();
            let next = lock(&self.rule).next();
            let passed = async {
                match next {
                    Some(next) => {
                        tokio::time::sleep(next.saturating_sub((self.now)())).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passed => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

fn refused(reply: Reply) -> GuardianError {
    match reply {
        Reply::Refused { why } => GuardianError::Refused(why),
        _ => GuardianError::Frozen,
    }
}

#[async_trait]
impl Guardian for FakeGuardian {
    async fn arm(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
        process: &GuardedProcess,
    ) -> Result<(), GuardianError> {
        let ask = Ask::Arm {
            vm,
            epoch,
            deadline,
            pid: process.pid,
            started: process.started,
        };
        match self.ask(ask) {
            Reply::Armed { .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    async fn renew(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<Renewal, GuardianError> {
        let ask = Ask::Renew {
            vm,
            epoch,
            deadline,
        };
        match self.ask(ask) {
            Reply::Armed { .. } => Ok(Renewal::Armed),
            Reply::Frozen { .. } => Ok(Renewal::Frozen),
            other => Err(refused(other)),
        }
    }

    async fn thaw(&self, vm: VmId, epoch: Epoch, deadline: Duration) -> Result<(), GuardianError> {
        let ask = Ask::Thaw {
            vm,
            epoch,
            deadline,
        };
        match self.ask(ask) {
            Reply::Armed { .. } => Ok(()),
            other => Err(refused(other)),
        }
    }

    async fn drop_vm(&self, vm: VmId) -> Result<(), GuardianError> {
        self.ask(Ask::Drop { vm });
        Ok(())
    }

    async fn ward(&self, vm: VmId) -> Result<Ward, GuardianError> {
        match self.ask(Ask::Look { vm }) {
            Reply::Armed { .. } => Ok(Ward::Armed),
            Reply::Refused {
                why: Refusal::Unknown,
            } => Ok(Ward::Unknown),
            _ => Ok(Ward::Frozen),
        }
    }

    fn frozen(&self) -> broadcast::Receiver<FrozenVm> {
        self.inner.frozen.subscribe()
    }

    fn jumps(&self) -> broadcast::Receiver<i64> {
        self.inner.jumps.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_fake_freezes_at_its_deadline_and_thaws_when_asked() {
        let vm = VmId([1; 32]);
        let begun = tokio::time::Instant::now();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let guardian = FakeGuardian::new(
            move || begun.elapsed(),
            move |vm, stands| lock(&tell).push((vm, stands)),
        );
        let process = GuardedProcess {
            pid: 1,
            started: 1,
            freeze: None,
        };
        let seconds = Duration::from_secs;
        let mut frozen = guardian.frozen();
        guardian
            .arm(vm, Epoch(1), seconds(10), &process)
            .await
            .unwrap();
        guardian.renew(vm, Epoch(1), seconds(20)).await.unwrap();
        assert_eq!(frozen.recv().await.unwrap().vm, vm);
        assert!(begun.elapsed() >= seconds(20));
        let late = guardian.renew(vm, Epoch(1), seconds(40)).await.unwrap();
        assert_eq!(late, Renewal::Frozen);
        guardian.thaw(vm, Epoch(1), seconds(40)).await.unwrap();
        assert_eq!(guardian.ward(vm).await.unwrap(), Ward::Armed);
        assert_eq!(*lock(&told), [(vm, true), (vm, false)]);
    }
}
