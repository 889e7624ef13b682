//! What can go wrong with a VM, each variant naming the step. The cause, where there is one, is its
//! source: [`p2pvm_overlay::chain`] makes the sentence of both.

use p2pvm_overlay::FabricError;
use std::{io, path::PathBuf};
use tokio::task::JoinError;

/// The cause of a failed step: another crate's error, or a sentence.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation on a VM failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program this crate runs is not installed.
    #[error("{program} is not installed: {hint}")]
    Missing {
        /// The program.
        program: &'static str,
        /// How to get it.
        hint: &'static str,
    },
    /// The file system failed.
    #[error("{step}: {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The hypervisor did not start, died, or refused a command.
    #[error("{step}: {detail}")]
    Hypervisor {
        /// What was being done.
        step: &'static str,
        /// What it printed or answered: another program's words, with no typed cause.
        detail: String,
    },
    /// The hypervisor's monitor cannot be written to: its process ends, or has ended.
    #[error("{step}: cannot write to the monitor")]
    Monitor {
        /// The command.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A task of this program ended before its work was done.
    #[error("{step}")]
    Task {
        /// What was being done.
        step: &'static str,
        /// How the task ended.
        source: JoinError,
    },
    /// A step took longer than it may.
    #[error("{step} did not finish within {seconds} s")]
    TimedOut {
        /// What was being done.
        step: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// No VM, snapshot or image has that name.
    #[error("{0} is not known here or in the network")]
    NotFound(String),
    /// The request contradicts the VM's state, with what to do instead.
    #[error("{0}")]
    Refused(String),
    /// The operation was cancelled on request.
    #[error("cancelled on request")]
    Cancelled,
    /// Another operation on the VM goes first; the caller repeats this one later.
    #[error("{0}")]
    GaveWay(String),
    /// Another member could not be reached or refused.
    #[error("{step}")]
    Peer {
        /// What was being done.
        step: &'static str,
        /// The fabric's answer.
        source: FabricError,
    },
    /// The records or voters could not decide.
    #[error("{step}")]
    Agreement {
        /// What was being decided.
        step: &'static str,
        /// Why not.
        source: Cause,
    },
    /// The guardian of this host's guests did not do what it was asked.
    #[error("{0}")]
    Guardian(#[from] crate::guardian::GuardianError),
    /// Chunks could not be stored or fetched.
    #[error("{step}")]
    Chunks {
        /// What was being done.
        step: &'static str,
        /// Why not.
        source: Cause,
    },
}

impl Error {
    /// Whether the hypervisor failed. A guest that ends by itself looks the same.
    pub(crate) fn is_of_hypervisor(&self) -> bool {
        matches!(self, Self::Hypervisor { .. } | Self::Monitor { .. })
    }
}

/// Wraps an I/O error with its step and path.
pub(crate) fn io_at(
    step: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        step,
        path: path.into(),
        source,
    }
}

/// Wraps the cause for which records or voters could not decide.
pub(crate) fn undecided<E: Into<Cause>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |cause| Error::Agreement {
        step,
        source: cause.into(),
    }
}

/// Wraps a failed request to another member.
pub(crate) fn peer(step: &'static str) -> impl FnOnce(FabricError) -> Error {
    move |source| Error::Peer { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ballot::BallotError;
    use p2pvm_overlay::{MemberId, chain};

    #[test]
    fn a_sentence_names_the_step_and_once_what_the_system_said() {
        let error = io_at("open the disk image", "/vm/disk")(io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "open the disk image: /vm/disk");
        assert_eq!(
            chain(&error),
            "open the disk image: /vm/disk: Permission denied (os error 13)"
        );
    }

    #[test]
    fn a_sentence_names_once_what_another_member_answered() {
        let to = MemberId([7; 32]);
        let error = Error::Peer {
            step: "moving",
            source: FabricError::Refused(to, "no room".into()),
        };
        assert_eq!(
            chain(&error),
            format!("moving: {} refused: no room", to.short())
        );
    }

    #[test]
    fn a_sentence_names_the_decision_and_once_why_it_was_not_made() {
        let missing = BallotError::NoMajority {
            answered: 1,
            asked: 3,
        };
        let error = undecided("asking the VM's voters")(missing);
        assert_eq!(error.to_string(), "asking the VM's voters");
        assert_eq!(
            chain(&error),
            "asking the VM's voters: only 1 of 3 voters answered: a majority is needed"
        );
        let error: Error = undecided("publishing the VM's record")("another writer keeps racing");
        assert_eq!(
            chain(&error),
            "publishing the VM's record: another writer keeps racing"
        );
    }
}
