//! How far a move of a guest has come on its source, and what of one is still in QEMU when the
//! daemon that began it was killed.
//!
//! A later daemon has no other memory than QEMU's: the mirror's target stays a block node until it
//! is removed, and the state of the last migration stays readable for good. Two things make that
//! state ambiguous, and are told apart here:
//! - Checkpoints and arriving guests are migrations to QEMU as well. Only a move stops before the
//!   switch-over, and the capabilities stay as the last one set them.
//! - `completed` and `failed` do not go away. A guest that does not stand where a migration left it
//!   was taken back since, or QEMU let it run on by itself because its last bytes could not be
//!   written. The mirror tells how far such a move had come: it is ended, and its job dismissed,
//!   right before the last of memory is sent, while one that broke stays listed.

use super::{
    migration::{MIRROR, REMOTE},
    qmp::Qmp,
};
use crate::Error;
use serde_json::{Value, json};

/// The capability that only a move sets.
pub(super) const PAUSES: &str = "pause-before-switchover";

/// How far a move has come on its source.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MoveState {
    pub(super) mirror: bool,
    pub(super) ram: bool,
    /// Whether the guest ran when RAM began to move, and so is to run again if the move is given
    /// up.
    pub(super) ran: Option<bool>,
    pub(super) listening: bool,
}

impl MoveState {
    pub(super) fn is_under_way(&self) -> bool {
        self.mirror || self.ram || self.listening
    }

    /// What QEMU still has of a move. `capabilities` are those of [`capabilities_set`].
    pub(super) async fn left_in(qmp: &Qmp, capabilities: &[String]) -> Result<Self, Error> {
        let nodes = qmp
            .run("query-named-block-nodes", json!({ "flat": true }))
            .await?;
        let exports = qmp.run("query-block-exports", json!({})).await?;
        let migration = qmp.run("query-migrate", json!({})).await?;
        let guest = qmp.run("query-status", json!({})).await?;
        let (migration, guest) = (
            migration["status"].as_str().unwrap_or("none"),
            guest["status"].as_str().unwrap_or_default(),
        );
        let ram = capabilities.iter().any(|c| c == PAUSES) && is_open(migration, guest);
        Ok(Self {
            mirror: nodes
                .as_array()
                .is_some_and(|nodes| nodes.iter().any(|node| node["node-name"] == REMOTE)),
            ram,
            // A guest that was paused on request, before or since, is resumed on request.
            ran: ram.then_some(guest != "paused"),
            listening: exports
                .as_array()
                .is_some_and(|exports| !exports.is_empty()),
        })
    }
}

/// Whether a move whose migration and guest QEMU reports in these states has still to be given up.
fn is_open(migration: &str, guest: &str) -> bool {
    match migration {
        "none" | "cancelled" => false,
        "completed" | "failed" => matches!(guest, "postmigrate" | "finish-migrate"),
        _ => true,
    }
}

/// Whether all that matters of a guest may have been sent by the last move.
pub(super) async fn may_be_handed_over(qmp: &Qmp) -> Result<bool, Error> {
    let pauses = capabilities_set(qmp).await?.iter().any(|c| c == PAUSES);
    let migration = qmp.run("query-migrate", json!({})).await?;
    let jobs = qmp.run("query-jobs", json!({})).await?;
    let mirrors = jobs
        .as_array()
        .is_some_and(|jobs| jobs.iter().any(|job| job["id"] == MIRROR));
    let migration = migration["status"].as_str().unwrap_or("none");
    Ok(pauses && !mirrors && is_beyond_the_switch(migration))
}

/// Whether a migration in this state may have sent the last of memory.
fn is_beyond_the_switch(migration: &str) -> bool {
    !matches!(
        migration,
        "none" | "setup" | "active" | "pre-switchover" | "cancelling" | "cancelled"
    )
}

/// The migration capabilities that are on.
pub(super) async fn capabilities_set(qmp: &Qmp) -> Result<Vec<String>, Error> {
    let all = qmp.run("query-migrate-capabilities", json!({})).await?;
    let on = |c: &Value| {
        c["capability"]
            .as_str()
            .filter(|_| c["state"] == true)
            .map(str::to_owned)
    };
    Ok(all
        .as_array()
        .map(|all| all.iter().filter_map(on).collect())
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_migration_is_open_until_its_guest_has_gone_on() {
        for migration in [
            "setup",
            "active",
            "pre-switchover",
            "device",
            "cancelling",
            "postcopy-active",
            "one of QEMU 42",
        ] {
            assert!(
                is_open(migration, "running") && is_open(migration, "finish-migrate"),
                "{migration}"
            );
        }
        for ended in ["completed", "failed"] {
            assert!(
                is_open(ended, "postmigrate") && is_open(ended, "finish-migrate"),
                "{ended}"
            );
            assert!(
                !is_open(ended, "running") && !is_open(ended, "paused"),
                "{ended}"
            );
        }
        assert!(!is_open("none", "running") && !is_open("cancelled", "paused"));
    }

    #[test]
    fn a_move_that_failed_may_have_handed_the_guest_over() {
        for beyond in [
            "device",
            "failed",
            "completed",
            "postcopy-active",
            "one of QEMU 42",
        ] {
            assert!(is_beyond_the_switch(beyond), "{beyond}");
        }
        for before in ["none", "setup", "active", "pre-switchover", "cancelled"] {
            assert!(!is_beyond_the_switch(before), "{before}");
        }
    }
}
