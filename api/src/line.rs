//! The lines of a streamed answer: progress, one of several results, the end.

use crate::Failure;
use serde::{Deserialize, Serialize};

/// One line of a streamed answer (newline-delimited JSON).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Progress.
    Progress(Step),
    /// One of several results, such as one pong.
    Item(serde_json::Value),
    /// The end, with the result.
    Done(serde_json::Value),
    /// The end, without.
    Error(Failure),
}

/// A step of a long operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Step {
    /// The phase, in a word or two.
    pub phase: String,
    /// Bytes done in this phase.
    #[serde(default)]
    pub done_bytes: u64,
    /// Bytes known to be needed, 0 if unknown.
    #[serde(default)]
    pub total_bytes: u64,
    /// Further figures to show beside the bar: dirty rate, expected downtime.
    #[serde(default)]
    pub note: String,
}
