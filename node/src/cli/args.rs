//! The command line's grammar. Every command's help ends with an example.

use super::vm_args::{Vm, VmName};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A private cluster of virtual machines over machines behind any NAT, with no coordinator.
#[derive(Parser)]
#[command(
    name = "p2pvm",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  p2pvm init --network lab && p2pvm up --detach && p2pvm invite")]
pub struct Cli {
    /// Where this node keeps its state
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
    /// Give up after this long, such as 5s or 10m (exit code 4); without it each command has its
    /// own limit
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    pub timeout: Option<std::time::Duration>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Whether this process lives long and writes to sockets of others: the daemon, or a testbed's
    /// keeper.
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
    /// Wait until this daemon, at the other end of standard input, dies; without it undo at once
    /// what is left
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
    /// Stop the daemon; running VMs go on and are taken up again by the next 'up'
    #[command(
        after_help = "Examples:\n  p2pvm down\n  p2pvm down --force   # also one that does not \
            answer any more"
    )]
    Down(Down),
    /// Print an invite: whoever holds it can join until it expires or is used up
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
        after_help = "Example:\n  p2pvm revoke lab3\n\nThe founder's machine expels anyone; a \
            delegate members, but neither another delegate nor the founder's machine.\n\nWith a \
            member fall those that it admitted as a delegate, and those that became members \
            because their state was a copy\nof its state (called like it with four digits \
            behind). They are named. A machine that is to stay joins again with a new\ninvite: \
            'p2pvm leave --force', then 'p2pvm join'."
    )]
    Revoke(Revoke),
    /// Show this node: addresses, NAT, load
    #[command(after_help = "Example:\n  p2pvm status --json")]
    Status,
    /// Show the other members and the path to each
    #[command(after_help = "Examples:\n  p2pvm peers\n  p2pvm peers --all")]
    Peers(Peers),
    /// Print figures for Prometheus, of this node or of every member
    #[command(after_help = "Examples:\n  p2pvm metrics > \
            /var/lib/prometheus/node-exporter/p2pvm.prom\n  p2pvm metrics --all")]
    Metrics(All),
    /// Show who talks with whom through this node, hosts and guests, and how much
    #[command(after_help = "Examples:\n  p2pvm traffic\n  p2pvm traffic --all --json")]
    Traffic(Traffic),
    /// Measure the round trip to a member and show the path
    #[command(after_help = "Example:\n  p2pvm ping lab2 --count 3")]
    Ping(Ping),
    /// Show what this machine's way to the others is like: NAT, IPv6, port mapping, members, relays
    #[command(after_help = "Example:\n  p2pvm netcheck --json")]
    Netcheck,
    /// Show the members that hand a packet on over the ring, from here to a member
    #[command(after_help = "Example:\n  p2pvm trace lab2")]
    Trace(Trace),
    /// Show this node on a screen that keeps itself up to date: members, VMs, moves, decisions
    #[command(
        after_help = "Examples:\n  p2pvm top\n  p2pvm top --once\n  p2pvm top --console \
            --allow-shell     # as on the appliance's tty1"
    )]
    Top(Top),
    /// Show how to open the web dashboard, or switch it on or off for the network
    #[command(
        after_help = "Examples:\n  p2pvm dashboard --enable\n  p2pvm dashboard\n  p2pvm dashboard \
            --listen 127.0.0.1:4080     # for this machine alone, until Ctrl-C"
    )]
    Dashboard(Dashboard),
    /// Check whether this machine has what p2pvm needs, and say what to do where it does not
    #[command(
        after_help = "Examples:\n  p2pvm doctor\n  sudo p2pvm doctor --fix\n  p2pvm doctor \
            --json\n\nExit code 1 if something needed is missing."
    )]
    Doctor(Doctor),
    /// Write what a developer needs to see into one file, without keys and invites
    #[command(
        after_help = "Examples:\n  p2pvm bugreport\n  p2pvm bugreport --out /tmp/report.tar.gz"
    )]
    Bugreport(Bugreport),
    /// Leave the network: give the address back and forget the membership
    #[command(after_help = "Example:\n  p2pvm leave")]
    Leave(Leave),
    /// Access rules: who may talk to whom
    #[command(
        subcommand,
        after_help = "Examples:\n  p2pvm acl set policy.toml\n  p2pvm acl check lab2 vm:web tcp/22"
    )]
    Acl(Acl),
    /// Subnets of members' LANs, reached through the network
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
    /// Move this host's VMs elsewhere
    #[command(after_help = "Example:\n  p2pvm drain")]
    Drain,
    /// Say why a VM was moved, or was not
    #[command(after_help = "Example:\n  p2pvm explain web")]
    Explain(VmName),
    /// The bootable appliance's ISO
    #[command(
        subcommand,
        after_help = "Example:\n  p2pvm iso customize p2pvm.iso --join invite.txt -o lab.iso"
    )]
    Iso(super::appliance_args::Iso),
    /// The previous name of `iso`
    #[command(subcommand, hide = true)]
    Image(super::appliance_args::Iso),
    /// Put the appliance on a disk, so that it boots by itself and keeps identity and VMs
    #[command(
        after_help = "Examples:\n  p2pvm install /dev/sda\n  p2pvm install /dev/sdb --from \
            p2pvm.iso --yes"
    )]
    Install(super::appliance_args::Install),
    /// What the appliance's own units and console call
    #[command(subcommand, hide = true)]
    Appliance(super::appliance_args::Appliance),
    /// Undoes what a killed daemon left changed on this machine
    #[command(hide = true)]
    Guardian(Guardian),
    /// Emulated wide area for tests and demos
    #[command(
        subcommand,
        after_help = "Example:\n  p2pvm testbed up tests/sites/planetlab.toml"
    )]
    Testbed(p2pvm_tests::cli::TestbedCommand),
    /// The ring at scale and under faults, simulated in virtual time
    Simulate(p2pvm_tests::sim::cli::Simulate),
    /// The main job on the emulated wide area, with measured figures
    #[command(after_help = "Example:\n  p2pvm demo --image target/guest-image/guest.qcow2")]
    Demo(Demo),
    /// Measure the figures of docs/SPECIFICATION.md on the emulated wide area
    #[command(after_help = "Example:\n  p2pvm bench --rounds 3 join migration")]
    Bench(Bench),
}

