//! The grammar of `p2pvm events` and `p2pvm explain`.

use clap::Args;
use std::{path::PathBuf, time::Duration};

/// The example of `p2pvm events`.
pub const EVENTS_EXAMPLE: &str = "Examples:\n  p2pvm events --since 2h\n  p2pvm events --vm web \
    --kind guest-crashed --json\n  p2pvm events --follow\n\nEach host keeps the events that it \
    saw: ask the host that a VM was on. docs/events.md lists the kinds.";

/// The example of `p2pvm explain`.
pub const EXPLAIN_EXAMPLE: &str = "Examples:\n  p2pvm explain web\n  p2pvm explain web --proof \
    web.proof\n  p2pvm explain --verify web.proof   # on any machine, without a network";

/// Arguments of `events`.
#[derive(Args)]
pub struct EventsArgs {
    /// Only events about this VM, by name or id
    #[arg(long, value_name = "VM")]
    pub vm: Option<String>,
    /// Only events about this member, by name or id
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<String>,
    /// Only events of this kind, such as guest-crashed
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// How far back, such as 2h or 7d; by default the newest events
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// How many of the newest events; with --since all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Go on with each new event until Ctrl-C
    #[arg(long)]
    pub follow: bool,
}

/// Arguments of `explain`.
#[derive(Args)]
pub struct ExplainArgs {
    /// The VM
    #[arg(required_unless_present = "verify")]
    pub name: Option<String>,
    /// Write the signed chain of the VM's events on its host to this file
    #[arg(long, value_name = "FILE")]
    pub proof: Option<PathBuf>,
    /// Check such a file and list its events; needs no daemon
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "proof"])]
    pub verify: Option<PathBuf>,
}
