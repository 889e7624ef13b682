//! Whether a VM here is protected against the loss of its host, and what brings it under a lease.
//!
//! A VM is protected if its owner wants it, a majority of at least three voters keeps it as
//! protected, and the guardian of this host has its guest under a deadline. Where one of these is
//! missing, the VM runs as it always did, and says why it is not protected.

use super::{Activity, Entry, Healed, Host, Slot, VmStatus, lock};
use crate::{
    Error,
    ballot::{BallotError, VmVoters},
    checkpoint::SavedVm,
    error::undecided,
    guardian::{GuardianError, Ward},
    hypervisor::{Machine, Progress, RunState},
    protection::{Protect, Protection, REPLICATE_EVERY},
};
use p2pvm_dht::{VoterSet, votes::lease::lease_end};
use p2pvm_overlay::{Epoch, VmId, chain};
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// How many voters a protected VM has at least.
/// Reason: of two, the loss of either one would freeze the guest.
const LEAST_VOTERS: usize = 3;

/// How long a guest that is let go on for good may take to be forgotten by the guardian.
const RELEASED: Duration = Duration::from_secs(20);

/// Whether a VM is protected against the loss of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shield {
    /// It runs without a lease, for this reason.
    Bare(String),
    /// It runs under a lease.
    Leased,
}

impl fmt::Display for Shield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare(why) => write!(f, "not protected: {why}"),
            Self::Leased => f.write_str("protected"),
        }
    }
}

/// A VM's shield as it was last found.
#[derive(Default)]
pub(super) struct ShieldCell(Mutex<Option<Shield>>);

/// Why a VM's voters do not keep it as protected.
fn unprotected(error: &BallotError) -> String {
    match error {
        BallotError::NoMajority { answered, asked } => format!(
            "{answered} of its {asked} voters answer with a release that knows leases; all are \
                needed to begin"
        ),
        BallotError::Declined { voter, .. } => format!(
            "its voter {} does not keep leases: it may be of a previous release",
            voter.short()
        ),
        other => chain(other),
    }
}

impl Slot {
    pub(super) fn set_shield(&self, shield: Shield) {
        *lock(&self.shield.0) = Some(shield);
    }

    pub(super) fn shield(&self) -> Option<Shield> {
        lock(&self.shield.0).clone()
    }
}

impl Host {
    /// Whether a VM here is protected; `None` if it is not here, or does not run.
    pub fn shield(&self, name: &str) -> Option<Shield> {
        let slot = self.slot_named(name)?;
        slot.machine()?;
        slot.shield()
    }

    /// How a VM here came to this host, if its previous one was lost.
    pub fn healed(&self, name: &str) -> Option<Healed> {
        self.slot_named(name)?.entry().healed
    }

