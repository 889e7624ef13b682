//! `[offer]` in `node.toml`: what this host offers to other members.

use super::{hours::Hours, idle::Idle};
use p2pvm_api::OfferChange;
use p2pvm_vm_manager::{BitRate, offer::Limits};
use serde::{Deserialize, Serialize};
use std::path::{Component, PathBuf};

/// The directory of the images that an appliance brings along. Its files are no secrets.
const IMAGES: &str = "/usr/lib/p2pvm";
/// The prefix of a member's name in `run`; other words are groups.
const MEMBER: &str = "member:";
/// The word in `run` for all members.
const ALL: &str = "*";
/// The most disk and memory that can be offered, in GiB and MiB. Reason: more is a typing mistake.
const MOST_GIB: u64 = 1 << 20;

/// `[offer]`. In numbers 0 is no limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offer {
    /// Directories beside `/usr/lib/p2pvm` whose files other members may name as images of VMs
    /// here.
    pub images: Vec<PathBuf>,
    /// The members whose VMs may be here: groups, "member:NAME", or "*" for all.
    pub run: Vec<String>,
    /// How many VMs of other members may be here.
    pub vms: u32,
    /// Virtual processors of other members' running VMs.
    pub cpus: u32,
    /// Memory of other members' running VMs, MiB.
    pub memory_mib: u64,
    /// Disks of other members' VMs, GiB.
    pub disk_gib: u64,
    /// How much each VM of another member may send, and how much receive; 0 is no limit.
    pub bandwidth: BitRate,
    /// Processors that all guests together may keep busy, those of this host's root too.
    pub all_cpus: u32,
    /// The memory that all guests together may be given, MiB; 0 for all but a reserve.
    pub all_memory_mib: u64,
    /// The hours in which other members' VMs run here; none for always.
    pub hours: Vec<String>,
    /// Whether they run here only while this machine is idle.
    pub idle_only: bool,
    /// Whether nothing is offered.
    pub off: bool,
    /// When this machine is idle.
    pub idle: Idle,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            run: vec![ALL.to_owned()],
            vms: 0,
            cpus: 0,
            memory_mib: 0,
            disk_gib: 0,
            bandwidth: BitRate(0),
            all_cpus: 0,
            all_memory_mib: 0,
            hours: Vec::new(),
            idle_only: false,
            off: false,
            idle: Idle::default(),
        }
    }
}

impl Offer {
    /// The directories whose files other members may name.
    pub fn image_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = vec![PathBuf::from(IMAGES)];
        dirs.extend(self.images.iter().cloned());
        dirs
    }

    /// Says which value cannot be used, and which can.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_whole = |dir: &&PathBuf| {
            let below = dir.components().skip(1);
            dir.is_absolute() && below.clone().count() > 0 && below.into_iter().all(is_normal)
        };
        if let Some(dir) = self.images.iter().find(|dir| !is_whole(dir)) {
            return Err(format!(
                "[offer] images holds '{}': write a directory as /srv/images, from the root, \
                    without '..', and not the root itself",
                dir.display()
            ));
        }
        if let Some(word) = self.run.iter().find(|word| !is_party(word)) {
            return Err(format!(
                "[offer] run holds '{word}', which names nobody: write a group's name, \
                    member:NAME, or \"*\""
            ));
        }
        let in_mib = [self.memory_mib, self.all_memory_mib];
        if self.disk_gib > MOST_GIB || in_mib.iter().any(|mib| *mib > MOST_GIB << 10) {
            return Err(format!(
                "[offer]: more than {MOST_GIB} GiB cannot be offered"
            ));
        }
        if !self.bandwidth.is_possible() {
            return Err("[offer] bandwidth: 64 kbit to 1000 Gbit, or 0 for no limit".to_owned());
        }
        self.parsed_hours()
            .map_err(|why| format!("[offer] hours: {why}"))?;
        self.idle.check()
    }

    fn parsed_hours(&self) -> Result<Vec<Hours>, String> {
        self.hours.iter().map(|text| text.parse()).collect()
    }

    /// The hours in words, if the minute of the day is in none of them.
    pub(crate) fn not_in(&self, minute: u16) -> Option<String> {
        let hours = self.parsed_hours().ok()?;
        if hours.is_empty() || hours.iter().any(|hours| hours.has(minute)) {
            return None;
        }
        let texts: Vec<String> = hours.iter().map(Hours::to_string).collect();
        Some(texts.join(", "))
    }

    /// What other members' VMs may have together.
    pub(crate) fn limits(&self) -> Limits {
        let some = |value: u64| (value > 0).then_some(value);
        Limits {
            vms: some(self.vms.into()),
            cpus: some(self.cpus.into()),
            memory_mib: some(self.memory_mib),
            disk_bytes: some(self.disk_gib << 30),
        }
    }

    /// The most memory that all guests may have, MiB.
    pub(crate) fn all_memory(&self) -> Option<u64> {
        (self.all_memory_mib > 0).then_some(self.all_memory_mib)
    }

    /// Whether the offer is for a member of that name and those groups.
    pub(crate) fn is_for(&self, name: &str, is_in: impl Fn(&str) -> bool) -> bool {
        self.run.iter().any(|word| match word.strip_prefix(MEMBER) {
            Some(member) => member == name,
            None => word == ALL || is_in(word),
        })
    }

    /// Whether the offer is for every member.
    pub(crate) fn is_for_all(&self) -> bool {
        self.run.iter().any(|word| word == ALL)
    }

    /// These settings with a change.
    pub(crate) fn with(&self, change: &OfferChange) -> Self {
        let mut new = self.clone();
        fn put<T: Clone>(to: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                to.clone_from(value);
            }
        }
        put(&mut new.all_cpus, &change.all_cpus);
        put(&mut new.all_memory_mib, &change.all_memory_mib);
        put(&mut new.bandwidth, &change.bits_per_second.map(BitRate));
        put(&mut new.cpus, &change.cpus);
        put(&mut new.disk_gib, &change.disk_gib);
        put(&mut new.hours, &change.hours);
        put(&mut new.idle.after_s, &change.idle_after_s);
        put(&mut new.idle_only, &change.idle_only);
        put(&mut new.memory_mib, &change.memory_mib);
        put(&mut new.off, &change.off);
        put(&mut new.run, &change.run);
        put(&mut new.vms, &change.vms);
        new
    }
}

