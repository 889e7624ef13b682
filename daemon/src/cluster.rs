//! The whole cluster: questions to all members, this member's answers, and the collected results.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod http;
pub(crate) mod service;
