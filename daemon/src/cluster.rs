//! The whole cluster: questions to all members, what this one answers, and what came of them.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod http;
pub(crate) mod service;
