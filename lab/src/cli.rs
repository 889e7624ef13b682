//! `p2pvm testbed …`: the command line over [`Testbed`].

use crate::{
    chaos, compare,
    figures::{Destination, command_line},
    guest_client,
    keeper::{self, Life},
    matrix, netbench,
    runner::{program_or_this, this_program},
    sites::{Properties, Sites},
    soak,
    testbed::{self, Testbed},
};
use anyhow::Context;
use clap::{Args, Subcommand};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

/// The testbed of a command.
#[derive(Args, Debug)]
pub struct TestbedName {
    /// Name of the testbed
    #[arg(long, default_value = "testbed", env = "P2PVM_TESTBED")]
    name: String,
}

/// An emulated wide area on this machine (needs root).
#[derive(Subcommand, Debug)]
pub enum TestbedCommand {
    /// Build the sites, hosts and links of a file
    #[command(after_help = "Example: p2pvm testbed up lab/sites/planetlab.toml")]
    Up {
        /// The file that describes the sites
        sites: PathBuf,
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
    },
    /// Run a command on a host, with P2PVM_DIR naming the host's own state directory
    #[command(after_help = "Example: p2pvm testbed exec paris1 -- ping -c 3 198.18.2.10")]
    Exec {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Cut the link between two sites, or disconnect the cable of one host
    #[command(after_help = "Example: p2pvm testbed cut paris tokyo")]
    Cut {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// A site, its only host, or (alone) the host to isolate
        a: String,
        /// The other site
        b: Option<String>,
    },
    /// Undo `cut`
    #[command(after_help = "Example: p2pvm testbed heal paris tokyo")]
    Heal {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// A site, its only host, or (alone) the isolated host
        a: String,
        /// The other site
        b: Option<String>,
    },
    /// Change a link while it is up; a missing option means none
    #[command(
        after_help = "Example: p2pvm testbed shape paris tokyo --rtt-ms 300 --loss 0.01 --mbit 20"
    )]
    Shape {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// A site
        a: String,
        /// The other site
        b: String,
        /// Round trip in milliseconds
        #[arg(long)]
        rtt_ms: Option<f64>,
        /// Largest deviation of the one-way delay in milliseconds
        #[arg(long)]
        jitter_ms: Option<f64>,
        /// Probability of loss, 0 to 1
        #[arg(long)]
        loss: Option<f64>,
        /// Rate in Mbit/s
        #[arg(long)]
        mbit: Option<f64>,
        /// Largest packet in bytes
        #[arg(long)]
        mtu: Option<u16>,
        /// Let packets that are too large vanish without an ICMP message
        #[arg(long, requires = "mtu")]
        black_hole: bool,
    },
    /// Give a site its other public addresses, as a provider does overnight, and remove all NAT
    /// mappings
    #[command(after_help = "Example: p2pvm testbed renumber paris")]
    Renumber {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The site
        site: String,
    },
    /// Give a host another address at its site, or move it to another site, while its programs run
    #[command(after_help = "Example: p2pvm testbed rehost paris1 --to tokyo")]
    Rehost {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
        /// The site it moves to
        #[arg(long, value_name = "SITE")]
        to: Option<String>,
    },
    /// Suspend a host, as a closed lid does: stop its processes and disconnect its cable
    #[command(after_help = "Example: p2pvm testbed suspend paris1")]
    Suspend {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
    },
    /// Undo `suspend`
    #[command(after_help = "Example: p2pvm testbed wake paris1")]
    Wake {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
    },
    /// Power a host off: disconnect its cable and kill all its processes
    #[command(after_help = "Example: p2pvm testbed kill paris1")]
    Kill {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
    },
    /// Reconnect a killed host
    #[command(after_help = "Example: p2pvm testbed revive paris1")]
    Revive {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// The host
        host: String,
    },
    /// Show hosts, addresses, and what the links carried
    #[command(after_help = "Example: p2pvm testbed status --json")]
    Status {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the testbed with everything that runs on it
    #[command(after_help = "Example: p2pvm testbed down")]
    Down {
        /// Which testbed
        #[command(flatten)]
        named: TestbedName,
    },
    /// Measure p2pvm beside EasyTier, nebula, tinc and n2n on the same emulated hosts, where they
    /// are installed
    #[command(after_help = "Example: p2pvm testbed compare --rounds 3 --figures docs/figures")]
    Compare(compare::Options),
    /// Measure how soon a member that starts reaches others, by the round trip between sites
    #[command(
        after_help = "Example: p2pvm testbed joins --rtt 1,40,100 --rounds 5 --figures docs/figures"
    )]
    Joins(compare::joins::Options),
    /// Measure rates and round trips beside other overlays and the cable itself
    #[command(
        after_help = "Example: p2pvm testbed bench-net --rounds 3 --figures docs/figures\n\
        Example: p2pvm testbed bench-net --only raw,plain,p2pvm --measure tcp --before \
        /tmp/p2pvm-old"
    )]
    BenchNet(netbench::Options),
    /// The forwarder without encryption that bench-net measures beside the others
    #[command(hide = true)]
    PlainTunnel(netbench::tunnel::TunnelOptions),
    /// Send malformed, replayed and forged datagrams to a running daemon and report the outcome
    #[command(after_help = "Example: p2pvm testbed soak --seconds 600")]
    Soak {
        /// How many seconds
        #[
            arg(
                long, default_value_t = 60,
                value_parser = clap::value_parser!(u64).range(1..=86_400)
            )
        ]
        seconds: u64,
        /// Datagrams a second
        #[
            arg(
                long, default_value_t = 4000,
                value_parser = clap::value_parser!(u32).range(1..=100_000)
            )
        ]
        pace: u32,
        /// Seed of the datagrams
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The p2pvm executable whose daemon is attacked; by default this program
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// Where the figures go
        #[command(flatten)]
        figures: Destination,
    },
    /// Run random but reproducible events on a host while streams, pings and look-ups go on
    #[command(
        after_help = "Examples:\n  p2pvm testbed chaos --seed 7 --minutes 15 --image \
            target/guest-image/guest.qcow2\n  \
        p2pvm testbed chaos --seed 7 --only 12\n  p2pvm testbed chaos --events 'nft \
        flushed,device deleted'"
    )]
    Chaos(chaos::Options),
    /// Try every pair of NAT kinds with real daemons
    #[command(
        name = "nat-matrix",
        after_help = "Examples:\n  p2pvm testbed nat-matrix --rounds 3 --figures docs/figures\n  \
            p2pvm testbed nat-matrix --kinds none,symmetric"
    )]
    NatMatrix(matrix::Options),
    /// Talk to a guest's counter and report lost and doubled replies
    #[command(hide = true)]
    Client(guest_client::Options),
    /// Keep a testbed until told to end
    #[command(hide = true)]
    Keep {
        /// Name of the testbed
        name: String,
        /// End with the process that started this one
        #[arg(long)]
        tied: bool,
    },
}

