//! The grammar of `p2pvm vm`.

use super::args::parse_size;
use clap::{Args, Subcommand};
use p2pvm_api::{PartitionWord, ReplaceWord};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A VM by name.
#[derive(Args)]
pub struct VmName {
    /// The VM
    pub name: String,
}

/// `p2pvm vm ...`
#[derive(Subcommand)]
pub enum Vm {
    /// Define a VM on this host or on another member
    #[command(
        after_help = "Examples:\n  p2pvm vm create web --image base.qcow2 --cpus 1 --memory \
            128M\n  p2pvm vm create web --on attic --image /usr/lib/p2pvm/guest.qcow2 --start   # \
            attic is an appliance"
    )]
    Create(Create),
    /// Start a VM
    #[command(after_help = "Example:\n  p2pvm vm start web")]
    Start(VmName),
    /// Ask a VM's guest to shut down; end it after 30 s
    #[command(
        after_help = "Examples:\n  p2pvm vm stop web\n  p2pvm vm stop web --force   # at once, \
            like pulling the plug\n  p2pvm vm stop --for-shutdown   # all, as at a shutdown \
            of this machine"
    )]
    Stop(Stop),
    /// List the network's VMs
    #[command(after_help = "Examples:\n  p2pvm vm list\n  p2pvm vm list --mine")]
    List {
        /// Only those that are for the user whose key this account has
        #[arg(long)]
        mine: bool,
    },
    /// Show a VM: where it runs, its address, epoch, snapshots
    #[command(after_help = "Example:\n  p2pvm vm show web --json")]
    Show(VmName),
    /// Attach to a VM's serial console; leave with Ctrl-]
    #[command(after_help = "Example:\n  p2pvm vm console web")]
    Console(VmName),
    /// Delete a stopped VM and its disk
    #[command(after_help = "Example:\n  p2pvm vm delete web")]
    Delete(Delete),
    /// Move a VM to another member while it runs
    #[command(
        after_help = "Example:\n  p2pvm vm migrate web --to lab2\n\nWith [traces] in node.toml it \
            prints the trace's id."
    )]
    Migrate(Migrate),
    /// Take, list, check, compare, schedule, restore and delete snapshots of a VM
    #[command(after_help = super::snapshot_args::EXAMPLE)]
    Snapshot(super::snapshot_args::Snapshot),
    /// Keep replicas of a running VM's disk on other members, or stop that
    #[command(
        after_help = "Examples:\n  p2pvm vm replicate web   # every minute, on two others\n  p2pvm \
            vm replicate web --every 10s --copies 3\n  p2pvm vm replicate web --off\n\n'p2pvm vm \
            list' shows the recovery point: how much a loss of the host would cost. The newest \
            replica is restored by 'p2pvm vm restore web@replica --force'."
    )]
    Replicate(Replicate),
    /// Protect a VM against the loss of its host, or no longer
    #[command(
        after_help = "Examples:\n  p2pvm vm protect web   # as far as the network can\n  p2pvm vm \
            protect web --replace ask --lost-after 2m\n  p2pvm vm protect web --off\n\nThe host of \
            a protected VM holds a lease from the VM's voters and renews it every 10 s. When it \
            cannot, the guest stands still within 30 s; then a member with a copy of the VM starts \
            it. 'p2pvm vm show web' says whether it is protected, and why not. With --off replicas \
            of its disk go on until 'p2pvm vm replicate web --off'."
    )]
    Protect(ProtectArgs),
    /// Start a VM whose host is lost on one of its heirs, if it waits for a person
    #[command(
        after_help = "Examples:\n  p2pvm vm takeover web\n  p2pvm vm takeover web --on attic   # \
            an heir, as 'p2pvm vm show web' named it"
    )]
    Takeover(Takeover),
    /// Restore a VM from a snapshot
    #[command(
        after_help = "Examples:\n  p2pvm vm restore web@before-upgrade --on lab2 --force\n  p2pvm \
            vm restore web@replica --force   # its newest replica"
    )]
    Restore(Restore),
    /// Change whether a VM's guest is started again when it ends
    #[command(after_help = "Example:\n  p2pvm vm set web --restart always")]
    Set(Set),
}

/// Arguments of `vm create`.
#[derive(Args)]
pub struct Create {
    /// The VM's name: a DNS label, unique in the network
    pub name: String,
    /// A qcow2 or raw image file, or the id of an image in the network; with --on a file on that
    /// member
    #[arg(long)]
    pub image: String,
    /// The member to define it on; by default this one
    #[arg(long, value_name = "MEMBER")]
    pub on: Option<String>,
    /// Virtual processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory, such as 128M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    pub memory: u64,
    /// Disk size if larger than the image, such as 20G
    #[arg(long, value_parser = parse_size)]
    pub disk: Option<u64>,
    /// The user that it is for, who may then manage it: user:NAME or user:KEY
    #[arg(long = "for", value_name = "USER")]
    pub for_user: Option<String>,
    /// Start it at once
    #[arg(long)]
    pub start: bool,
    /// Whether its guest is started again when it ends: on-failure if it crashed, always also if it
    /// powered itself off
    #[arg(long, value_parser = RESTART)]
    pub restart: Option<String>,
}

