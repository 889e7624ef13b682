//! How safe a snapshot is, as words.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How safe a snapshot is. In JSON it is its words; those of a later version stay readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// On the VM's host alone.
    Local,
    /// Some of the wanted copies are made.
    Replicating {
        /// How many other members hold all of it.
        done: usize,
        /// How many should.
        wanted: usize,
    },
    /// As many other members as wanted hold all of it.
    Durable,
    /// It was durable and has lost a copy since; it is being copied again.
    Degraded {
        /// How many other members still hold all of it.
        done: usize,
        /// How many should.
        wanted: usize,
    },
    /// Words of a later version.
    Other(String),
}

impl Default for SnapshotState {
    /// No words: nothing was told.
    fn default() -> Self {
        Self::Other(String::new())
    }
}

/// The figures of "replicating 1 of 2" and "degraded 1 of 2".
fn figures(words: &str) -> Option<SnapshotState> {
    let (state, figures) = words.split_once(' ')?;
    let (done, wanted) = figures.split_once(" of ")?;
    let (done, wanted) = (done.parse().ok()?, wanted.parse().ok()?);
    let state = match state {
        "replicating" => SnapshotState::Replicating { done, wanted },
        "degraded" => SnapshotState::Degraded { done, wanted },
        _ => return None,
    };
    // "+1" is a number too, but would be passed on as "1".
    (state.to_string() == words).then_some(state)
}

impl From<String> for SnapshotState {
    fn from(words: String) -> Self {
        match words.as_str() {
            "local" => Self::Local,
            "durable" => Self::Durable,
            _ => figures(&words).unwrap_or(Self::Other(words)),
        }
    }
}

impl From<&str> for SnapshotState {
    fn from(words: &str) -> Self {
        Self::from(words.to_owned())
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Replicating { done, wanted } => write!(f, "replicating {done} of {wanted}"),
            Self::Durable => f.write_str("durable"),
            Self::Degraded { done, wanted } => write!(f, "degraded {done} of {wanted}"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl Serialize for SnapshotState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotState {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        String::deserialize(reader).map(Self::from)
    }
}

/// As any text.
#[cfg(test)]
impl schemars::JsonSchema for SnapshotState {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SnapshotState".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn a_snapshots_state_is_its_words_and_later_ones_pass_through() {
        let replicating = SnapshotState::Replicating { done: 1, wanted: 2 };
        let degraded = SnapshotState::Degraded { done: 0, wanted: 2 };
        for (state, text) in [
            (SnapshotState::Local, "\"local\""),
            (replicating, "\"replicating 1 of 2\""),
            (SnapshotState::Durable, "\"durable\""),
            (degraded, "\"degraded 0 of 2\""),
            (SnapshotState::default(), "\"\""),
        ] {
            assert_text(&state, text);
        }
        for words in [
            "sealed",
            "replicating",
            "replicating +1 of 2",
            "replicating 1 of many",
            "degraded +1 of 2",
            "lost 1 of 2",
            "replicating 99999999999999999999999 of 2",
        ] {
            let state = SnapshotState::from(words);
            assert_eq!(state, SnapshotState::Other(words.to_owned()));
            assert_eq!(state.to_string(), words);
        }
    }
}
