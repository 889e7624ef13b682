//! The command line's grammar. Every command's help ends with an example.

use super::vm_args::Vm;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A private cluster of virtual machines on machines behind any NAT, without a coordinator.
#[derive(Parser)]
#[command(
    name = "p2pvm",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  p2pvm init --network lab && p2pvm up --detach && p2pvm invite")]
pub struct Cli {
    /// This node's state directory
    #[arg(
        long,
        global = true,
        env = "P2PVM_DIR",
        default_value = "/var/lib/p2pvm",
        value_name = "DIR"
    )]
    pub dir: PathBuf,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Stop waiting after this long, such as 5s or 10m (exit code 4); by default each command has
    /// its own limit
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    pub timeout: Option<std::time::Duration>,
    /// The command
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Whether this process is long-lived and writes to other programs' sockets: the daemon, or a
    /// testbed's keeper.
    pub fn is_daemon(&self) -> bool {
        match &self.command {
            Command::Up(up) => !up.detach,
            Command::Testbed(_) | Command::Demo(_) | Command::Bench(_) => true,
            _ => false,
        }
    }
}

/// `p2pvm guardian`.
#[derive(Args)]
pub struct Guardian {
    /// Wait until the daemon with this process id, which holds the other end of standard input,
    /// dies; by default undo at once
    #[arg(long)]
    pub of: Option<u32>,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Found a network: its root key, its subnet and this machine's identity
    #[command(after_help = "Example:\n  p2pvm init --network lab --subnet 10.83.0.0/16")]
    Init(Init),
    /// Run the daemon
    #[command(after_help = "Example:\n  p2pvm up --detach")]
    Up(Up),
    /// Stop the daemon; running VMs go on (protected ones for at most 30 s), and 'up' adopts them
    #[command(
        after_help = "Examples:\n  p2pvm down\n  p2pvm down --force   # also a daemon that does \
            not answer"
    )]
    Down(Down),
    /// Print an invite: any machine that has it can join until it expires or is used up
    #[command(
        after_help = "Examples:\n  p2pvm invite --uses 5 --expires 24h\n  p2pvm invite --group \
            servers --group lab\n  p2pvm invite --qr"
    )]
    Invite(Invite),
    /// Join a network and start the daemon
    #[command(
        after_help = "Examples:\n  p2pvm join p2pvm1...\n  p2pvm invite | ssh lab2 p2pvm join \
            -\n  p2pvm join /ip4/203.0.113.7/udp/4001/quic-v1 --invite invite.txt"
    )]
    Join(Join),
    /// Expel a member, or cancel an invite, by id
    #[command(
        after_help = "Example:\n  p2pvm revoke lab3\n\nThe founder's machine can expel every \
            member. A delegate can expel members, but neither another delegate nor the \
            founder's\nmachine.\n\nThis also expels the members that the member admitted as a \
            delegate, and those that joined because their state was a copy of\nits state (named \
            after it, with a suffix of four hexadecimal digits). The command names them. To keep \
            such a machine, let it\njoin again with a new invite: 'p2pvm leave --force', then \
            'p2pvm join'."
    )]
    Revoke(Revoke),
    /// Show this node: addresses, NAT, load
    #[command(after_help = "Example:\n  p2pvm status --json")]
    Status,
    /// Show the other members and the path to each
    #[command(after_help = "Examples:\n  p2pvm peers\n  p2pvm peers --all")]
    Peers(Peers),
    /// Print metrics for Prometheus, of this node or of every member
    #[command(after_help = "Examples:\n  p2pvm metrics > \
            /var/lib/prometheus/node-exporter/p2pvm.prom\n  p2pvm metrics --all")]
    Metrics(All),
    /// Show the traffic between hosts and guests through this node
    #[command(after_help = "Examples:\n  p2pvm traffic\n  p2pvm traffic --all --json")]
    Traffic(Traffic),
    /// Measure the round trip to a member and show the path
    #[command(after_help = "Example:\n  p2pvm ping lab2 --count 3")]
    Ping(Ping),
    /// Show how this machine reaches the others: NAT, IPv6, port mapping, members, relays
    #[command(after_help = "Example:\n  p2pvm netcheck --json")]
    Netcheck,
    /// Show the members that forward a packet over the ring, from here to a member
    #[command(after_help = "Example:\n  p2pvm trace lab2")]
    Trace(Trace),
    /// Show this node on a live screen: members, VMs, moves, decisions
    #[command(
        after_help = "Examples:\n  p2pvm top\n  p2pvm top --once\n  p2pvm top --console \
            --allow-shell     # as on the appliance's tty1"
    )]
    Top(Top),
    /// Print the web dashboard's link, or switch the dashboard on or off for the network
    #[command(after_help = super::dashboard_args::EXAMPLES)]
    Dashboard(super::dashboard_args::Dashboard),
    /// Check whether this machine has what p2pvm needs, and name the remedy for what it lacks
    #[command(
        after_help = "Examples:\n  p2pvm doctor\n  sudo p2pvm doctor --fix\n  p2pvm doctor \
            --json\n\nThe exit code is 1 if a check failed."
    )]
    Doctor(Doctor),
    /// Write a report for developers into one file, without keys and invites
    #[command(
        after_help = "Examples:\n  p2pvm bugreport\n  p2pvm bugreport --out /tmp/report.tar.gz"
    )]
    Bugreport(Bugreport),
    /// Leave the network: release the address and forget the membership
    #[command(after_help = "Example:\n  p2pvm leave")]
    Leave(Leave),
    /// Access rules between members and VMs
    #[command(
        subcommand,
        after_help = "Examples:\n  p2pvm acl set policy.toml\n  p2pvm acl check lab2 vm:web tcp/22"
    )]
    Acl(super::policy_args::Acl),
    /// Tokens: rights on a VM or a host that its owner gives to other members
    #[command(subcommand, after_help = super::token_args::EXAMPLE)]
    Token(super::token_args::Token),
    /// Show who used how much of whose host
    #[command(after_help = super::usage_args::EXAMPLE)]
    Usage(super::usage_args::UsageArgs),
    /// Show what uses the disk: images, snapshots, replicas for others; remove what nothing uses
    #[command(after_help = super::store_args::EXAMPLE)]
    Store(super::store_args::StoreArgs),
    /// What this host offers to other members' VMs
    #[command(subcommand, after_help = super::offer_args::EXAMPLE)]
    Offer(super::offer_args::Offer),
    /// Users: keys of persons, apart from those of machines
    #[command(subcommand, after_help = super::user_args::EXAMPLE)]
    User(super::user_args::User),
    /// Routes to members' LANs through the network
    #[command(
        subcommand,
        after_help = "Examples:\n  p2pvm route offer 192.168.7.0/24\n  p2pvm route list"
    )]
    Route(Routes),
    /// Virtual machines
    #[command(
        subcommand,
        after_help = "Example:\n  p2pvm vm create web --image base.qcow2 --cpus 1 --memory 128M \
            --start"
    )]
    Vm(Vm),
    /// Move this host's VMs to other members
    #[command(after_help = "Example:\n  p2pvm drain")]
    Drain,
    /// List what happened to VMs, members and this host
    #[command(after_help = super::events_args::EVENTS_EXAMPLE)]
    Events(super::events_args::EventsArgs),
    /// Say what happened to a VM and why it is where it is; prove it
    #[command(after_help = super::events_args::EXPLAIN_EXAMPLE)]
    Explain(super::events_args::ExplainArgs),
    /// The bootable appliance's ISO
    #[command(
        subcommand,
        after_help = "Example:\n  p2pvm iso customize p2pvm.iso --join invite.txt -o lab.iso"
    )]
    Iso(super::appliance_args::Iso),
    /// The previous name of `iso`
    #[command(subcommand, hide = true)]
    Image(super::appliance_args::Iso),
    /// Install the appliance on a disk, which then boots by itself and keeps identity and VMs
    #[command(
        after_help = "Examples:\n  p2pvm install /dev/sda\n  p2pvm install /dev/sdb --from \
            p2pvm.iso --yes"
    )]
    Install(super::appliance_args::Install),
    /// Commands of the appliance's units and console
    #[command(subcommand, hide = true)]
    Appliance(super::appliance_args::Appliance),
    /// Undo a killed daemon's changes to this machine
    #[command(hide = true)]
    Guardian(Guardian),
    /// Freeze the guests of protected VMs whose lease has ended; the daemon starts it when needed
    #[command(
        hide = true,
        after_help = "It ends by itself once no guest is guarded and no daemon runs. Ending it \
            stops the guests that it guards."
    )]
    GuestGuardian,
    /// Emulated wide area for tests and demos
    #[command(
        subcommand,
        after_help = "Example:\n  p2pvm testbed up lab/sites/planetlab.toml"
    )]
    Testbed(p2pvm_lab::cli::TestbedCommand),
    /// Simulate the ring at scale and under faults, in virtual time
    Simulate(p2pvm_lab::sim::cli::Simulate),
    /// Run the main scenario on the emulated wide area, with measured figures
    #[command(after_help = "Example:\n  p2pvm demo --image target/guest-image/guest.qcow2")]
    Demo(p2pvm_lab::demo::Options),
    /// Measure the figures of docs/SPECIFICATION.md on the emulated wide area
    #[command(after_help = "Example:\n  p2pvm bench --rounds 3 join migration")]
    Bench(p2pvm_lab::bench::Options),
}

