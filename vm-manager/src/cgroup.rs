//! A guest's control group, on either layout of the hierarchy, where this process may write it.
//!
//! Where both layouts are mounted, the guest is in groups of both: version 1 limits it, and version
//! 2 can freeze it at once ([`crate::guardian`]).
//!
//! Limits are a ceiling against a runaway QEMU, with room above what the guest was promised;
//! sharing among guests is left to the scheduler. Without a writable hierarchy there is no group,
//! and no error: a container often has none.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Where version 2 is mounted beside version 1.
const BESIDE: &str = "unified";
/// The group that all guests' groups are below.
const PARENT: &str = "p2pvm";
/// How much memory QEMU itself may take beside the guest's RAM and a quarter as much again, MiB.
/// Reason: translated code (TCG), block and network buffers, page tables.
const OVERHEAD_MIB: u64 = 512;
/// How many threads one QEMU may have. Reason: processors, block workers, migration.
const THREADS: u32 = 256;
/// The period that processor time is counted in, microseconds. Reason: it is the kernel's default.
const PERIOD_US: u64 = 100_000;

/// A guest's ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Processors of the guest; QEMU gets one more for its own work.
    pub(crate) cpus: u32,
    /// The guest's RAM, MiB.
    pub(crate) memory_mib: u64,
}

/// One guest's group: a directory for each hierarchy that limits something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// The group of that name on this host, made or not.
    pub(crate) fn named(name: &str) -> Self {
        Self::below(Path::new(ROOT), name)
    }

    fn below(root: &Path, name: &str) -> Self {
        let unified = is_version_2(root);
        let hierarchies = if unified {
            vec![root.to_owned()]
        } else {
            ["cpu", "memory", "pids", BESIDE]
                .iter()
                .map(|c| root.join(c))
                .collect()
        };
        Self {
            dirs: hierarchies
                .into_iter()
                .filter(|h| h.is_dir())
                .map(|h| h.join(PARENT).join(name))
                .collect(),
        }
    }

    /// Makes the group with its limits, as far as that is allowed, and returns the files through
    /// which a process joins.
    pub(crate) fn create(&self, limits: &Limits) -> Vec<File> {
        self.dirs
            .iter()
            .filter_map(|dir| create(dir, limits))
            .collect()
    }

    /// The file that freezes the process `pid`: its group's of version 2, which it joins now if an
    /// earlier version started it outside. None where there is no such group.
    pub(crate) fn freezer_of(&self, pid: i32) -> Option<PathBuf> {
        let mut dirs = self.dirs.iter();
        let dir = dirs.find(|dir| {
            dir.parent()
                .and_then(Path::parent)
                .is_some_and(is_version_2)
        })?;
        if !is_member(dir, pid) {
            make_parent(dir.parent()?)?;
            fs::create_dir_all(dir).ok()?;
            fs::write(dir.join("cgroup.procs"), pid.to_string()).ok()?;
        }
        let file = dir.join("cgroup.freeze");
        file.exists().then_some(file)
    }

    /// Removes the group; false if a part of it is still in use.
    pub(crate) fn remove(&self) -> bool {
        // All are tried, also after one that fails.
        self.dirs
            .iter()
            .filter(|dir| fs::remove_dir(dir).is_err() && dir.exists())
            .count()
            == 0
    }
}

/// Whether this host has a version 2 tree, whose groups can be frozen.
pub(crate) fn has_freezer() -> bool {
    let root = Path::new(ROOT);
    is_version_2(root) || is_version_2(&root.join(BESIDE))
}

