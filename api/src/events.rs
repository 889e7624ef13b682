//! Events: what happened to VMs, members and hosts.
//!
//! Fields of answers are in alphabetical order.

use crate::{MemberIdText, VmIdText, words::words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

words! {
    /// What happened, in a word.
    EventKind:
    /// The daemon started.
    DaemonStarted = "daemon-started",
    /// The daemon ended on request.
    DaemonStopped = "daemon-stopped",
    /// Events were lost: too many came at once, or the disk was full.
    EventsLost = "events-lost",
    /// A member connected for the first time.
    MemberJoined = "member-joined",
    /// A member that is known connected again.
    MemberConnected = "member-connected",
    /// The connection to a member ended.
    MemberLost = "member-lost",
    /// A member left the network.
    MemberLeft = "member-left",
    /// A member was expelled.
    MemberRevoked = "member-revoked",
    /// Another machine with this node's identity was found.
    TwinFound = "twin-found",
    /// A drain of this host ended.
    HostDrained = "host-drained",
    /// What this host offers to other members changed.
    OfferChanged = "offer-changed",
    /// A token was revoked.
    TokenRevoked = "token-revoked",
    /// A request of another member was refused.
    RequestRefused = "request-refused",
    /// A VM was made.
    VmCreated = "vm-created",
    /// A VM was deleted.
    VmDeleted = "vm-deleted",
    /// A VM's guest runs.
    GuestRunning = "guest-running",
    /// A VM's guest stands still.
    GuestPaused = "guest-paused",
    /// A VM's guest was stopped.
    GuestStopped = "guest-stopped",
    /// A VM's guest powered itself off.
    GuestPoweredOff = "guest-powered-off",
    /// A VM's guest crashed: it panicked, or its process ended.
    GuestCrashed = "guest-crashed",
    /// A VM's guest was started again after it ended by itself.
    GuestRestarted = "guest-restarted",
    /// A VM's guest ended too often and stays stopped.
    GuestGivenUp = "guest-given-up",
    /// A VM moved.
    VmMoved = "vm-moved",
    /// A VM's move failed or was cancelled.
    VmMoveFailed = "vm-move-failed",
    /// A VM was restored from a snapshot.
    VmRestored = "vm-restored",
    /// A copy of a VM lost it to another member and became a branch.
    VmFenced = "vm-fenced",
    /// A VM's guest was frozen because its host's lease ran out.
    VmFrozen = "vm-frozen",
    /// A frozen guest goes on: its host has the lease again.
    VmThawed = "vm-thawed",
    /// Another member took the VM of a lost host over.
    VmTakenOver = "vm-taken-over",
    /// This host lost a VM to a member that took it over.
    VmLost = "vm-lost",
    /// A VM's newest replica is older than its recovery point allows.
    RpoExceeded = "rpo-exceeded",
    /// A VM's newest replica is as new again as its recovery point demands.
    RpoKept = "rpo-kept",
    /// A snapshot was taken.
    SnapshotTaken = "snapshot-taken",
    /// A snapshot could not be taken.
    SnapshotFailed = "snapshot-failed",
    /// A snapshot is on as many other members as are wanted.
    SnapshotDurable = "snapshot-durable",
    /// A snapshot lost a copy, or a part of one.
    SnapshotDegraded = "snapshot-degraded",
    /// A snapshot was deleted.
    SnapshotDeleted = "snapshot-deleted",
    /// A stored chunk is damaged.
    ChunkDamaged = "chunk-damaged",
    /// A damaged chunk was fetched again.
    ChunkRepaired = "chunk-repaired",
    /// A voter of a VM is lost.
    VoterLost = "voter-lost",
}

impl EventKind {
    /// Whether other members can cause as many as they like: the log keeps some a minute.
    pub fn is_bounded(&self) -> bool {
        matches!(
            self,
            Self::MemberConnected | Self::MemberLost | Self::MemberJoined | Self::RequestRefused
        )
    }
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct EventView {
    /// When, by the clock of the host that wrote it (RFC 3339, with milliseconds).
    pub at: String,
    /// Figures and names, by their keys.
    pub fields: BTreeMap<String, String>,
    /// The host that wrote it.
    pub host: String,
    /// What happened, in a word.
    pub kind: EventKind,
    /// The member that it is about.
    pub member: Option<MemberIdText>,
    /// The name of the VM or member that it is about, at that time.
    pub name: Option<String>,
    /// Its number among the events of that host.
    pub seq: u64,
    /// What happened, in a sentence.
    pub text: String,
    /// The VM that it is about.
    pub vm: Option<VmIdText>,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct EventsWanted {
    /// Those with a larger number.
    pub after: Option<u64>,
    /// Those of this kind.
    pub kind: Option<EventKind>,
    /// How many at most.
    pub limit: Option<usize>,
    /// Those about the member of this name or id.
    pub member: Option<String>,
    /// Those of so many last seconds.
    pub seconds: Option<u64>,
    /// Those about the VM of this name or id.
    pub vm: Option<String>,
}

/// A page of events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct EventsPage {
    /// The events.
    pub events: Vec<EventView>,
    /// The number after which the next page begins; none if this is the last.
    pub next: Option<u64>,
}

/// The end of a stream of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct EventsEnd {
    /// The number of the last event.
    pub seq: u64,
}

/// A proof of what happened to a VM on the host that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ProofView {
    /// The proof's bytes, in Base64.
    pub proof: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn kinds_are_distinct_words_in_kebab_case() {
        let mut words: Vec<_> = EventKind::KNOWN.iter().map(|(_, word)| *word).collect();
        for (kind, word) in EventKind::KNOWN {
            assert_text(kind, &format!("{word:?}"));
            let is_kebab = |b: u8| b.is_ascii_lowercase() || b == b'-';
            assert!(word.bytes().all(is_kebab), "{word}");
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), EventKind::KNOWN.len());
    }

    #[test]
    fn an_event_and_a_page_keep_their_text() {
        let event = EventView {
            at: "2026-12-01T10:00:00.000Z".into(),
            fields: [("attempt".to_owned(), "1".to_owned())].into(),
            host: "attic".into(),
            kind: EventKind::GuestCrashed,
            member: None,
            name: Some("web".into()),
            seq: 7,
            text: "It crashed.".into(),
            vm: None,
        };
        let text = concat!(
            r#"{"at":"2026-12-01T10:00:00.000Z","fields":{"attempt":"1"},"host":"attic","#,
            r#""kind":"guest-crashed","member":null,"name":"web","seq":7,"#,
            r#""text":"It crashed.","vm":null}"#
        );
        assert_text(&event, text);
        let page = EventsPage {
            events: Vec::new(),
            next: Some(7),
        };
        assert_text(&page, r#"{"events":[],"next":7}"#);
        assert_text(&EventsEnd { seq: 7 }, r#"{"seq":7}"#);
        let wanted = EventsWanted {
            vm: Some("web".into()),
            ..EventsWanted::default()
        };
        let text = concat!(
            r#"{"after":null,"kind":null,"limit":null,"member":null,"#,
            r#""seconds":null,"vm":"web"}"#
        );
        assert_text(&wanted, text);
    }
}
