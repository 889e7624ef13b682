//! What can go wrong with a VM, each variant naming the step. The cause, where there is one, is its
//! source: [`p2pvm_overlay::chain`] makes the sentence of both.

use std::{io, path::PathBuf};

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
    /// The file system said no.
    #[error("{step}: {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The hypervisor did not start, or died.
    #[error("{step}: {detail}")]
    Hypervisor {
        /// What was being done.
        step: &'static str,
        /// What it printed or answered.
        detail: String,
    },
    /// A step took longer than it may.
    #[error("{step} did not finish within {seconds} s")]
    TimedOut {
        /// What was being done.
        step: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// No VM, snapshot or image of that name.
    #[error("{0} is not known here or in the network")]
    NotFound(String),
    /// The request contradicts the VM's state, with what to do instead.
    #[error("{0}")]
    Refused(String),
    /// Somebody asked for it to be cancelled.
    #[error("cancelled on request")]
    Cancelled,
    /// Another member could not be reached or refused.
    #[error("{step}")]
    Peer {
        /// What was being done.
        step: &'static str,
        /// The fabric's answer.
        source: p2pvm_overlay::FabricError,
    },
    /// The records or voters could not decide.
    #[error("{step}: {detail}")]
    Agreement {
        /// What was being decided.
        step: &'static str,
        /// Why not.
        detail: String,
    },
    /// Chunks could not be stored or fetched.
    #[error("{step}: {detail}")]
    Chunks {
        /// What was being done.
        step: &'static str,
        /// Why not.
        detail: String,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::{FabricError, MemberId, chain};

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
}
