//! The ring: every member reaches every other over few edges, and no member knows all.
//!
//! A member stands on a ring of 2^64 positions at a hash of its key. It keeps edges to the members nearest on both sides, which alone make
//! routing correct, and to some far ones, which make it short (Brunet: Boykin et al. 2006; Symphony: Manku et al. 2003; Kleinberg 2000).

pub mod api;
pub mod message;
pub mod position;
pub mod table;
pub mod wire;

pub use api::{Event, Input, Neighbour, Output, RingOptions, RingStatus};
pub use position::{Node, Position, Range};
pub use table::{Next, Table};
pub use wire::{HOP_LIMIT, Header, Kind, Mode, Packet};
