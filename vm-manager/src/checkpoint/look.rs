//! Looking at snapshots: whether this host and each member that keeps one have all of it, how two
//! differ, how large one is; and setting the schedule that takes them.

use crate::{
    Error,
    backups::Schedule,
    directory::Snapshot,
    host::{Host, VmStatus},
    hypervisor::Progress,
};
use p2pvm_overlay::MemberId;
use p2pvm_snapshot_sync::{
    Verified,
    store::{CheckpointDiff, Size},
};
use std::time::Duration;
use tokio::sync::watch;

/// How often a long check says that it goes on.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A member's copy of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The member.
    pub member: MemberId,
    /// How many chunks it says that it lacks; `None` if it did not answer. It believes what it last
    /// read of its own disk.
    pub lacking: Option<usize>,
}

/// What a look at every copy of a snapshot found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotCheck {
    /// What was found here; `None` if this host keeps none of it: its VM has moved here.
    pub here: Option<Verified>,
    /// Whether what was damaged or missing here is repaired.
    pub is_repaired: bool,
    /// Why it could not be, if that was wanted.
    pub unrepaired: Option<String>,
    /// The other members that keep it.
    pub copies: Vec<Copy>,
}

impl Host {
    /// Reads every chunk of a snapshot of a VM here, and asks each member that keeps it whether it
    /// has all; with `repair`, what is missing here is fetched, and members that lack chunks get
    /// them again.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what the store says.
    pub async fn verify_snapshot(
        &self,
        name: &str,
        snapshot: &str,
        repair: bool,
        progress: &watch::Sender<Progress>,
    ) -> Result<SnapshotCheck, Error> {
        let slot = self.named(name)?;
        self.must_be_held(&slot)?;
        let found = listed(&slot.entry().snapshots, name, snapshot)?;
        let (vault, id) = (&self.parts.vault, found.checkpoint);
        let mut check = SnapshotCheck {
            here: None,
            is_repaired: false,
            unrepaired: None,
            copies: Vec::new(),
        };
        if vault.keeps(id).await? {
            progress.send_modify(|p| p.phase = "read".into());
            let here = told(progress, vault.verify(id)).await?;
            check.here = Some(here);
            if repair && !here.is_whole() {
                progress.send_modify(|p| p.phase = "fetch".into());
                match vault.mend(id, &found.providers, progress).await {
                    Ok(()) => {
                        check.is_repaired = told(progress, vault.verify(id)).await?.is_whole()
                    }
                    Err(error) => check.unrepaired = Some(p2pvm_overlay::chain(&error)),
                }
            }
        }
        progress.send_modify(|p| p.phase = "ask the members that keep it".into());
        let is_lacking = |copy: &Copy| copy.lacking.is_some_and(|lacking| lacking > 0);
        for member in found.providers.iter().copied().filter(|m| *m != self.me) {
            // What is not here is asked of the other members.
            let lacking = told(progress, vault.lacking(id, member, &found.providers)).await?;
            check.copies.push(Copy { member, lacking });
        }
        if repair && check.copies.iter().any(is_lacking) && !slot.is_copying(id) {
            told(progress, self.copy_again(&slot, &found, None)).await?;
        }
        Ok(check)
    }

    /// How the snapshot `newer` of a VM here differs from `older`.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Chunks`] if no member has what names their content.
    pub async fn diff_snapshots(
        &self,
        name: &str,
        older: &str,
        newer: &str,
    ) -> Result<CheckpointDiff, Error> {
        let VmStatus { snapshots, .. } = self.status(name).await?;
        let (older, newer) = (
            listed(&snapshots, name, older)?,
            listed(&snapshots, name, newer)?,
        );
        let mut providers = newer.providers;
        providers.extend(older.providers);
        let both = (older.checkpoint, newer.checkpoint);
        self.parts.vault.diff(both, &providers).await
    }

    /// How large a snapshot of a VM is.
    ///
    /// # Errors
    /// As [`Host::diff_snapshots`].
    pub async fn snapshot_size(&self, name: &str, snapshot: &str) -> Result<Size, Error> {
        let VmStatus { snapshots, .. } = self.status(name).await?;
        let found = listed(&snapshots, name, snapshot)?;
        let vault = &self.parts.vault;
        vault.size_of(found.checkpoint, &found.providers).await
    }

    /// Sets when snapshots of a VM here are taken by themselves, `None` for never. It is in the
    /// VM's record when this returns, or after the next round.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`] for a schedule that cannot be, or a VM that is being
    /// moved.
    pub async fn set_schedule(&self, name: &str, schedule: Option<Schedule>) -> Result<(), Error> {
        if let Some(schedule) = &schedule {
            schedule.check().map_err(Error::Refused)?;
        }
        let slot = self.named(name)?;
        self.must_be_held(&slot)?;
        slot.must_stay()?;
        self.update(&slot, |e| e.backups.schedule = schedule)?;
        self.publish(&slot).await;
        Ok(())
    }

    /// How many other members should hold each snapshot.
    pub fn wanted_copies(&self) -> usize {
        self.options.copies
    }
}

/// Does `work`, and says every few seconds that it goes on. Reason: a caller that hears nothing
/// gives up.
async fn told<T>(progress: &watch::Sender<Progress>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(TOLD_EVERY) => progress.send_modify(|_| ()),
        }
    }
}

fn listed(all: &[Snapshot], name: &str, snapshot: &str) -> Result<Snapshot, Error> {
    let found = all.iter().find(|s| s.name == snapshot).cloned();
    found.ok_or_else(|| Error::NotFound(format!("the snapshot '{name}@{snapshot}'")))
}