/// Arguments of `init`.
#[derive(Args)]
pub struct Init {
    /// The network's name: a DNS label
    #[arg(long)]
    pub network: String,
    /// Where addresses are drawn from; by default a rarely used part of 10.0.0.0/8
    #[arg(long, value_name = "ADDR/PREFIX")]
    pub subnet: Option<String>,
    /// This machine's name in the network; by default its host name
    #[arg(long)]
    pub name: Option<String>,
    /// Put this machine into a group, by which access rules speak of it; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Found the network even though a local route covers the subnet
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
    /// Also pairs that are noise beside the largest
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `top`.
#[derive(Args)]
pub struct Top {
    /// Print one screen as text and end; COLUMNS and LINES say how large
    #[arg(long)]
    pub once: bool,
    /// This is the machine's own console: the screen does not end, may reboot or power off the
    /// machine, and shows a new network's invite
    #[arg(long, conflicts_with = "once")]
    pub console: bool,
    /// Let the key s open a shell
    #[arg(long)]
    pub allow_shell: bool,
}

/// Arguments of `dashboard`.
#[derive(Args)]
pub struct Dashboard {
    /// Serve it on this host's address in the network, now and after a restart
    #[arg(long)]
    pub enable: bool,
    /// Do not serve it there
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// Make a new token; whoever has the old one is shut out
    #[arg(long)]
    pub new_token: bool,
    /// Serve it on a port of this machine alone for as long as this command runs
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["enable", "disable"])]
    pub listen: Option<std::net::SocketAddr>,
}

/// Arguments of `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// First repair what is p2pvm's own: leftovers of a killed daemon, the TUN module, the state
    /// directory and its permissions
    #[arg(long)]
    pub fix: bool,
}

/// Arguments of `bugreport`.
#[derive(Args)]
pub struct Bugreport {
    /// The file to write; by default p2pvm-report-TIME.tar.gz here
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
    /// What guests run on: auto boots a tiny probe guest once per boot of the host to see whether
    /// KVM really works
    #[arg(long, value_parser = ["auto", "kvm", "tcg"])]
    pub accel: Option<String>,
}

/// Arguments of `invite`.
#[derive(Args)]
pub struct Invite {
    /// How many machines may join with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub uses: u32,
    /// How long it is valid, such as 90m, 24h or 7d
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub expires: std::time::Duration,
    /// Let those who join with it invite others
    #[arg(long)]
    pub delegate: bool,
    /// Put those who join with it into a group, by which access rules speak of them; may be
    /// repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Also show it as QR codes; fewer of this machine's addresses are named in it, so that they
    /// are small
    #[arg(long)]
    pub qr: bool,
}

