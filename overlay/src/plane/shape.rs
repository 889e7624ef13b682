//! The form of packets: what is read in them, and how they are cut, joined and refused.

pub(super) mod checksum;
pub(super) mod cut;
pub(super) mod join;
pub mod packet;
pub(super) mod pieces;
pub(super) mod pmtu;
pub(super) mod too_big;
