//! The grammar of `p2pvm token`.

use super::args::parse_size;
use clap::{Args, Subcommand};
use p2pvm_vm_manager::BitRate;
use std::time::Duration;

/// The example of `p2pvm token`.
pub const EXAMPLE: &str = "Example:\n  p2pvm token create --vm web --may console,start --for 2h \
    --to lab3 > web.token";

/// `p2pvm token ...`
#[derive(Subcommand)]
pub enum Token {
    /// Sign a token: rights on a VM of this member's, or on this host, for another member
    #[command(
        after_help = "The token is a line of text. Only the named member can use it, so it may \
            travel by mail. The rights on a VM are see, start, stop,\nconsole, move, snapshot, \
            restore and delete. The right on a host is run: make VMs of one's own there; where \
            the access rules\nallow all by default, no token is needed for that.\n\nExamples:\n  \
            p2pvm token create --vm web --may console,start --for 2h --to lab3 > web.token\n  \
            p2pvm token create --host --may run --cpus 2 --memory 1G --for 8h --to lab3"
    )]
    Create(TokenCreate),
    /// Pass a token on to another member, with the same or fewer rights
    #[command(
        after_help = "Example:\n  p2pvm token attenuate web.token --may console --to lab4 > \
            console.token"
    )]
    Attenuate(TokenPass),
    /// Say what a token allows, to whom and until when
    #[command(after_help = "Example:\n  p2pvm token show web.token")]
    Show {
        /// A token, a file with one, or - for standard input
        token: String,
    },
    /// Keep a token that was given to this member: its commands then use it by themselves
    #[command(after_help = "Example:\n  p2pvm token add web.token && p2pvm vm start web")]
    Add {
        /// A token, a file with one, or - for standard input
        token: String,
    },
    /// List the tokens that this member was given and gave, with their state
    #[command(after_help = "Example:\n  p2pvm token list")]
    List,
    /// Take a token back before it expires, and with it what was passed on from it
    #[command(
        after_help = "The VM's owner, the founder's machine and delegates can do this. The VM's \
            host refuses the token from then on; a host\nthat cannot be reached now is told \
            later.\n\nExamples:\n  p2pvm token revoke 09ab3c5d7e01\n  p2pvm token revoke web.token"
    )]
    Revoke {
        /// The token's id in 'p2pvm token list', the token, a file with it, or - for standard
        /// input
        token: String,
    },
    /// Forget a token
    #[command(after_help = "Example:\n  p2pvm token remove 09ab3c5d7e01")]
    Remove {
        /// The token's id in 'p2pvm token list'
        id: String,
    },
}

/// Arguments of `token create`.
#[derive(Args)]
pub struct TokenCreate {
    /// The VM's name or id
    #[arg(long, required_unless_present = "host", conflicts_with = "host")]
    pub vm: Option<String>,
    /// Give the right to make VMs on this host, instead of rights on a VM
    #[arg(long)]
    pub host: bool,
    /// What is allowed
    #[arg(
        long,
        value_name = "RIGHT,...",
        value_delimiter = ',',
        required_unless_present = "host"
    )]
    pub may: Vec<String>,
    /// With --host: how many processors all VMs of that member here may have together
    #[arg(long, requires = "host")]
    pub cpus: Option<u32>,
    /// With --host: how much memory they may have together
    #[arg(long, requires = "host", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// With --host: how much disk they may have together; 'vm create' then needs --disk
    #[arg(long, requires = "host", value_parser = parse_size)]
    pub disk: Option<u64>,
    /// With --host: how much each of them may send, and how much receive, such as '100 Mbit'
    #[arg(long, requires = "host", value_name = "RATE")]
    pub bandwidth: Option<BitRate>,
    /// How long the token is valid, such as 90m, 24h or 7d
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub valid: Duration,
    /// The member that may use it, or user:NAME or user:KEY
    #[arg(long, value_name = "MEMBER")]
    pub to: String,
}

/// Arguments of `token attenuate`.
#[derive(Args)]
pub struct TokenPass {
    /// A token that was given to this member, a file with one, or - for standard input
    pub token: String,
    /// What is allowed; by default all that the token allows
    #[arg(long, value_name = "RIGHT,...", value_delimiter = ',')]
    pub may: Vec<String>,
    /// How long the new token is valid; by default as long as the given one
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub valid: Option<Duration>,
    /// The member that may use it
    #[arg(long, value_name = "MEMBER")]
    pub to: String,
}
