//! What the rest of this crate may do with a running plane. [`crate::connect`] finds paths and the
//! ring's driver keeps neighbours; both reach the plane through these methods alone. What all
//! callers may do is in `plane.rs`, the plane's own state in `core.rs`.

mod addresses;
mod links;
mod ring;
mod streams;