/// Arguments of `init`.
#[derive(Args)]
pub struct Init {
    /// The network's name: a DNS label
    #[arg(long)]
    pub network: String,
    /// The subnet of the network's addresses; by default a rarely used part of 10.0.0.0/8
    #[arg(long, value_name = "ADDR/PREFIX")]
    pub subnet: Option<String>,
    /// This machine's name in the network; by default its host name
    #[arg(long)]
    pub name: Option<String>,
    /// Put this machine into a group for access rules; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Found the network even if a local route covers the subnet
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `metrics`.
#[derive(Args)]
pub struct All {
    /// Ask every member
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `traffic`.
#[derive(Args)]
pub struct Traffic {
    /// Also show pairs with little traffic
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `top`.
#[derive(Args)]
pub struct Top {
    /// Print one screen as text and end; COLUMNS and LINES give its size
    #[arg(long)]
    pub once: bool,
    /// Be the machine's own console: the screen does not end, can reboot or power off the machine,
    /// and shows a new network's invite
    #[arg(long, conflicts_with = "once")]
    pub console: bool,
    /// Let the key s open a shell
    #[arg(long)]
    pub allow_shell: bool,
}

/// Arguments of `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// First repair a killed daemon's leftovers, the TUN module, the state directory and its
    /// permissions
    #[arg(long)]
    pub fix: bool,
}

/// Arguments of `bugreport`.
#[derive(Args)]
pub struct Bugreport {
    /// The file to write; by default p2pvm-report-TIME.tar.gz in the current directory
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `up`.
#[derive(Args, Clone, Default)]
pub struct Up {
    /// Return once the daemon is up
    #[arg(long)]
    pub detach: bool,
    /// UDP and TCP port for members (control plane); 0 for any
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// UDP port of the packet plane; 0 for any
    #[arg(long, value_name = "PORT")]
    pub link_port: Option<u16>,
    /// The accelerator of guests: auto starts a tiny probe guest once per boot of the host to test
    /// whether KVM works
    #[arg(long, value_parser = ["auto", "kvm", "tcg"])]
    pub accel: Option<String>,
}

/// Arguments of `invite`.
#[derive(Args)]
pub struct Invite {
    /// How many machines may join with the invite
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub uses: u32,
    /// How long the invite is valid, such as 90m, 24h or 7d
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub expires: std::time::Duration,
    /// Let members that join with it invite others
    #[arg(long)]
    pub delegate: bool,
    /// Put members that join with it into a group for access rules; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Also show the invite as QR codes; it then has fewer of this machine's addresses, so that the
    /// codes are small
    #[arg(long)]
    pub qr: bool,
}

/// Arguments of `join`.
#[derive(Args)]
pub struct Join {
    /// An invite, a file with one, - for standard input, or a multiaddr together with --invite
    pub bootstrap: String,
    /// The invite (or a file, or -) when <BOOTSTRAP> is a multiaddr
    #[arg(long)]
    pub invite: Option<String>,
    /// This machine's name in the network; by default its host name
    #[arg(long)]
    pub name: Option<String>,
    /// Stay in the foreground as the daemon
    #[arg(long)]
    pub foreground: bool,
    /// The daemon's ports
    #[command(flatten)]
    pub up: JoinPorts,
}

/// The ports of the daemon that `join` starts.
#[derive(Args)]
pub struct JoinPorts {
    /// UDP and TCP port for members (control plane); 0 for any
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// UDP port of the packet plane; 0 for any
    #[arg(long, value_name = "PORT")]
    pub link_port: Option<u16>,
}

/// Arguments of `revoke`.
#[derive(Args)]
pub struct Revoke {
    /// A member's name or id, or an invite's id
    pub what: String,
}

/// Arguments of `ping`.
#[derive(Args)]
pub struct Ping {
    /// A member's name, id or address
    pub member: String,
    /// The number of probes
    #[
        arg(
            long, short, default_value_t = 4,
            value_parser = clap::value_parser!(u32).range(1..=1_000_000)
        )
    ]
    pub count: u32,
    /// Time between probes
    #[arg(long, short, default_value = "1s", value_parser = humantime::parse_duration)]
    pub interval: std::time::Duration,
}

/// Arguments of `peers`.
#[derive(Args)]
pub struct Peers {
    /// Ask every member of the network over the ring, also members that this one has never met
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `trace`.
#[derive(Args)]
pub struct Trace {
    /// A member's name, id or address
    pub member: String,
}

/// Arguments of `down`.
#[derive(Args)]
pub struct Down {
    /// Also end a daemon that does not answer, and undo its changes to this machine; VMs go on
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `leave`.
#[derive(Args)]
pub struct Leave {
    /// Leave even if this host has VMs: they are ended at once and lost with this host's state.
    /// Also end a daemon that does not answer; the network is then not told
    #[arg(long)]
    pub force: bool,
}

/// `p2pvm route ...`
#[derive(Subcommand)]
pub enum Routes {
    /// Let other members reach a subnet of this machine's LAN through it
    #[command(
        after_help = "This machine forwards packets with its own address in the LAN as the source \
            (masquerade). The policy must allow the offer\n([[route]]); in a network without a \
            policy, members use it after 'p2pvm route accept'.\n\nExample:\n  p2pvm route offer \
            192.168.7.0/24"
    )]
    Offer {
        /// The subnet
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: String,
    },
    /// Withdraw an offer
    #[command(after_help = "Example:\n  p2pvm route withdraw 192.168.7.0/24")]
    Withdraw {
        /// The subnet
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: String,
    },
    /// List the subnets that members offer, and whether this machine uses each
    #[command(after_help = "Example:\n  p2pvm route list")]
    List,
    /// Use the subnets that others offer: needed in a network without a policy
    #[command(
        after_help = "Examples:\n  p2pvm route accept\n  p2pvm route accept --off\n  p2pvm route \
            accept --off 192.168.7.0/24"
    )]
    Accept {
        /// Decide for this subnet alone, whatever is set for all others
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: Option<String>,
        /// Use none, even if the policy allows it
        #[arg(long)]
        off: bool,
    },
}

