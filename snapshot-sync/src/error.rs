//! What can go wrong with chunks, each variant naming the step.

use crate::{ChunkId, ManifestId};
use p2pvm_overlay::{FabricError, MemberId};
use std::{error, io, path::PathBuf};

/// A text, or another crate's error.
type Cause = Box<dyn error::Error + Send + Sync>;

/// Why an operation on chunks failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// The chunk is not in this store.
    #[error("chunk {} is not here", .0.short())]
    NotFound(ChunkId),
    /// A chunk that was stored or sent under this name is unreadable or has other content. A stored
    /// one has been removed, so that it is fetched again.
    #[error("chunk {} is damaged", .id.short())]
    Corrupt {
        /// The chunk.
        id: ChunkId,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The key does not open the chunk: it was sealed with another one, or changed.
    #[error("chunk {} was sealed with another key", .0.short())]
    Locked(ChunkId),
    /// The file's chunks are sealed, and the caller has no key.
    #[error("the file is sealed for its VM, and its key is not known here")]
    Sealed,
    /// The bytes are not the manifest, checkpoint or message that they should be.
    #[error("malformed {what}")]
    Malformed {
        /// What they should have been.
        what: &'static str,
        /// What is wrong.
        #[source]
        cause: Cause,
    },
    /// A manifest names chunks that are not in this store.
    #[error("manifest {} lacks {missing} chunks here", .manifest.short())]
    Incomplete {
        /// The manifest.
        manifest: ManifestId,
        /// How many.
        missing: usize,
    },
    /// More bytes than a chunk may have, or than a pin's label may have.
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
    #[error("manifest {}: {missing} chunks could not be fetched from {}",
        .manifest.short(), shorts(.providers))]
    NoProvider {
        /// The manifest.
        manifest: ManifestId,
        /// How many chunks are still missing, as far as known.
        missing: usize,
        /// The members that were asked.
        providers: Vec<MemberId>,
        /// Why the last of them failed.
        #[source]
        cause: Cause,
    },
    /// The caller did not ask for the replica, and did not prove with the VM's key that it may
    /// release it.
    #[error("the replica of {} is kept for {}: let the member that asked for it release it, or the \
        one that holds the VM", .manifest.short(), keepers(.owners))]
    NotYours {
        /// The manifest.
        manifest: ManifestId,
        /// The members that it is kept for; empty if it is this member's own.
        owners: Vec<MemberId>,
    },
    /// The replicas of one member would take more than it may have kept here.
    #[error("the replicas of {} here would take {wanted_mib} MiB, and one member may have \
        {allowed_mib} MiB kept: delete snapshots, or raise replica_percent in node.toml here",
        .member.short())]
    Share {
        /// The member.
        member: MemberId,
        /// What they would take, MiB.
        wanted_mib: u64,
        /// What it may have kept, MiB.
        allowed_mib: u64,
    },
    /// As many replicas wait or are fetched for the member as one member may have.
    #[error("{0} replicas for this member are being fetched: ask again later")]
    TooMany(usize),
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

/// The members that a replica is kept for, in words.
fn keepers(owners: &[MemberId]) -> String {
    if owners.is_empty() {
        return "the member that has it".to_owned();
    }
    shorts(owners)
}

/// `cause` says what is wrong with the bytes, or is the parser's error.
pub(crate) fn malformed(what: &'static str, cause: impl Into<Cause>) -> Error {
    let cause = cause.into();
    Error::Malformed { what, cause }
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

/// Runs file work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // A panic in the work is a bug: it continues in the caller. Only the end of the runtime
    // cancels.
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Error::Closed { step }),
    }
}
