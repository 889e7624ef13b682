//! The state directory, `/var/lib/p2pvm` unless `P2PVM_DIR` or `--dir` gives another, and the names
//! of its files. Files that are written as a whole are replaced atomically.

use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_overlay::durable;
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The state directory and the names in it.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

impl Layout {
    /// The layout below `dir`; touches no file.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// Makes the directory, readable by its owner only.
    pub fn create(&self) -> Outcome<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.0)
            .doing(format_args!(
                "cannot make the state directory {} (run as root, or choose another with --dir)",
                self.0.display()
            ))
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// This node's secret keys.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    /// The network's root key: only on the machine that ran `init`.
    pub fn root_key(&self) -> PathBuf {
        self.0.join("root.key")
    }

    /// The network's signed configuration.
    pub fn network(&self) -> PathBuf {
        self.0.join("network")
    }

    /// This member's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.0.join("certificate")
    }

    /// Addresses to dial first, one multiaddr a line.
    pub fn bootstrap(&self) -> PathBuf {
        self.0.join("bootstrap")
    }

    /// The revocations.
    pub fn revocations(&self) -> PathBuf {
        self.0.join("revocations")
    }

    /// The network's policy and what members offer.
    pub fn notices(&self) -> PathBuf {
        self.0.join("notices")
    }

    /// The subnets that this node offers, and whether it uses others'.
    pub fn routes(&self) -> PathBuf {
        self.0.join("routes.json")
    }

    /// The plan of a machine with a copied state to become a member of its own.
    pub fn succession(&self) -> PathBuf {
        self.0.join("succession.json")
    }

    /// The directory of the planned membership.
    pub fn successor(&self) -> PathBuf {
        self.0.join("successor")
    }

    /// The journal of the daemon's changes to this machine that have to be undone.
    pub fn undo(&self) -> PathBuf {
        self.0.join("undo.json")
    }

    /// The settings.
    pub fn config(&self) -> PathBuf {
        self.0.join("node.toml")
    }

    /// The reserve for a full disk.
    pub fn reserve(&self) -> PathBuf {
        self.0.join("reserve")
    }

    /// The control API's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// The web dashboard's unix socket.
    pub fn dashboard_socket(&self) -> PathBuf {
        self.0.join("dashboard.sock")
    }

    /// Where daemon and guest guardian find each other (`p2pvm_vm_manager::guardian`).
    pub fn guardian(&self) -> PathBuf {
        self.0.join("guardian")
    }

    /// The tokens that were given to this member.
    pub fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// The tokens that this member gave.
    pub fn given_tokens(&self) -> PathBuf {
        self.0.join("tokens-given")
    }

    /// This member's revocations of tokens.
    pub fn revoked_tokens(&self) -> PathBuf {
        self.0.join("tokens-revoked")
    }

    /// The names of users.
    pub fn users(&self) -> PathBuf {
        self.0.join("users.json")
    }

    /// Which users this machine's accounts are.
    pub fn user_accounts(&self) -> PathBuf {
        self.0.join("user-accounts.json")
    }

    /// The key of this machine's root as a user, if it made one.
    pub fn user_key(&self) -> PathBuf {
        self.0.join("user.key")
    }

    /// The accounts: what members used of this host, and this member of theirs.
    pub fn usage(&self) -> PathBuf {
        self.0.join("usage")
    }

    /// The log of events: what happened to VMs, members and this host.
    pub fn events(&self) -> PathBuf {
        self.0.join("events")
    }

    /// The web dashboard's token for operators.
    pub fn dashboard_token(&self) -> PathBuf {
        self.0.join("dashboard.token")
    }

    /// The web dashboard's token for readers.
    pub fn dashboard_reader_token(&self) -> PathBuf {
        self.0.join("dashboard.reader.token")
    }

    /// The web dashboard's certificate for a LAN, and its key.
    pub fn dashboard_certificate(&self) -> PathBuf {
        self.0.join("dashboard.certificate")
    }

    /// Whether the web dashboard is on.
    pub fn dashboard_switch(&self) -> PathBuf {
        self.0.join("dashboard.switch")
    }

    /// The changes of what this host offers to other members' VMs.
    pub fn offer(&self) -> PathBuf {
        self.0.join("offer.json")
    }

    /// The ids of the VMs that were made here for this host: `vm-manager` names the file.
    pub fn own_vms(&self) -> PathBuf {
        self.0.join("own-vms")
    }

    /// The lock that a running daemon holds; it contains the daemon's process id.
    pub fn lock(&self) -> PathBuf {
        self.0.join("daemon.pid")
    }

    /// The log of a detached daemon.
    pub fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// The node's own tables.
    pub fn tables(&self) -> PathBuf {
        self.0.join("db")
    }

    /// A voter's promises.
    pub fn votes(&self) -> PathBuf {
        self.0.join("votes.log")
    }

    /// The admissions counted by this member.
    pub fn admissions(&self) -> PathBuf {
        self.0.join("admissions.log")
    }

    /// The lease cache.
    pub fn leases(&self) -> PathBuf {
        self.0.join("leases")
    }

    /// This host's last lease.
    pub fn lease(&self) -> PathBuf {
        self.0.join("lease")
    }

    /// Chunks of images, disks and checkpoints.
    pub fn chunks(&self) -> PathBuf {
        self.0.join("chunks")
    }

    /// Images in whole files.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Virtual machines.
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }

    /// When the members that keep this host's snapshots are asked for them.
    pub fn keepers(&self) -> PathBuf {
        self.0.join("keepers.json")
    }

    /// Which copies of deleted snapshots and former replicas are to end.
    pub fn releases(&self) -> PathBuf {
        self.0.join("releases.json")
    }

    /// Whether this node belongs to a network.
    pub fn is_member(&self) -> bool {
        self.certificate().exists() && self.network().exists()
    }
}

/// Writes `bytes` to `path` so that after a crash either the old or the new content is there.
/// `mode` is the file's.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Outcome<()> {
    durable::write_atomically(path, bytes, mode)
        .doing(format_args!("cannot write {}", path.display()))
}

/// Reads a whole file; `None` if it does not exist.
pub fn read_if_there(path: &Path) -> Outcome<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::new(
            p2pvm_api::Kind::Failed,
            format!("cannot read {}: {}", path.display(), p2pvm_host::chain(&e)),
        )),
    }
}