fn is_version_2(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

fn is_member(dir: &Path, pid: i32) -> bool {
    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    members.lines().any(|line| line.trim().parse() == Ok(pid))
}

/// Bounds the processor time of all guests on this host together, or no longer; as far as this
/// process may write the hierarchy.
pub fn limit_processors(cpus: Option<u32>) {
    limit_below(Path::new(ROOT), cpus);
}

fn limit_below(root: &Path, cpus: Option<u32>) {
    for dir in Cgroup::below(root, "any").dirs {
        let Some(parent) = dir.parent() else { continue };
        if cpus.is_some() && make_parent(parent).is_none() {
            continue;
        }
        // Without a quota it is "max" in v2, -1 in v1.
        let quota = cpus.map(|cpus| (u64::from(cpus) * PERIOD_US).to_string());
        let (v2, v1) = match &quota {
            Some(quota) => (format!("{quota} {PERIOD_US}"), quota.as_str()),
            None => (format!("max {PERIOD_US}"), "-1"),
        };
        set(parent, "cpu.max", &v2);
        set(parent, "cpu.cfs_quota_us", v1);
    }
}

/// Makes the group above all guests' groups.
fn make_parent(parent: &Path) -> Option<()> {
    fs::create_dir_all(parent).ok()?;
    for above in [parent.parent()?, parent] {
        // v2 only: children may be limited in what their parents hand down.
        for controller in ["+cpu", "+memory", "+pids"] {
            set(above, "cgroup.subtree_control", controller);
        }
    }
    Some(())
}

fn create(dir: &Path, limits: &Limits) -> Option<File> {
    make_parent(dir.parent()?)?;
    fs::create_dir_all(dir).ok()?;
    for (file, value) in settings(limits) {
        set(dir, file, &value);
    }
    OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.procs"))
        .ok()
}

/// Files of both layouts; those that a hierarchy does not have are skipped.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let bytes = (limits.memory_mib + limits.memory_mib / 4 + OVERHEAD_MIB) << 20;
    let quota = (u64::from(limits.cpus) + 1) * PERIOD_US;
    vec![
        ("cpu.max", format!("{quota} {PERIOD_US}")),
        ("cpu.cfs_period_us", PERIOD_US.to_string()),
        ("cpu.cfs_quota_us", quota.to_string()),
        ("memory.max", bytes.to_string()),
        ("memory.limit_in_bytes", bytes.to_string()),
        ("pids.max", THREADS.to_string()),
        // A guest with the same group may have died frozen.
        ("cgroup.freeze", "0".to_owned()),
    ]
}

fn set(dir: &Path, file: &str, value: &str) {
    let path = dir.join(file);
    if path.exists()
        && let Err(error) = fs::write(&path, value)
    {
        tracing::debug!(
            path = %path.display(),
            value,
            error = %p2pvm_overlay::chain(&error),
            "cgroup setting refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        cpus: 2,
        memory_mib: 128,
    };

    #[test]
    fn both_layouts_are_told_apart_and_limited() {
        let old = tempfile::tempdir().unwrap();
        for hierarchy in ["cpu/p2pvm/vm", "memory/p2pvm/vm"] {
            fs::create_dir_all(old.path().join(hierarchy)).unwrap();
        }
        let limit = old.path().join("memory/p2pvm/vm/memory.limit_in_bytes");
        fs::write(&limit, "").unwrap();
        fs::write(old.path().join("memory/p2pvm/vm/cgroup.procs"), "").unwrap();
        let group = Cgroup::below(old.path(), "vm");
        assert_eq!(group.dirs.len(), 2, "pids is not mounted");
        assert_eq!(group.create(&LIMITS).len(), 1, "only memory can be joined");
        assert_eq!(
            fs::read_to_string(limit).unwrap(),
            (672u64 << 20).to_string()
        );

        let new = tempfile::tempdir().unwrap();
        fs::write(new.path().join("cgroup.controllers"), "cpu memory").unwrap();
        assert_eq!(
            Cgroup::below(new.path(), "vm").dirs,
            [new.path().join("p2pvm/vm")]
        );
    }

    #[test]
    fn beside_version_1_a_guest_has_a_group_that_can_be_frozen() {
        let old = tempfile::tempdir().unwrap();
        let (root, group) = (old.path().join("unified"), "unified/p2pvm/vm");
        fs::create_dir_all(old.path().join("cpu")).unwrap();
        fs::create_dir_all(old.path().join(group)).unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let file = old.path().join(group).join("cgroup.freeze");
        fs::write(&file, "1").unwrap();
        let both = Cgroup::below(old.path(), "vm");
        assert_eq!(both.dirs.len(), 2);
        both.create(&LIMITS);
        assert_eq!(fs::read_to_string(&file).unwrap(), "0", "left frozen");
        assert_eq!(both.freezer_of(77), Some(file));
        let joined = fs::read_to_string(old.path().join(group).join("cgroup.procs"));
        assert_eq!(joined.unwrap(), "77", "started outside");
        fs::remove_file(root.join("cgroup.controllers")).unwrap();
        assert_eq!(both.freezer_of(77), None, "no version 2");
    }

    #[test]
    fn all_guests_together_are_bounded_and_unbounded_again() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let limit = root.path().join("p2pvm/cpu.max");
        fs::create_dir_all(limit.parent().unwrap()).unwrap();
        fs::write(&limit, "").unwrap();
        for (cpus, text) in [(Some(2), "200000 100000"), (None, "max 100000")] {
            limit_below(root.path(), cpus);
            assert_eq!(fs::read_to_string(&limit).unwrap(), text);
        }
    }

    #[test]
    fn a_host_without_a_hierarchy_has_no_group() {
        let none = tempfile::tempdir().unwrap();
        assert!(Cgroup::below(none.path(), "vm").create(&LIMITS).is_empty());
    }
}
