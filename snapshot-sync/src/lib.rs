//! Content-addressed images, disks and checkpoints: a file becomes chunks named by the hash of
//! their content, a manifest lists them, and a member fetches from others the chunks that it does
//! not have yet. Neither hypervisor nor DHT is used here: the caller names the members that have a
//! manifest, and stores where its replicas are.
//!
//! From the bottom: [`chunk`] (names and stored form), [`store`] (chunks on this disk, pins,
//! garbage collection), [`SealKey`] (chunks that others cannot read), [`manifest`] and
//! [`checkpoint`] (what the chunks make up), [`file`](mod@file) (import and export), [`exchange`]
//! (fetch, serve, replicate), [`images`] (base images as read-only files).

pub mod checkpoint;
pub mod chunk;
pub mod error;
pub mod exchange;
pub mod file;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
mod id;
pub mod images;
pub mod manifest;
mod seal;
pub mod store;
mod tree;
#[cfg(test)]
mod wide_area;

pub use checkpoint::Checkpoint;
pub use error::Error;
pub use exchange::{Exchange, ExchangeOptions, FetchReport, Replication, ReplicationState};
pub use file::{
    Block, FilePatch, ImportedFile, PatchedFile, export_file, export_sealed, import_file,
    import_patch,
};
pub use id::{ChunkId, ManifestId, ParseChunkIdError};
pub use images::{ImageId, Images};
pub use manifest::{Extent, Manifest};
pub use seal::{SealKey, Sealer};
pub use store::{Census, ChunkStore, CollectionReport, Hold, Pin, ScrubState, Verified};
pub use tree::Kind;

use serde::{Deserialize, Serialize};

/// How far an import, export or fetch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many bytes of content are done, whether they were transferred or were here already.
    pub done_bytes: u64,
    /// How many bytes of content are needed, as far as known; it grows while manifests are read.
    pub total_bytes: u64,
}
