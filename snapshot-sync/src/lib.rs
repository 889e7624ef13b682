//! Content-addressed images, disks and checkpoints: a file becomes chunks named by the hash of
//! their content, a manifest lists them, and members exchange the chunks that the other does not
//! have yet. Knows no hypervisor and no DHT record: callers say who has what and keep the answer.
//!
//! From the bottom: [`chunk`] (names and stored form), [`store`] (chunks on this disk, pins,
//! garbage collection), [`manifest`] and [`checkpoint`] (what the chunks make up),
//! [`file`](mod@file) (import and export), [`exchange`] (fetch, serve, replicate), [`images`] (base
//! images as read-only files).

pub mod checkpoint;
pub mod chunk;
pub mod error;
pub mod exchange;
pub mod file;
pub mod images;
pub mod manifest;
pub mod store;
#[cfg(test)]
mod wide_area;

pub use checkpoint::Checkpoint;
pub use chunk::ChunkId;
pub use error::Error;
pub use exchange::{Exchange, ExchangeOptions, FetchReport, Replication, ReplicationState};
pub use file::{Imported, export_file, import_file};
pub use images::{ImageId, Images};
pub use manifest::{Extent, Kind, Manifest, ManifestId};
pub use store::{ChunkStore, Hold};

use serde::{Deserialize, Serialize};

/// How far an import, export or fetch has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of content dealt with, whether they were moved or found to be here already.
    pub done_bytes: u64,
    /// Bytes of content known to be needed; grows while manifests are still being read.
    pub total_bytes: u64,
}
