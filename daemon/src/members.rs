//! The members: peers and links, pings and traces, invites and admission, twins.

pub(crate) mod admission;
pub(crate) mod book;
pub(crate) mod expelled;
pub(crate) mod http;
mod invite;
pub(crate) mod netcheck;
mod peers;
mod ping;
pub(crate) mod ring;
pub(crate) mod service;
pub(crate) mod twins;