/// Runs a command. `arguments` are those before it on the command line of this executable:
/// `["testbed"]` for `p2pvm testbed`.
pub fn run_as(arguments: &[&OsStr], command: TestbedCommand) -> anyhow::Result<ExitCode> {
    match command {
        TestbedCommand::Up { sites, named } => {
            let sites = Sites::load(&sites).with_context(|| sites.display().to_string())?;
            let program = this_program()?;
            let testbed = Testbed::up_by(&program, arguments, &sites, &named.name, Life::Detached)?;
            print_hosts(&testbed.status()?);
        }
        TestbedCommand::Exec {
            named,
            host,
            command,
        } => {
            let Some((program, arguments)) = command.split_first() else {
                anyhow::bail!("there is no command to run")
            };
            return Err(Testbed::open(&named.name)?
                .become_command(&host, Command::new(program).args(arguments))
                .into());
        }
        TestbedCommand::Status { named, json } => {
            let status = Testbed::open(&named.name)?.status()?;
            if json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print_hosts(&status);
                print_links(&status);
            }
        }
        TestbedCommand::Down { named } => testbed::down(&named.name)?,
        TestbedCommand::Keep { name, tied } => return Ok(keeper::keep(&name, tied)),
        TestbedCommand::Compare(options) => return compare::run(&options),
        TestbedCommand::Joins(options) => return compare::joins::run(&options),
        TestbedCommand::BenchNet(options) => return netbench::run(&options, arguments),
        TestbedCommand::PlainTunnel(options) => netbench::tunnel::run(&options)?,
        TestbedCommand::Soak {
            seconds,
            pace,
            seed,
            program,
            figures,
        } => {
            let lasting = Duration::from_secs(seconds);
            return soak(&program_or_this(program)?, pace, lasting, seed, &figures);
        }
        TestbedCommand::Chaos(options) => {
            let program = program_or_this(options.program.clone())?;
            return chaos::main(&options, &program);
        }
        TestbedCommand::NatMatrix(options) => matrix::run(&options, &this_program()?)?,
        TestbedCommand::Client(options) => return guest_client::main(&options),
        change => change_testbed(change)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that changes a testbed while it is up.
fn change_testbed(command: TestbedCommand) -> anyhow::Result<()> {
    match command {
        TestbedCommand::Cut { named, a, b } => {
            let testbed = Testbed::open(&named.name)?;
            match b {
                Some(b) => testbed.cut(&a, &b)?,
                None => testbed.isolate(&a)?,
            }
        }
        TestbedCommand::Heal { named, a, b } => {
            let testbed = Testbed::open(&named.name)?;
            match b {
                Some(b) => testbed.heal(&a, &b)?,
                None => testbed.rejoin(&a)?,
            }
        }
        TestbedCommand::Shape {
            named,
            a,
            b,
            rtt_ms,
            jitter_ms,
            loss,
            mbit,
            mtu,
            black_hole,
        } => {
            let properties = Properties {
                rtt_ms,
                jitter_ms,
                loss,
                mbit,
                mtu,
                black_hole: Some(black_hole),
                ..Properties::default()
            };
            Testbed::open(&named.name)?.reshape(&a, &b, properties)?;
        }
        TestbedCommand::Renumber { named, site } => Testbed::open(&named.name)?.renumber(&site)?,
        TestbedCommand::Rehost { named, host, to } => {
            let mut testbed = Testbed::open(&named.name)?;
            testbed.rehost(&host, to.as_deref())?;
            println!("{host} has the address {}", testbed.host(&host)?.address);
        }
        TestbedCommand::Suspend { named, host } => {
            let stopped = Testbed::open(&named.name)?.suspend(&host)?;
            println!("stopped {stopped} processes on {host}");
        }
        TestbedCommand::Wake { named, host } => {
            let woken = Testbed::open(&named.name)?.wake(&host)?;
            println!("continued {woken} processes on {host}");
        }
        TestbedCommand::Kill { named, host } => {
            let killed = Testbed::open(&named.name)?.kill(&host)?;
            println!("killed {killed} processes on {host}");
        }
        TestbedCommand::Revive { named, host } => Testbed::open(&named.name)?.revive(&host)?,
        _ => unreachable!("run_as runs all commands that change no testbed"),
    }
    Ok(())
}

/// Attacks a daemon and prints the report; fails if the daemon did not withstand the attack.
fn soak(
    program: &Path,
    pace: u32,
    lasting: Duration,
    seed: u64,
    figures: &Destination,
) -> anyhow::Result<ExitCode> {
    let recorder = figures.begin();
    let report = soak::soak(program, "soak", pace, lasting, seed)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    recorder.record("soak", &command_line(), &report.figures())?;
    let withstood =
        report.same_daemon && report.panics.is_empty() && report.outcome.worst_amplification <= 3.0;
    Ok(if withstood {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a command of `p2pvm testbed`.
pub fn run(command: TestbedCommand) -> anyhow::Result<ExitCode> {
    run_as(&[OsStr::new("testbed")], command)
}

fn print_hosts(status: &testbed::Status) {
    println!(
        "{:<16} {:<16} {:<16} {:<16} processes",
        "host", "site", "address", "seen as"
    );
    for host in &status.hosts {
        let v6 = host
            .address6
            .filter(|v6| host.address != *v6)
            .map_or(String::new(), |v6| format!("  {v6}"));
        println!(
            "{:<16} {:<16} {:<16} {:<16} {}{v6}",
            host.name, host.site, host.address, host.public, host.processes
        );
    }
}

fn print_links(status: &testbed::Status) {
    for link in &status.links {
        let c = link.counters;
        println!(
            "{} -> {}: {} packets, {} bytes, lost {}, queue full {}, cut {}, too large {}, \
                refused {}",
            link.from, link.to, c.packets, c.bytes, c.lost, c.full, c.cut, c.too_large, c.refused
        );
    }
}
