//! The operations on a VM, each in a few words that people read and members send each other.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Makes the enum, and both ways between its variants and their words, from one table.
macro_rules! activities {
    ($($(#[$doc:meta])* $variant:ident = $words:literal,)*) => {
        /// The operation that works on a VM.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Activity {
            $($(#[$doc])* $variant,)*
            /// A later version's words for something else.
            Other(String),
        }

        impl Activity {
            /// Its words.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $words,)*
                    Self::Other(words) => words,
                }
            }
        }

        impl From<String> for Activity {
            fn from(words: String) -> Self {
                match words.as_str() {
                    $($words => Self::$variant,)*
                    _ => Self::Other(words),
                }
            }
        }

        #[cfg(test)]
        const KNOWN: &[(Activity, &str)] = &[$((Activity::$variant, $words),)*];
    };
}

activities! {
    /// It is moved to another member.
    Migrating = "migrating",
    /// It is moved here.
    Arriving = "arriving",
    /// Its voters are asked whether it is still this host's.
    Checking = "asking its voters",
    /// Its voters have to say where it may run.
    Settling = "waiting for its voters",
    /// It is created.
    Creating = "being made",
    /// It is started.
    Starting = "starting",
    /// It is started because its host was.
    Restarting = "starting after a restart of the host",
    /// It is stopped.
    Stopping = "stopping",
    /// Its guest ended by itself.
    Ended = "stopped by its guest",
    /// Its paused guest goes on.
    Resuming = "going on",
    /// It is deleted.
    Deleting = "deleting",
    /// What a creation or deletion left is removed.
    Removing = "removing what is left",
    /// A snapshot of it is taken.
    Snapshot = "snapshot",
    /// A snapshot of it is deleted.
    DeletingSnapshot = "deleting a snapshot",
    /// It is restored from a snapshot.
    Restoring = "restoring",
    /// The copy here is replaced by a restore on this host.
    Replaced = "giving way to a restore",
    /// The copy here is left to a restore on another member.
    GivingWay = "giving way to a restore elsewhere",
    /// Its guest stands still for good: another machine has this member's identity.
    GivingUp = "giving it up",
    /// Its move is ended on request.
    EndingMove = "the move's end",
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Activity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Activity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_activity_travels_as_its_words_and_unknown_ones_pass_through() {
        for (activity, words) in KNOWN {
            let text = postcard::to_allocvec(&Some(words.to_string())).unwrap();
            assert_eq!(postcard::to_allocvec(&Some(activity)).unwrap(), text);
            let read: Option<Activity> = postcard::from_bytes(&text).unwrap();
            assert_eq!(read.as_ref(), Some(activity));
        }
        let later: Activity = serde_json::from_str("\"dancing\"").unwrap();
        assert_eq!(later, Activity::Other("dancing".into()));
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"dancing\"");
    }
}

#[cfg(test)]
#[path = "activity_golden_tests.rs"]
mod golden_tests;
