//! The grammar of `p2pvm offer`.

use super::args::parse_size;
use clap::{Args, Subcommand};
use p2pvm_vm_manager::BitRate;
use std::time::Duration;

/// The example of `p2pvm offer`.
pub const EXAMPLE: &str = "Examples:\n  \
    p2pvm offer set --memory 4G --cpus 2 --hours 18:00-08:00\n  \
    p2pvm offer show\n  p2pvm offer off";

/// `p2pvm offer ...`
#[derive(Subcommand)]
pub enum Offer {
    /// Show what is offered, what is used of it and by whom, and why nothing is accepted now
    #[command(after_help = "Example:\n  p2pvm offer show --json")]
    Show,
    /// Change what is offered, at once and for later starts
    #[command(
        after_help = "Options that are left out stay as they are. Changes override [offer] in \
            node.toml; --reset forgets them. Only --all-cpus and\n--all-memory limit this host's \
            own VMs. VMs that are here already stay.\n\nExamples:\n  p2pvm offer set --run \
            friends,member:lab2 --vms 4\n  p2pvm offer set --memory 4G --disk 100G --cpus 2\n  \
            p2pvm offer set --hours 12:00-13:00,18:00-08:00\n  p2pvm offer set --idle-only yes \
            --idle-after 15m\n  p2pvm offer set --reset"
    )]
    Set(Box<OfferSet>),
    /// Offer nothing: move other members' VMs away, and stop those that cannot move
    #[command(
        after_help = "A VM that is stopped loses what is only in its memory. It stays here and \
            can be restored elsewhere from a snapshot.\nAfter Ctrl-C no more moves begin and no VM \
            is stopped, but the offer stays off.\n\nExamples:\n  p2pvm offer off\n  p2pvm \
            offer off --keep"
    )]
    Off(OfferOffArgs),
    /// Offer again what was offered before 'off'
    #[command(after_help = "Example:\n  p2pvm offer on")]
    On,
}

/// Arguments of `offer set`.
#[derive(Args)]
#[group(required = true, multiple = true)]
pub struct OfferSet {
    /// The members whose VMs may be here: groups, member:NAME, or * for all
    #[arg(long, value_name = "WHO,...", value_delimiter = ',')]
    pub run: Option<Vec<String>>,
    /// How many VMs of other members may be here; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub vms: Option<u32>,
    /// Virtual processors for other members' VMs; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub cpus: Option<u32>,
    /// Memory for other members' VMs, such as 4G; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u64>,
    /// Disk for other members' VMs, such as 100G; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_gib)]
    pub disk: Option<u64>,
    /// How much each VM of other members may send, and how much receive, such as '100 Mbit'; 0 for
    /// no limit
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<BitRate>,
    /// Processors that all guests here may keep busy, those of this host's root too; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub all_cpus: Option<u32>,
    /// Memory for all guests here, such as 12G; 0 for all but a reserve
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub all_memory: Option<u64>,
    /// The hours in which other members' VMs run here, in local time, or 'always'
    #[arg(long, value_name = "FROM-TO,...", value_delimiter = ',')]
    pub hours: Option<Vec<String>>,
    /// Whether they run here only while this machine is idle
    #[arg(long, value_name = "yes|no", value_parser = parse_yes)]
    pub idle_only: Option<bool>,
    /// How long after the last input this machine counts as idle, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub idle_after: Option<Duration>,
    /// Forget earlier changes first, so that node.toml counts again
    #[arg(long)]
    pub reset: bool,
}

/// Arguments of `offer off`.
#[derive(Args)]
pub struct OfferOffArgs {
    /// Let VMs that cannot be moved run on here
    #[arg(long)]
    pub keep: bool,
}

fn parse_mib(text: &str) -> Result<u64, String> {
    parse_whole(text, 20, "1M")
}

fn parse_gib(text: &str) -> Result<u64, String> {
    parse_whole(text, 30, "1G")
}

/// A size in units of two to the power of `shift`; 0 stands for no limit.
fn parse_whole(text: &str, shift: u32, least: &str) -> Result<u64, String> {
    if text.trim() == "0" {
        return Ok(0);
    }
    match parse_size(text)? >> shift {
        0 => Err(format!("at least {least}, or 0 for no limit")),
        whole => Ok(whole),
    }
}

fn parse_yes(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}
