//! What p2pvm changed on this machine, written down before it is changed, so that whoever comes next puts it back: the daemon at its
//! end, its guardian at once after a kill, the next daemon, or `p2pvm down`.
//!
//! One file of the state directory. Writers of several processes take turns by a lock on a file beside it; who undoes holds the lock
//! all the while.

use crate::{durable::write_atomically, links::Link, passage::Passage, wanted::Switched};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The version that is written; the one before had no such field.
const VERSION: u32 = 2;

/// Something that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Change {
    /// A passage through another firewall.
    Passage {
        /// For which interface.
        device: String,
        /// The passage.
        passage: Passage,
    },
    /// Routes in a routing table of a network's own, and the policy rules that lead there.
    Routes {
        /// The routing table.
        table: u32,
    },
    /// `net.ipv4.conf.IF.forwarding` was off.
    Forwarding {
        /// The interface.
        interface: String,
        /// Whether `net.ipv4.ip_forward` was on then.
        global: bool,
        /// Which device that was, whatever it is called by now; not written by releases of before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Device>,
    },
    /// An nftables table.
    Table {
        /// Its name, in family ip.
        name: String,
    },
}

/// A device of one boot of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// The boot (random(4), boot_id): indices begin anew with each.
    pub boot: String,
}

impl Device {
    /// The device with this index now.
    pub fn of(index: u32) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { index, boot: boot.trim().to_owned() }
    }
}

/// What the previous release wrote of forwarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The nftables table.
    pub table: String,
    /// Whether it switched `net.ipv4.ip_forward` on.
    pub switched_on: bool,
}

/// What is written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entries {
    version: u32,
    /// In the kernel, oldest first.
    pub kernel: Vec<Change>,
    /// What the part for names changed, in its own words.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub names: serde_json::Value,
    /// The previous release's forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Former>,
    /// The previous release's entry in a list of name servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
}

impl Entries {
    /// Whether nothing is to be undone.
    pub fn is_empty(&self) -> bool {
        self.kernel.is_empty() && self.names.is_null() && self.forwarding.is_none() && self.resolv_conf.is_none()
    }

    /// Adds a change that is not there yet.
    pub fn note(&mut self, change: Change) {
        let same = |known: &Change| match (known, &change) {
            // How an interface was before p2pvm came is what counts.
            (Change::Forwarding { interface: a, .. }, Change::Forwarding { interface: b, .. }) => a == b,
            (known, new) => known == new,
        };
        if !self.kernel.iter().any(same) {
            self.kernel.push(change);
        }
    }

    /// Follows interfaces whose forwarding p2pvm switched on and that are called otherwise by now: their old and new names.
    pub fn follow_renamed(&mut self, links: &[Link]) -> Vec<(String, String)> {
        let mut renamed = Vec::new();
        for change in &mut self.kernel {
            if let Change::Forwarding { interface, device: Some(device), .. } = change
                && links.iter().all(|link| link.name != *interface)
                && let Some(link) = links.iter().find(|link| Device::of(link.index) == *device)
            {
                renamed.push((std::mem::replace(interface, link.name.clone()), link.name.clone()));
            }
        }
        renamed
    }

    /// The interfaces whose forwarding p2pvm switched on.
    pub fn switched(&self) -> impl Iterator<Item = (&String, Switched)> {
        self.kernel.iter().filter_map(|change| match change {
            Change::Forwarding { interface, global, .. } => Some((interface, Switched { global: *global })),
            _ => None,
        })
    }
}

/// The file.
#[derive(Clone, Debug)]
pub struct Journal(PathBuf);

/// Held while the journal is read, changed and written.
pub struct Held<'a> {
    path: &'a Path,
    /// What is written down.
    pub entries: Entries,
    _lock: Flock<fs::File>,
}