/// Reads a time limit; a plain number counts seconds.
pub fn parse_timeout(text: &str) -> Result<std::time::Duration, String> {
    let seconds = text
        .parse::<u32>()
        .ok()
        .map(|seconds| std::time::Duration::from_secs(seconds.into()));
    let read = seconds.map_or_else(
        || {
            humantime::parse_duration(text)
                .map_err(|_| format!("'{text}' is not a duration: write it as 5s, 2m or 1h"))
        },
        Ok,
    )?;
    if read.is_zero() {
        Err("the time limit must be above zero".to_owned())
    } else {
        Ok(read)
    }
}

/// Reads "128M", "2G", "1.5GiB" or plain bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .trim()
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => {
            return Err(format!(
                "'{unit}' is not a unit of size: use K, M, G or T, as in 128M"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a size: write it as 128M or 2G"))?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes.is_finite() && (1.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("'{text}' is out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound_and_each_help_ends_with_an_example() {
        Cli::command().debug_assert();
        fn check(command: &clap::Command, path: &str) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Example"),
                "{path} {} has no example",
                command.get_name()
            );
            for sub in command
                .get_subcommands()
                .filter(|c| c.get_name() != "help" && !c.is_hide_set())
            {
                check(sub, &format!("{path} {}", command.get_name()));
            }
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn iso_customize_is_understood_by_its_previous_name_which_help_hides() {
        let parsed = |words: &str| {
            Cli::try_parse_from(words.split(' '))
                .map(|cli| cli.command)
                .ok()
        };
        assert!(matches!(
            parsed("p2pvm iso customize in.iso --clear -o out.iso"),
            Some(Command::Iso(_))
        ));
        assert!(matches!(
            parsed("p2pvm image customize in.iso --clear -o out.iso"),
            Some(Command::Image(_))
        ));
        let grammar = Cli::command();
        let is_hidden = |name: &str| {
            grammar
                .find_subcommand(name)
                .is_none_or(clap::Command::is_hide_set)
        };
        assert!(!is_hidden("iso") && is_hidden("image"));
    }

    #[test]
    fn time_limits_are_read_with_their_units_and_plain_numbers_count_seconds() {
        let seconds = std::time::Duration::from_secs;
        assert_eq!(
            (parse_timeout("5"), parse_timeout("5s"), parse_timeout("2m")),
            (Ok(seconds(5)), Ok(seconds(5)), Ok(seconds(120)))
        );
        for bad in ["", "0", "0s", "-1", "soon"] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("128M"), Ok(128 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("512"), Ok(512));
        for bad in ["", "M", "-1G", "1X", "1e300T", "0"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
