//! Why an operation on the emulated wide area failed.

use std::io;

/// Why an operation on a testbed failed; [`crate::chain`] adds the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sites file is invalid.
    #[error("sites file: {0}")]
    Sites(String),
    /// A file, device or system call failed.
    #[error("cannot {0}")]
    Io(String, #[source] io::Error),
    /// `ip` or `nft` failed.
    #[error("{line} failed: {said}")]
    Program {
        /// The command line.
        line: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// A host's command ended with a status other than 0.
    #[error("on host {host}: {line} ended with {status}: {said}")]
    Command {
        /// The host.
        host: String,
        /// The command line.
        line: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to standard error.
        said: String,
    },
    /// There is a testbed of this name already.
    #[error("there is a testbed {0} already: take it down first, or use another name")]
    Exists(String),
    /// No testbed of this name runs.
    #[error("there is no testbed {0}: start it with `testbed up`")]
    NotUp(String),
    /// No host or site has this name.
    #[error("no host or site is named {0}")]
    NoSuch(String),
    /// Links join sites, so a host that shares its site cannot be cut off by name.
    #[error(
        "cannot cut between {0} and {1}: name two sites, or hosts that are alone at different sites"
    )]
    NotALink(String, String),
    /// SIGKILL did not end some processes.
    #[error("processes {pids:?} in {place} survive SIGKILL")]
    Undead {
        /// Their network namespace, or the directory that they run in.
        place: String,
        /// Their ids.
        pids: Vec<i32>,
    },
    /// The testbed's keeper is a process that also does other work.
    #[error("testbed {name} belongs to process {pid}, which takes it down when it ends")]
    Owned {
        /// The testbed.
        name: String,
        /// The process.
        pid: i32,
    },
    /// The keeper or forwarder has ended.
    #[error("the testbed's keeper has ended: take the testbed down and up again")]
    Gone,
    /// The keeper got a request that it cannot read.
    #[error("the testbed's keeper: invalid request")]
    Request(#[source] serde_json::Error),
    /// The keeper's own error. It comes from another process, as a sentence.
    #[error("the testbed's keeper: {0}")]
    Keeper(String),
}
