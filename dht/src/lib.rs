//! What peers agree on: replicated signed records with TTL and create-if-absent on the closest members,
//! and epochs granted by named voters. Opens no socket: asks the overlay's `Fabric` for lookups and requests.

pub mod record;
pub mod votes;

pub use record::{Record, RecordError, Records};
