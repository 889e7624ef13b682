//! The grammar of `p2pvm acl`.

use clap::{Args, Subcommand};

const POLICY_HELP: &str = "A policy has rules, of which the first that matches decides, and a \
    default for all other traffic:

  default = \"deny\"                  # or \"allow\"

  [[rule]]
  action = \"allow\"
  from = [\"admins\", \"vm:backup\"]   # groups, member:NAME, vm:NAME, addresses, or \"*\"
  to = \"servers\"
  ports = [\"tcp/22\", \"icmp\"]       # tcp/N, udp/N-M, icmp; without it all

  [[route]]                         # the member that may offer a subnet
  subnet = \"192.168.7.0/24\"
  by = \"member:gateway\"

Answers to allowed traffic need no rule. 'p2pvm invite --group NAME' puts members into groups.
This command signs the policy, on the founder's machine or a delegate. The policy spreads by itself
and replaces the previous one.

Examples:
  p2pvm acl set policy.toml
  p2pvm acl set - < policy.toml";

/// `p2pvm acl ...`
#[derive(Subcommand)]
pub enum Acl {
    /// Sign a policy and put it in force everywhere
    #[command(after_help = POLICY_HELP)]
    Set {
        /// The policy (TOML), or - for standard input
        file: String,
    },
    /// Show the policy in force
    #[command(after_help = "Example:\n  p2pvm acl show > policy.toml")]
    Show,
    /// Say whether traffic is allowed, which rule decides, and what the receiver does
    #[command(
        after_help = "Examples:\n  p2pvm acl check lab2 lab3 tcp/22\n  p2pvm acl check vm:web \
            member:lab3 udp/53\n  p2pvm acl check lab2 192.168.7.9 icmp"
    )]
    Check(Check),
}

/// Arguments of `acl check`.
#[derive(Args)]
pub struct Check {
    /// The source: a member, a VM (vm:NAME if a member has the same name) or an address
    pub from: String,
    /// The destination: a member, a VM or an address
    pub to: String,
    /// The protocol and destination port: tcp/PORT, udp/PORT or icmp
    pub traffic: String,
}