/// Arguments of `join`.
#[derive(Args)]
pub struct Join {
    /// An invite, a file holding one, - for standard input, or a multiaddr together with --invite
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
    /// How the daemon listens
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
    /// How many probes
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
    /// Ask every member of the network over the ring, also those that this one has never met
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
    /// End a daemon that does not answer, and undo what it changed on this machine; VMs go on all
    /// the same
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `leave`.
#[derive(Args)]
pub struct Leave {
    /// Leave even though VMs live here: they are ended at once and lost with this host's state. A
    /// daemon that does not answer is ended too, and the network is not told
    #[arg(long)]
    pub force: bool,
}

const POLICY_HELP: &str = "A policy says what holds where no rule fits, then rules of which the \
    first that fits decides:

  default = \"deny\"                  # or \"allow\"

  [[rule]]
  action = \"allow\"
  from = [\"admins\", \"vm:backup\"]   # groups, member:NAME, vm:NAME, addresses, or \"*\"
  to = \"servers\"
  ports = [\"tcp/22\", \"icmp\"]       # tcp/N, udp/N-M, icmp; all where it is left out

  [[route]]                         # who may offer which subnet
  subnet = \"192.168.7.0/24\"
  by = \"member:gateway\"

Answers to what was allowed need no rule. Groups are given with 'p2pvm invite --group NAME'. The \
policy
is signed here (by the founder's machine or a delegate), spreads by itself and replaces the one \
before.

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
    /// Say whether a conversation is allowed, which rule decides, and what the receiver does
    #[command(
        after_help = "Examples:\n  p2pvm acl check lab2 lab3 tcp/22\n  p2pvm acl check vm:web \
            member:lab3 udp/53\n  p2pvm acl check lab2 192.168.7.9 icmp"
    )]
    Check(Check),
}

/// Arguments of `acl check`.
#[derive(Args)]
pub struct Check {
    /// Who would begin: a member, a VM (vm:NAME where a member has the name too) or an address
    pub from: String,
    /// To whom
    pub to: String,
    /// With what: tcp/PORT, udp/PORT or icmp
    pub traffic: String,
}

/// `p2pvm route ...`
#[derive(Subcommand)]
pub enum Routes {
    /// Let other members reach a subnet of this machine's LAN through it
    #[command(
        after_help = "This machine forwards, with its own address there (masquerade). The policy \
            must allow the offer ([[route]]); in a network\nwithout a policy it is used by \
            members that said 'p2pvm route accept'.\n\nExample:\n  p2pvm route offer 192.168.7.0/24"
    )]
    Offer {
        /// The subnet
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: String,
    },
    /// Take an offer back
    #[command(after_help = "Example:\n  p2pvm route withdraw 192.168.7.0/24")]
    Withdraw {
        /// The subnet
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: String,
    },
    /// List the subnets that members offer, and what is done with each here
    #[command(after_help = "Example:\n  p2pvm route list")]
    List,
    /// Use the subnets that others offer: needed where the network has no policy
    #[command(
        after_help = "Examples:\n  p2pvm route accept\n  p2pvm route accept --off\n  p2pvm route \
            accept --off 192.168.7.0/24"
    )]
    Accept {
        /// This subnet alone, beside what is said of all
        #[arg(value_name = "ADDR/PREFIX")]
        subnet: Option<String>,
        /// Use none, whatever the policy allows
        #[arg(long)]
        off: bool,
    },
}

/// Arguments of `demo`.
#[derive(Args)]
pub struct Demo {
    /// The guest image that guest-image/build.sh made
    #[arg(long)]
    pub image: PathBuf,
    /// The emulated wide area; by default the built-in six hosts at five sites
    #[arg(long)]
    pub sites: Option<PathBuf>,
    /// Keep the testbed and its logs when something fails
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `bench`.
#[derive(Args)]
pub struct Bench {
    /// Which figures; all but "traces" by default
    #[arg(value_parser = ["join", "ping", "migration", "snapshot", "idle", "traces"])]
    pub figures: Vec<String>,
    /// How often each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// The guest image that guest-image/build.sh made
    #[arg(long, default_value = "target/guest-image/guest.qcow2")]
    pub image: PathBuf,
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
                .map_err(|_| format!("'{text}' is no duration: write it as 5s, 2m or 1h"))
        },
        Ok,
    )?;
    if read.is_zero() {
        Err("a time limit of nothing lets nothing be done".to_owned())
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
                "'{unit}' is no unit of size: use K, M, G or T, as in 128M"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no size: write it as 128M or 2G"))?;
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
    fn the_grammar_is_sound_and_every_command_ends_its_help_with_an_example() {
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
