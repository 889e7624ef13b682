//! The offer in force: `[offer]` in `node.toml`, overridden by the changes that `p2pvm offer` made
//! since, which are in a file beside the other state.

use super::settings::Offer;
use crate::{
    layout::{read_if_there, write_atomically},
    parts::Parts,
};
use p2pvm_api::{Failure, Kind, OfferChange, Outcome};
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::offer::{Closed, Known, Terms};
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

/// The settings, and the changes.
#[derive(Clone, Debug)]
pub(crate) struct KeptOffer {
    file: PathBuf,
    settings: Offer,
    changes: OfferChange,
    /// The settings with the changes.
    now: Offer,
}

impl KeptOffer {
    /// Reads the changes in `file`, which need not exist.
    pub(crate) fn open(file: PathBuf, settings: &Offer) -> Outcome<Self> {
        let wrong = |why: String| {
            let what = format!("{} cannot be used ({why}): remove it", file.display());
            Failure::new(Kind::Failed, what)
        };
        let changes = match read_if_there(&file)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?,
            None => OfferChange::default(),
        };
        let now = settings.with(&changes);
        now.check().map_err(wrong)?;
        Ok(Self {
            file,
            settings: settings.clone(),
            changes,
            now,
        })
    }

    /// What is offered.
    pub(crate) fn now(&self) -> &Offer {
        &self.now
    }

    /// Whether a change overrides the settings.
    pub(super) fn is_changed(&self) -> bool {
        self.changes != OfferChange::default()
    }

    /// Changes the offer for now and for later starts.
    pub(super) fn change(&mut self, change: &OfferChange) -> Outcome<()> {
        let before = match change.reset {
            true => OfferChange::default(),
            false => self.changes.clone(),
        };
        let changes = sum(before, change);
        let now = self.settings.with(&changes);
        now.check().map_err(Failure::usage)?;
        let text = serde_json::to_vec(&changes).expect("plain fields always serialize");
        write_atomically(&self.file, &text, 0o600)?;
        (self.changes, self.now) = (changes, now);
        Ok(())
    }

    /// The terms of the offer; `closed` is why it is closed.
    pub(crate) fn terms(&self, parts: &Arc<Parts>, closed: Option<Closed>) -> Terms {
        Terms {
            limits: self.now.limits(),
            closed,
            bits_per_second: self.now.bandwidth.limit(),
            known: Arc::new(KnownMembers {
                parts: Arc::downgrade(parts),
                offer: self.now.clone(),
            }),
            all_memory_mib: self.now.all_memory(),
        }
    }

    /// Why the offer is closed by the switch or the clock.
    pub(crate) fn closed(&self) -> Option<Closed> {
        if self.now.off {
            return Some(Closed::Off);
        }
        self.not_in().map(Closed::Hours)
    }

    /// The hours of the offer, if the time is outside of them.
    pub(super) fn not_in(&self) -> Option<String> {
        if self.now.hours.is_empty() {
            return None;
        }
        self.now.not_in(p2pvm_host::local_time::minute_of_day()?)
    }
}

/// Both changes, the later of which overrides the earlier.
fn sum(before: OfferChange, change: &OfferChange) -> OfferChange {
    let change = change.clone();
    OfferChange {
        all_cpus: change.all_cpus.or(before.all_cpus),
        all_memory_mib: change.all_memory_mib.or(before.all_memory_mib),
        bits_per_second: change.bits_per_second.or(before.bits_per_second),
        cpus: change.cpus.or(before.cpus),
        disk_gib: change.disk_gib.or(before.disk_gib),
        hours: change.hours.or(before.hours),
        idle_after_s: change.idle_after_s.or(before.idle_after_s),
        idle_only: change.idle_only.or(before.idle_only),
        memory_mib: change.memory_mib.or(before.memory_mib),
        off: change.off.or(before.off),
        reset: false,
        run: change.run.or(before.run),
        vms: change.vms.or(before.vms),
    }
}

/// The members as this one knows them, by their certificates.
struct KnownMembers {
    parts: Weak<Parts>,
    offer: Offer,
}

impl Known for KnownMembers {
    fn may_run(&self, member: MemberId) -> bool {
        if self.offer.is_for_all() {
            return true;
        }
        let Some(parts) = self.parts.upgrade() else {
            return false;
        };
        let known = parts.control.certificate(member);
        let known = known.or_else(|| parts.connector.certificate(member));
        known.is_some_and(|known| {
            let groups = known.groups();
            self.offer
                .is_for(known.name(), |group| groups.contains(group))
        })
    }

    fn name_of(&self, member: MemberId) -> String {
        let parts = self.parts.upgrade();
        parts.map_or_else(|| member.short(), |parts| parts.name_of(member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up_outlive_a_restart_and_are_forgotten_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("offer.json");
        let settings = Offer {
            vms: 7,
            memory_mib: 100,
            ..Offer::default()
        };
        let open = || KeptOffer::open(file.clone(), &settings).unwrap();
        let mut kept = open();
        assert!(!kept.is_changed() && *kept.now() == settings);
        let memory = OfferChange {
            memory_mib: Some(200),
            ..OfferChange::default()
        };
        let off = |off| OfferChange {
            off: Some(off),
            ..OfferChange::default()
        };
        kept.change(&memory).unwrap();
        kept.change(&off(true)).unwrap();
        assert_eq!(kept.closed(), Some(Closed::Off));
        let expected = Offer {
            memory_mib: 200,
            off: true,
            ..settings.clone()
        };
        let kept = open();
        assert!(kept.is_changed() && *kept.now() == expected);
        let mut kept = kept;
        let reset = OfferChange {
            reset: true,
            ..off(false)
        };
        kept.change(&reset).unwrap();
        assert_eq!(*open().now(), settings);
    }

    #[test]
    fn a_change_that_cannot_be_used_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("offer.json");
        let mut kept = KeptOffer::open(file.clone(), &Offer::default()).unwrap();
        let bad = OfferChange {
            hours: Some(vec!["late".into()]),
            ..OfferChange::default()
        };
        let said = kept.change(&bad).unwrap_err();
        assert_eq!(said.kind, Kind::Usage);
        assert!(!kept.is_changed() && !file.exists());
        std::fs::write(&file, "{\"hours\": 7}").unwrap();
        let said = KeptOffer::open(file, &Offer::default()).unwrap_err();
        assert!(said.message.contains("remove it"), "{said}");
    }
}
