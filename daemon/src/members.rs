//! The members: status, questions to all, invites and admission, twins.

pub(crate) mod admission;
pub(crate) mod ask;
pub(crate) mod book;
pub(crate) mod dashboard;
pub(crate) mod expelled;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod netcheck;
pub(crate) mod ring;
pub(crate) mod status;
pub(crate) mod twins;
