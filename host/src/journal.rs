//! What p2pvm changed on this machine, noted before the change, so that one of these undoes it: the
//! daemon at its end, its guardian after a kill, the next daemon, or `p2pvm down`.
//!
//! One file of the state directory. Writers of several processes take turns by a lock on a file
//! beside it; an undo holds the lock until it has ended.

use crate::{durable::write_atomically, passage::Passage};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The version that is written. The previous version had no such field.
const VERSION: u32 = 2;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Change {
    /// A passage through another firewall.
    Passage {
        /// The interface that it is for.
        device: String,
        /// The passage.
        passage: Passage,
    },
    /// Routes in a network's own routing table, and the policy rules that lead there.
    Routes {
        /// The table's number.
        table: u32,
    },
    /// `net.ipv4.conf.IF.forwarding` was off ([`crate::forwarding::ForwardingState`]).
    Forwarding {
        /// The interface that forwards now.
        interface: String,
    },
    /// An nftables table.
    Table {
        /// Its name, in family ip.
        name: String,
    },
}

/// What the previous release noted about forwarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerForwarding {
    /// The table's name.
    pub table: String,
    /// Whether it switched `net.ipv4.ip_forward` on.
    pub switched_on: bool,
}

/// What the journal holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entries {
    version: u32,
    /// Changes in the kernel, oldest first.
    pub kernel: Vec<Change>,
    /// What [`crate::names`] changed, in its own format.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub names: serde_json::Value,
    /// The previous release's forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<FormerForwarding>,
    /// The previous release's entry in a list of name servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
}

impl Entries {
    /// Whether there is nothing to undo.
    pub fn is_empty(&self) -> bool {
        self.kernel.is_empty()
            && self.names.is_null()
            && self.forwarding.is_none()
            && self.resolv_conf.is_none()
    }

    /// Adds a change, once.
    pub fn note(&mut self, change: Change) {
        if !self.kernel.contains(&change) {
            self.kernel.push(change);
        }
    }

    /// The interfaces whose forwarding p2pvm switched on.
    pub fn switched(&self) -> impl Iterator<Item = &String> {
        self.kernel.iter().filter_map(|change| {
            if let Change::Forwarding { interface } = change {
                Some(interface)
            } else {
                None
            }
        })
    }
}

/// The journal's file.
#[derive(Clone, Debug)]
pub struct Journal(PathBuf);

/// Held while the journal is read, changed and written.
pub struct JournalGuard<'a> {
    path: &'a Path,
    /// What the journal holds.
    pub entries: Entries,
    _lock: Flock<fs::File>,
}

impl JournalGuard<'_> {
    /// Writes the entries; without entries it removes the file.
    ///
    /// # Errors
    /// The file system's error.
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
    /// The journal at `path`, which is not opened yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// What the journal holds. An unreadable file counts as empty, with a warning in the log.
    pub fn load(&self) -> Entries {
        let read = match fs::read(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Entries::default(),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, file = %self.0.display(), "what was changed on this machine is \
                not known");
            Entries::default()
        })
    }

    /// Locks the journal, after all other writers, and reads it.
    ///
    /// # Errors
    /// The file system's error.
    pub fn hold(&self) -> io::Result<JournalGuard<'_>> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.with_extension("lock"))?;
        let mut file = file;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((same, nix::errno::Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(errno.into()),
            }
        };
        Ok(JournalGuard {
            path: &self.0,
            entries: self.load(),
            _lock: lock,
        })
    }

    /// Changes the entries, durable on return.
    ///
    /// # Errors
    /// The file system's error; then the caller must not change the machine.
    pub fn alter(&self, change: impl FnOnce(&mut Entries)) -> io::Result<()> {
        let mut held = self.hold()?;
        let before = held.entries.clone();
        change(&mut held.entries);
        if held.entries == before {
            Ok(())
        } else {
            held.save()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_remembered_until_undone_and_damage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(dir.path().join("undo.json"));
        let change = || Change::Forwarding {
            interface: "lan0".into(),
        };
        journal.alter(|entries| entries.note(change())).unwrap();
        journal.alter(|entries| entries.note(change())).unwrap();
        assert_eq!(journal.load().kernel, [change()], "once");
        journal
            .alter(|entries| {
                entries.names = serde_json::json!({ "resolv_conf": "/etc/resolv.conf" })
            })
            .unwrap();
        assert_eq!(journal.load().kernel.len(), 1);
        journal
            .alter(|entries| *entries = Entries::default())
            .unwrap();
        assert!(!dir.path().join("undo.json").exists());
        fs::write(dir.path().join("undo.json"), b"{").unwrap();
        assert!(journal.load().is_empty());
    }

    #[test]
    fn the_previous_releases_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("undo.json");
        fs::write(
            &path,
            r#"{"forwarding":{"table":"p2pvm_p2pvm0","switched_on":true},
                "resolv_conf":"/etc/resolv.conf"}"#,
        )
        .unwrap();
        let entries = Journal::at(&path).load();
        assert_eq!(
            entries.forwarding,
            Some(FormerForwarding {
                table: "p2pvm_p2pvm0".into(),
                switched_on: true
            })
        );
        assert_eq!(entries.resolv_conf, Some("/etc/resolv.conf".into()));
        fs::write(&path, r#"{"forwarding":null,"resolv_conf":null}"#).unwrap();
        assert!(Journal::at(&path).load().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_its_content_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(dir.path().join("missing/undo.json"));
        assert!(
            journal
                .alter(|entries| entries.note(Change::Routes { table: 1 }))
                .is_err()
        );
    }
}