/// The policies for a guest that ended.
const RESTART: [&str; 3] = ["always", "on-failure", "never"];

/// Arguments of `vm set`.
#[derive(Args)]
pub struct Set {
    /// The VM
    pub name: String,
    /// Whether its guest is started again when it ends: on-failure if it crashed, always also if it
    /// powered itself off
    #[arg(long, value_parser = RESTART)]
    pub restart: String,
}

/// Arguments of `vm stop`.
#[derive(Args)]
pub struct Stop {
    /// The VM
    #[arg(required_unless_present = "for_shutdown")]
    pub name: Option<String>,
    /// End the guest at once instead of asking it: data not yet written to its disk is lost
    #[arg(long)]
    pub force: bool,
    /// Power all guests of this host down, as when it shuts down; with at_shutdown = "move" in
    /// node.toml, first move guests away. They boot again with the host
    #[arg(long, conflicts_with_all = ["name", "force"])]
    pub for_shutdown: bool,
}

/// Arguments of `vm delete`.
#[derive(Args)]
pub struct Delete {
    /// The VM
    pub name: String,
    /// Also delete a running VM: its guest is ended at once
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `vm migrate`.
#[derive(Args)]
pub struct Migrate {
    /// The VM
    pub name: String,
    /// The member to move it to; by default the least loaded one that its host knows
    #[arg(long, value_name = "MEMBER")]
    pub to: Option<String>,
    /// End the move that is under way: the guest goes on where it is
    #[arg(long, conflicts_with_all = ["to", "post_copy"])]
    pub cancel: bool,
    /// Let the guest run on the target before all its memory is there, if it changes memory faster
    /// than the path carries it. If either host dies meanwhile, the guest is lost
    #[arg(long)]
    pub post_copy: bool,
}

/// Arguments of `vm replicate`.
#[derive(Args)]
pub struct Replicate {
    /// The VM
    pub name: String,
    /// How long between two replicas: 1s to 1h
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub every: Duration,
    /// How many other members hold the newest replica, 1 to 4; by default as it is, or 2
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4))]
    pub copies: Option<u32>,
    /// Make no more replicas; the newest one is released, so that no heir starts the VM from it
    #[arg(long, conflicts_with_all = ["every", "copies"])]
    pub off: bool,
}

/// Arguments of `vm restore`.
#[derive(Args)]
pub struct Restore {
    /// The VM, or VM@SNAPSHOT; without a snapshot the newest one, or its replica if that is newer
    pub what: String,
    /// The member to restore it on; by default this one
    #[arg(long, value_name = "MEMBER")]
    pub on: Option<String>,
    /// Take the VM over from a dead host, in a new epoch. If that host comes back, its copy is
    /// frozen
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `vm protect`.
#[derive(Args)]
pub struct ProtectArgs {
    /// The VM
    pub name: String,
    /// Whether another member starts it when its host is lost: by itself, when a person says so
    /// ('p2pvm vm takeover'), or never
    #[arg(long, value_name = "auto|ask|never", value_parser = word::<ReplaceWord>)]
    pub replace: Option<ReplaceWord>,
    /// What its host does when it cannot renew the lease: freeze the guest shortly before the lease
    /// ends, let it run until then, or end it
    #[arg(
        long,
        value_name = "freeze|run-until-lease-ends|stop",
        value_parser = word::<PartitionWord>
    )]
    pub on_partition: Option<PartitionWord>,
    /// How long its host is silent before it counts as lost, such as 30s or 2m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub lost_after: Option<Duration>,
    /// How long between two replicas of its disk: 1s to 1h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub replicate_every: Option<Duration>,
    /// Protect it no longer
    #[arg(
        long,
        conflicts_with_all = ["replace", "on_partition", "lost_after", "replicate_every"]
    )]
    pub off: bool,
}

/// Reads a word of the API.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = serde_json::from_value(serde_json::Value::String(text.to_owned()));
    read.map_err(|_| "no such word".to_owned())
}

/// Arguments of `vm takeover`.
#[derive(Args)]
pub struct Takeover {
    /// The VM
    pub name: String,
    /// The heir that starts it; by default this member
    #[arg(long, value_name = "MEMBER")]
    pub on: Option<String>,
}