impl Held<'_> {
    /// Writes the entries; without any the file goes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&mut self) -> io::Result<()> {
        if self.entries.is_empty() {
            return match fs::remove_file(self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            };
        }
        self.entries.version = VERSION;
        write_atomically(self.path, &serde_json::to_vec_pretty(&self.entries)?, 0o600)
    }
}

impl Journal {
    /// The journal at `path`; nothing is touched yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// What is written down. A file that cannot be read counts as nothing, and says so.
    pub fn load(&self) -> Entries {
        let read = match fs::read(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Entries::default(),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, file = %self.0.display(), "what was changed on this machine is not known");
            Entries::default()
        })
    }

    /// Waits for all other writers.
    ///
    /// # Errors
    /// What the file system says.
    pub fn hold(&self) -> io::Result<Held<'_>> {
        let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(self.0.with_extension("lock"))?;
        let mut file = file;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((same, nix::errno::Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(errno.into()),
            }
        };
        Ok(Held { path: &self.0, entries: self.load(), _lock: lock })
    }

    /// Changes what is written down; on the disk when it returns.
    ///
    /// # Errors
    /// What the file system says; then nothing may be changed on the machine.
    pub fn alter(&self, change: impl FnOnce(&mut Entries)) -> io::Result<()> {
        let mut held = self.hold()?;
        let before = held.entries.clone();
        change(&mut held.entries);
        if held.entries == before { Ok(()) } else { held.save() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_remembered_until_it_is_undone_and_damage_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(dir.path().join("undo.json"));
        let change = |global| Change::Forwarding { interface: "lan0".into(), global, device: None };
        journal.alter(|entries| entries.note(change(false))).unwrap();
        journal.alter(|entries| entries.note(change(true))).unwrap();
        assert_eq!(journal.load().kernel, [change(false)], "how it was first is what is put back");
        journal.alter(|entries| entries.names = serde_json::json!({ "resolv_conf": "/etc/resolv.conf" })).unwrap();
        assert_eq!(journal.load().kernel.len(), 1);
        journal.alter(|entries| *entries = Entries::default()).unwrap();
        assert!(!dir.path().join("undo.json").exists());
        fs::write(dir.path().join("undo.json"), b"{").unwrap();
        assert!(journal.load().is_empty());
    }

    #[test]
    fn an_interface_that_was_renamed_is_followed_and_another_of_a_later_boot_is_not() {
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1500,
            alias: None,
            addresses: Vec::new(),
        };
        let noted = |interface: &str, device| Change::Forwarding { interface: interface.into(), global: false, device: Some(device) };
        let mut entries = Entries::default();
        entries.note(noted("lan0", Device::of(7)));
        assert_eq!(entries.follow_renamed(&[link(7, "lan0")]), []);
        assert_eq!(entries.follow_renamed(&[link(8, "lan1")]), [], "it is gone");
        assert_eq!(entries.follow_renamed(&[link(7, "lan1")]), [("lan0".to_owned(), "lan1".to_owned())]);
        assert_eq!(entries.kernel, [noted("lan1", Device::of(7))]);
        entries.kernel = vec![noted("lan0", Device { index: 7, boot: "another".into() })];
        assert_eq!(entries.follow_renamed(&[link(7, "lan1")]), []);
    }

    #[test]
    fn the_previous_releases_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("undo.json");
        fs::write(&path, r#"{"forwarding":{"table":"p2pvm_p2pvm0","switched_on":true},"resolv_conf":"/etc/resolv.conf"}"#).unwrap();
        let entries = Journal::at(&path).load();
        assert_eq!(entries.forwarding, Some(Former { table: "p2pvm_p2pvm0".into(), switched_on: true }));
        assert_eq!(entries.resolv_conf, Some("/etc/resolv.conf".into()));
        fs::write(&path, r#"{"forwarding":null,"resolv_conf":null}"#).unwrap();
        assert!(Journal::at(&path).load().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_its_content_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(dir.path().join("missing/undo.json"));
        assert!(journal.alter(|entries| entries.note(Change::Routes { table: 1 })).is_err());
    }
}
