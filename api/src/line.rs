//! The lines of a streamed answer: progress, one of several results, the end.

use crate::Failure;
use serde::{Deserialize, Serialize};

/// One line of a streamed answer (newline-delimited JSON) with the result `T`, before which there
/// may be several results `I`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
#[serde(rename_all = "kebab-case")]
pub enum Line<T, I = NoItem> {
    /// Progress.
    Progress(Step),
    /// One of several results, such as one pong.
    Item(I),
    /// The end, with the result.
    Done(T),
    /// The end, without.
    Error(Failure),
}

/// One of several results where an answer has only the one at its end: there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoItem {}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PathKind, PingSummary, Pong, assert_text};

    #[test]
    fn the_lines_of_an_answer_keep_their_text() {
        type Pinged = Line<PingSummary, Pong>;
        let step = Step {
            phase: "ram".into(),
            done_bytes: 1,
            total_bytes: 2,
            note: "a note".into(),
        };
        let text = r#"{"progress":{"phase":"ram","done_bytes":1,"total_bytes":2,"note":"a note"}}"#;
        assert_text(&Pinged::Progress(step.clone()), text);
        assert_text(&Line::<PingSummary>::Progress(step), text);
        let pong = Pong {
            seq: 1,
            rtt_ms: Some(0.5),
            path: "stream".into(),
            path_kind: Some(PathKind::Stream),
        };
        assert_text(
            &Pinged::Item(pong),
            r#"{"item":{"seq":1,"rtt_ms":0.5,"path":"stream","path_kind":"stream"}}"#,
        );
        let summary = PingSummary {
            received: 1,
            sent: 2,
        };
        let text = r#"{"done":{"received":1,"sent":2}}"#;
        assert_text(&Pinged::Done(summary), text);
        assert_text(&Line::<PingSummary>::Done(summary), text);
        assert_text(
            &Pinged::Error(Failure::cancelled("as requested")),
            r#"{"error":{"kind":"failed","message":"as requested","cancelled":true}}"#,
        );
    }
}
