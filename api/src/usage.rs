//! Who used how much of whose host.
//!
//! Fields of answers are in alphabetical order.

use serde::{Deserialize, Serialize};

/// What rows of `p2pvm usage` are summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum UsageBy {
    /// The member that the VMs were made for.
    Owner,
    /// The member whose host was used.
    Host,
    /// The VM.
    Vm,
}

/// The request of `p2pvm usage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UsageRequest {
    /// What rows are summed by; by owner and host if left out.
    #[serde(default)]
    pub by: Option<UsageBy>,
    /// Whether to list what members used of this host.
    pub here: bool,
    /// Whether to list what this member used of other hosts.
    pub mine: bool,
    /// How far back, in seconds.
    pub seconds: u64,
}

/// Whether host and owner agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReceiptState {
    /// The owner has signed the newest receipt, and none is late.
    Confirmed,
    /// The owner has signed none yet, or not the newest.
    #[default]
    Open,
    /// The host's own VMs: there are no receipts.
    Own,
    /// The owner has refused the newest receipt.
    Refused,
}

/// The receipts between one host and one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UsageReceipts {
    /// Until when the owner has confirmed what was used (RFC 3339).
    pub confirmed_until: Option<String>,
    /// Why the newest receipt was refused.
    pub refused: Option<String>,
    /// Whether they agree.
    pub state: ReceiptState,
}

/// One row of `p2pvm usage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UsageRow {
    /// Processor time.
    pub cpu_seconds: f64,
    /// Promised disk.
    pub disk_gib_hours: f64,
    /// The member whose host was used; none in a sum of several.
    pub host: Option<String>,
    /// Promised memory.
    pub memory_gib_hours: f64,
    /// The member that the VMs were made for, or "others"; none in a sum of several.
    pub owner: Option<String>,
    /// The receipts, if the row is of one host and one owner.
    pub receipts: Option<UsageReceipts>,
    /// Bytes that the guests received.
    pub received_bytes: u64,
    /// Replicas stored for the owner.
    pub replica_gib_hours: f64,
    /// Bytes that the guests sent.
    pub sent_bytes: u64,
    /// The VM, or "replicas"; none in a sum of several.
    pub vm: Option<String>,
}

/// The answer to `p2pvm usage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UsageView {
    /// What members used of this host, by its own count.
    pub here: Vec<UsageRow>,
    /// What this member used of other hosts, by their receipts.
    pub mine: Vec<UsageRow>,
    /// From when on (RFC 3339).
    pub since: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn usage_is_asked_for_and_answered_with_the_same_text() {
        let request = UsageRequest {
            by: Some(UsageBy::Vm),
            here: true,
            mine: false,
            seconds: 3600,
        };
        let text = r#"{"by":"vm","here":true,"mine":false,"seconds":3600}"#;
        assert_text(&request, text);
        let row = UsageRow {
            cpu_seconds: 1.5,
            host: Some("lab1".into()),
            owner: Some("lab2".into()),
            receipts: Some(UsageReceipts {
                confirmed_until: Some("2026-12-01T06:00:00Z".into()),
                refused: None,
                state: ReceiptState::Confirmed,
            }),
            sent_bytes: 7,
            vm: Some("web".into()),
            ..UsageRow::default()
        };
        let view = UsageView {
            here: vec![row],
            mine: Vec::new(),
            since: "2026-11-24T06:00:00Z".into(),
        };
        let text = concat!(
            r#"{"here":[{"cpu_seconds":1.5,"disk_gib_hours":0.0,"host":"lab1","#,
            r#""memory_gib_hours":0.0,"owner":"lab2","#,
            r#""receipts":{"confirmed_until":"2026-12-01T06:00:00Z","refused":null,"#,
            r#""state":"confirmed"},"received_bytes":0,"replica_gib_hours":0.0,"#,
            r#""sent_bytes":7,"vm":"web"}],"#,
            r#""mine":[],"since":"2026-11-24T06:00:00Z"}"#
        );
        assert_text(&view, text);
    }
}