fn is_normal(part: Component<'_>) -> bool {
    matches!(part, Component::Normal(_))
}

fn is_party(word: &str) -> bool {
    let name = word.strip_prefix(MEMBER).unwrap_or(word);
    word == ALL || p2pvm_overlay::membership::valid_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_offered_is_refused_with_the_key() {
        type Spoil = fn(&mut Offer);
        let spoilt: [(&str, Spoil); 7] = [
            ("[offer] images", |o| o.images = vec!["images".into()]),
            ("[offer] run", |o| o.run = vec!["member:".into()]),
            ("[offer] run", |o| o.run = vec!["a b".into()]),
            ("[offer] hours", |o| o.hours = vec!["18-8".into()]),
            ("[offer] bandwidth", |o| o.bandwidth = BitRate(8)),
            ("cannot be offered", |o| o.disk_gib = u64::MAX),
            ("[offer.idle] load", |o| o.idle.load = 0.0),
        ];
        assert_eq!(Offer::default().check(), Ok(()));
        for (key, spoil) in spoilt {
            let mut offer = Offer::default();
            spoil(&mut offer);
            let said = offer.check().unwrap_err();
            assert!(said.contains(key), "{key}: {said}");
        }
    }

    #[test]
    fn an_offer_is_for_all_for_members_and_for_groups() {
        let of = |run: &[&str]| Offer {
            run: run.iter().map(|word| (*word).to_owned()).collect(),
            ..Offer::default()
        };
        let friends = |group: &str| group == "friends";
        for (run, name, expected) in [
            (&["*"][..], "lab1", true),
            (&["member:lab1"][..], "lab1", true),
            (&["member:lab1"][..], "lab2", false),
            (&["lab1"][..], "lab1", false),
            (&["friends"][..], "lab2", true),
            (&["servers", "member:lab2"][..], "lab2", true),
            (&[][..], "lab1", false),
        ] {
            assert_eq!(of(run).is_for(name, friends), expected, "{run:?} {name}");
        }
        assert!(Offer::default().is_for_all() && !of(&["friends"]).is_for_all());
    }

    #[test]
    fn several_hours_are_one_offer_and_none_are_always() {
        let offer = Offer {
            hours: vec!["12:00-13:00".into(), "18:00-08:00".into()],
            ..Offer::default()
        };
        assert_eq!(Offer::default().not_in(600), None);
        assert_eq!(offer.not_in(12 * 60), None);
        assert_eq!(offer.not_in(0), None);
        let out = offer.not_in(13 * 60).unwrap();
        assert_eq!(out, "12:00-13:00, 18:00-08:00");
    }

    #[test]
    fn a_change_changes_what_it_names_alone() {
        let change = OfferChange {
            memory_mib: Some(2048),
            hours: Some(vec!["18:00-08:00".into()]),
            idle_after_s: Some(60),
            ..OfferChange::default()
        };
        let expected = Offer {
            memory_mib: 2048,
            hours: vec!["18:00-08:00".into()],
            idle: Idle {
                after_s: 60,
                ..Idle::default()
            },
            ..Offer::default()
        };
        assert_eq!(Offer::default().with(&change), expected);
        let unchanged = expected.with(&OfferChange::default());
        assert_eq!(unchanged, expected);
        assert_eq!(unchanged.limits().memory_mib, Some(2048));
        assert_eq!(unchanged.limits().vms, None);
    }
}