    /// Says how a VM here is to outlive this host; it holds when this returns, as far as that is
    /// possible now: [`Host::shield`].
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] for values that are not possible or a VM that is
    /// busy, [`Error::Agreement`] if its voters cannot be told that it is not protected any more.
    pub async fn protect(&self, name: &str, wanted: Protection) -> Result<VmStatus, Error> {
        wanted.check()?;
        let slot = self.named(name)?;
        {
            let _operation = slot.begin_after_check(Activity::Checking).await?;
            self.must_be_held(&slot)?;
            let entry = self.update(&slot, |e| e.protection = wanted)?;
            match (slot.machine(), self.bare_because(&entry)) {
                (_, Some(why)) if entry.leased => self.give_up_shield(&slot, why).await?,
                (Some(machine), _) => self.secure(&slot, &*machine).await?,
                (None, _) => {}
            }
        }
        self.publish(&slot).await;
        self.tell_heirs(&slot, true).await;
        Ok(self.status_of(&slot))
    }

    /// Why the VM is not to be protected on this host, as far as that can be told without asking.
    fn bare_because(&self, entry: &Entry) -> Option<String> {
        if entry.protection.protect == Protect::Off {
            return Some("turned off with 'p2pvm vm protect --off'".into());
        }
        if !self.options.protects {
            return Some("turned off on this host: protect in [heal] of node.toml".into());
        }
        match entry.definition.voters.len() {
            1 => Some("1 voter; make it again where 3 members are connected".into()),
            few @ ..LEAST_VOTERS => Some(format!("{few} voters")),
            _ => None,
        }
    }

    /// Whether the VM's guest must begin held, since it may have to come under a lease first.
    pub(crate) async fn begins_held(&self, entry: &Entry) -> bool {
        let vm = entry.definition.vm;
        let may_be = self.bare_because(entry).is_none() && self.cannot_guard(vm).await.is_none();
        entry.leased || may_be
    }

    /// Brings the VM's guest under a lease if it is to be protected; a VM that is not is left as it
    /// is, and says why. The guest stands still, or runs already.
    ///
    /// # Errors
    /// For a VM that its voters know as protected: why its guest must not run. [`Error::Agreement`]
    /// if no majority renews its lease, the guardian's.
    pub(crate) async fn secure(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
    ) -> Result<(), Error> {
        let entry = slot.entry();
        if self.is_leased(entry.definition.vm) {
            return Ok(());
        }
        match (self.bare_because(&entry), entry.leased) {
            (Some(why), true) => return self.give_up_shield(slot, why).await,
            (Some(why), false) => {
                slot.set_shield(Shield::Bare(why));
                return Ok(());
            }
            (None, true) => match self.renew_or_tell(slot).await {
                Ok(sent) => return self.go_on_leased(slot, machine, sent).await,
                Err(e) if !self.never_became_leased(slot).await => return Err(e),
                Err(_) => {}
            },
            (None, false) => {}
        }
        // Alone, it would stand still from the first lost message on.
        if self.parts.fabric.connected().is_empty() {
            slot.set_shield(Shield::Bare("no other member is connected".into()));
            return Ok(());
        }
        if let Err(why) = self.first_lease(slot, machine).await {
            slot.set_shield(Shield::Bare(why));
        }
        Ok(())
    }

    /// Goes on with the lease of a guest that has none in memory: it may stand frozen since, and
    /// its port be shut.
    async fn go_on_leased(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
        sent: Duration,
    ) -> Result<(), Error> {
        let (entry, ends) = (slot.entry(), lease_end(sent));
        let vm = entry.definition.vm;
        if !self.arm(slot, machine, ends).await? {
            self.parts.guardian.thaw(vm, entry.epoch, ends).await?;
            if slot.run_state() == RunState::Running {
                self.parts.port.frozen(vm, false).await?;
            }
        }
        self.begin_lease(slot, sent);
        Ok(())
    }

    /// Whether a majority of the voters says that the VM is not protected: this daemon ended
    /// between the note in its entry and the voters' one. It then runs as it did before.
    async fn never_became_leased(&self, slot: &Arc<Slot>) -> bool {
        let entry = slot.entry();
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        let view = self.parts.ballot.lease(&set).await;
        if view.map_or(true, |view| view.protected)
            || self.update(slot, |e| e.leased = false).is_err()
        {
            return false;
        }
        let vm = entry.definition.vm;
        if let Ok(Ward::Frozen) = self.parts.guardian.ward(vm).await
            && let Err(e) = self.let_go_on(slot, self.boottime() + RELEASED).await
        {
            tracing::error!(vm = %vm.short(), error = %chain(&e), "the guest could not go on");
        }
        self.forget_guard(vm).await;
        true
    }

    /// The first lease of a VM: the guardian has the guest's deadline before the voters keep the VM
    /// as protected, so that a daemon which dies in between leaves no guest that nothing stops.
    async fn first_lease(&self, slot: &Arc<Slot>, machine: &dyn Machine) -> Result<(), String> {
        let (entry, sent) = (slot.entry(), self.boottime());
        if let Some(why) = self.cannot_guard(entry.definition.vm).await {
            return Err(why);
        }
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        // Before anything is changed: without an answer the VM stays as it is.
        if let Err(e) = self.parts.ballot.lease(&set).await {
            return Err(unprotected(&e));
        }
        match self.arm(slot, machine, lease_end(sent)).await {
            Ok(true) => {}
            Ok(false) => return Err("its guest stands frozen: stop it, then start it".into()),
            Err(e) => return Err(chain(&e)),
        }
        let vm = entry.definition.vm;
        // Written first: a daemon that restarts then asks before the guest goes on.
        let written = self.update(slot, |e| {
            e.leased = true;
            e.protection.replicate_every.get_or_insert(REPLICATE_EVERY);
        });
        if let Err(e) = written {
            self.forget_guard(vm).await;
            return Err(chain(&e));
        }
        if let Err(e) = self.tell_voters(&entry, true).await {
            // Where that cannot be found out, they may have it as protected.
            let kept = self.parts.ballot.lease(&set).await;
            if kept.is_ok_and(|view| !view.protected) {
                if let Err(e) = self.update(slot, |e| e.leased = false) {
                    tracing::warn!(error = %chain(&e), "cannot write down that a VM is not \
                        protected");
                }
                self.forget_guard(vm).await;
                return Err(unprotected(&e));
            }
        }
        self.begin_lease(slot, sent);
        slot.set_unpublished(true);
        Ok(())
    }

    /// Renews the lease of a VM at once; voters that have missed that it is protected are told.
    async fn renew_or_tell(&self, slot: &Slot) -> Result<Duration, Error> {
        let refused = match self.renew_once(slot).await {
            Err(e @ Error::Agreement { .. }) => e,
            renewed => return renewed,
        };
        let sent = self.boottime();
        match self.tell_voters(&slot.entry(), true).await {
            Ok(()) => Ok(sent),
            Err(_) => Err(refused),
        }
    }

    async fn forget_guard(&self, vm: VmId) {
        if let Err(e) = self.parts.guardian.drop_vm(vm).await {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "the guardian still has a \
                deadline for a guest that is not protected");
        }
    }

    /// Whether a VM's voters have it as protected; those of a previous release have not. With
    /// `waits` this returns when the lease of its host has run out: until then its guest may run
    /// there.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few voters answer to tell.
    pub(crate) async fn has_lease(
        &self,
        kept: &SavedVm,
        waits: bool,
        progress: &watch::Sender<Progress>,
    ) -> Result<bool, Error> {
        let set = VoterSet::sign(&kept.secret.keys(), &kept.definition.voters);
        let view = match self.parts.ballot.lease(&set).await {
            Ok(view) => view,
            Err(BallotError::Declined { .. }) => return Ok(false),
            Err(e) => return Err(undecided("asking the VM's voters about its lease")(e)),
        };
        if view.protected && waits {
            progress.send_modify(|p| p.phase = "wait for the lease of its host to end".into());
            self.clock.passed(view.free_in).await;
        }
        Ok(view.protected)
    }

    pub(super) async fn tell_voters(
        &self,
        entry: &Entry,
        protected: bool,
    ) -> Result<(), BallotError> {
        let keys = entry.secret.keys();
        let vm = VmVoters {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        let ballot = &self.parts.ballot;
        ballot.protect(vm, entry.epoch, self.me, protected).await
    }

    /// The VM is not to be protected any more: its voters are told, then the guardian.
    async fn give_up_shield(&self, slot: &Arc<Slot>, why: String) -> Result<(), Error> {
        let entry = slot.entry();
        // What the guardian lets go of while it stands, nothing lets go on.
        if self.stands_still(entry.definition.vm) {
            let sent = self.renew_once(slot).await?;
            self.let_go_on(slot, lease_end(sent)).await?;
        }
        self.tell_voters(&entry, false).await.map_err(undecided(
            "telling the VM's voters that it is not protected",
        ))?;
        // The guardian forgets a frozen guest, and does not let it go on.
        let vm = entry.definition.vm;
        if self.lacks_lease(vm) || matches!(self.parts.guardian.ward(vm).await, Ok(Ward::Frozen)) {
            self.let_go_on(slot, self.boottime() + RELEASED).await?;
        }
        // Before the entry: of a daemon that has just started only it says that there is a
        // deadline.
        self.end_lease(slot).await;
        self.update(slot, |e| e.leased = false)?;
        slot.set_shield(Shield::Bare(why));
        slot.set_unpublished(true);
        Ok(())
    }

    /// Why no protected VM can come to this host, if none can.
    pub(crate) async fn cannot_guard(&self, vm: VmId) -> Option<String> {
        if !self.options.protects {
            return Some("protect in [heal] of its node.toml is off".into());
        }
        // A renewal of what is not there changes nothing.
        match self
            .parts
            .guardian
            .renew(vm, Epoch(0), Duration::ZERO)
            .await
        {
            Err(e @ (GuardianError::NotSupported(_) | GuardianError::Start(_))) => Some(chain(&e)),
            _ => None,
        }
    }

    /// Has the guardian freeze the guest at `deadline`; false: it stands frozen already, by an
    /// earlier deadline.
    pub(crate) async fn arm(
        &self,
        slot: &Slot,
        machine: &dyn Machine,
        deadline: Duration,
    ) -> Result<bool, Error> {
        let process = machine.guarded().ok_or(GuardianError::NoProcess)?;
        let entry = slot.entry();
        let (vm, epoch) = (entry.definition.vm, entry.epoch);
        match self.parts.guardian.arm(vm, epoch, deadline, &process).await {
            Err(GuardianError::Frozen) => Ok(false),
            armed => Ok(armed.map(|()| true)?),
        }
    }

    /// Looks after the shield of a VM that runs here: protects it as soon as that is possible, and
    /// no longer than wanted.
    pub(crate) async fn keep_shield(&self, slot: &Arc<Slot>) {
        let entry = slot.entry();
        let vm = entry.definition.vm;
        let Some(machine) = slot.machine() else {
            return;
        };
        let Ok(_operation) = slot.begin(Activity::Checking) else {
            return;
        };
        let kept = match (self.is_leased(vm), self.bare_because(&entry)) {
            (true, None) => return self.leases.try_again(vm, self.boottime()),
            (true, Some(why)) => self.give_up_shield(slot, why).await,
            (false, _) => self.secure(slot, &*machine).await,
        };
        if let Err(e) = kept {
            tracing::info!(vm = %entry.definition.name, error = %chain(&e), "its protection \
                stays as it is for now");
        }
    }
}
