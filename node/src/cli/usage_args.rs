//! The grammar of `p2pvm usage`.

use clap::Args;
use std::time::Duration;

/// The example of `p2pvm usage`.
pub const EXAMPLE: &str = "Memory, disk and replicas are in GiB times hours: 2 GiB for three hours \
    are 6. Memory and disk count as the VM\nis defined, not as the guest uses \
    them.\n\nExamples:\n  p2pvm usage\n  p2pvm usage --here --by vm --since 30d";

/// Arguments of `usage`.
#[derive(Args)]
pub struct UsageArgs {
    /// Show only what members used of this host
    #[arg(long, conflicts_with = "mine")]
    pub here: bool,
    /// Show only what this member used of other hosts
    #[arg(long)]
    pub mine: bool,
    /// How far back: by the hour for two days, then by the day, at most 400 days
    #[arg(long, value_name = "DURATION", default_value = "7d",
          value_parser = humantime::parse_duration)]
    pub since: Duration,
    /// What to sum up by; by owner and host if left out
    #[arg(long, value_parser = ["owner", "host", "vm"])]
    pub by: Option<String>,
}
