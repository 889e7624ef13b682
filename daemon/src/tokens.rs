//! Rights on VMs and hosts that owners give to other members: tokens that this member made, was
//! given, and shows with its requests, and those that it took back. What a token means is
//! `p2pvm_authority`'s.

pub(crate) mod http;
mod kept;
pub(crate) mod revoke;
pub(crate) mod service;
pub(crate) mod shares;
mod taken;
pub(crate) mod users;
