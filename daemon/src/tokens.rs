//! Rights on VMs that owners give to other members: tokens that this member made, was given, and
//! shows with its requests. What a token means is `p2pvm_authority`'s.

pub(crate) mod http;
mod kept;
pub(crate) mod service;
