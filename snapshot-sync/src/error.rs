//! What can go wrong with chunks, each variant naming the step.

use crate::{ChunkId, ManifestId};
use p2pvm_overlay::{FabricError, MemberId};
use std::{io, path::PathBuf};

/// Why an operation on chunks failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// The chunk is not in this store.
    #[error("chunk {} is not here", .0.short())]
    NotFound(ChunkId),
    /// What is stored or was sent under this name has other content. A stored one has been removed,
    /// so that it is fetched anew.
    #[error("chunk {} is damaged: {detail}", .id.short())]
    Corrupt {
        /// The chunk.
        id: ChunkId,
        /// What is wrong with it.
        detail: String,
    },
    /// Bytes that should be a manifest, a checkpoint or a message are none.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// What they should have been.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A manifest names chunks that are not in this store.
    #[error("manifest {} lacks {missing} chunks here", .manifest.short())]
    Incomplete {
        /// The manifest.
        manifest: ManifestId,
        /// How many.
        missing: usize,
    },
    /// More than one chunk may hold.
    #[error("{what} of {bytes} bytes is too large")]
    TooLarge {
        /// What was to be stored.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Another member could not be reached or refused.
    #[error("{step}")]
    Peer {
        /// What was being done.
        step: &'static str,
        /// The fabric's answer.
        source: FabricError,
    },
    /// No provider could give the rest of a manifest.
    #[error("manifest {}: {missing} chunks could not be fetched from {}: \
        {detail}", .manifest.short(), shorts(.providers))]
    NoProvider {
        /// The manifest.
        manifest: ManifestId,
        /// How many chunks are still missing, as far as known.
        missing: usize,
        /// Who was asked.
        providers: Vec<MemberId>,
        /// What the last of them answered.
        detail: String,
    },
    /// A background thread or task of this crate ended early: the node is shutting down.
    #[error("{step}: the node is shutting down")]
    Closed {
        /// What was being done.
        step: &'static str,
    },
}

fn shorts(members: &[MemberId]) -> String {
    if members.is_empty() {
        return "any member".to_owned();
    }
    members
        .iter()
        .map(MemberId::short)
        .collect::<Vec<_>>()
        .join(", ")
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

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // A panic in the work is a bug: it goes on in the caller. Cancellation happens only when the
    // runtime ends.
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Error::Closed { step }),
    }
}
