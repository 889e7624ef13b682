//! `testbed bench-net`: rates and round trips of p2pvm beside those of other overlays and of the
//! cable itself, all in one run.
//!
//! The run goes round by round over all programs, so that the machine's other load falls on all
//! alike. Each measurement begins with fresh namespaces. Everything runs on this machine: the
//! senders and receivers, both daemons and the kernel of both hosts share its processors, so ratios
//! mean more than the figures themselves. A program that is missing or fails is named with the
//! reason. docs/speed.md shows the figures that `--figures` writes.

mod load;
mod programs;
mod report;
mod stage;
pub mod tunnel;
mod usage;

use crate::figures::{Destination, Recorder, command_line};
use anyhow::{Context, bail};
use clap::Args;
use load::{Bulk, Point, WARM_UP, datagrams, pings, rate};
use p2pvm_overlay::chain;
use programs::{Places, ProgramName, RunningProgram};
use serde::Serialize;
use stage::{Stage, ThisProgram, Topology};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

/// How long each throughput is measured.
const THROUGHPUT: Duration = Duration::from_millis(2000);
/// How long each point of a loss curve is measured.
const POINT: Duration = Duration::from_millis(450);
/// How many datagrams a second are offered, at 1 200 bytes and at 64.
const LADDER: [&[f64]; 2] = [&[50e3, 100e3, 200e3, 400e3], &[50e3, 150e3, 300e3, 600e3]];
/// Payload bytes of the two ladders.
const SIZES: [usize; 2] = [1200, 64];
/// The number of pings on an idle path, and the time between two.
/// Reason: the receiver sleeps in between.
const IDLE_PINGS: (u32, Duration) = (250, Duration::from_millis(6));
/// The same beside a bulk stream.
const LOADED_PINGS: (u32, Duration) = (200, Duration::from_millis(10));
/// Round trip of the wide area that loses packets.
const FAR_MS: u32 = 50;
/// Its losses each way, in percent.
const LOSSES: [f64; 2] = [1.0, 5.0];
/// How many streams share that wide area.
/// Reason: one round then has many losses.
const LOSSY_STREAMS: usize = 8;
/// How long those streams are measured.
const LOSSY: Duration = Duration::from_secs(5);
/// How long a path may take to work before its program counts as failed.
const REACHED: Duration = Duration::from_secs(20);

/// Arguments of `testbed bench-net`.
#[derive(Args, Debug)]
pub struct Options {
    /// Only these programs, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<ProgramName>,
    /// Only these measurements, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    measure: Vec<Measure>,
    /// How many rounds each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    #[command(flatten)]
    figures: Destination,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The p2pvm executable; by default this program
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Another p2pvm, measured beside it in the same rounds
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Packet planes alone (overlay/benches/pair.rs), by a name for the table; may be given several
    /// times
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    pair: Vec<(String, PathBuf)>,
    /// Directory of the other overlays that scripts/bench-peers.sh built
    #[arg(long, value_name = "DIR", default_value = "target/bench-peers/bin")]
    peers: PathBuf,
    /// easytier-core, if it is not in that directory
    #[arg(long, value_name = "FILE")]
    easytier: Option<PathBuf>,
}

/// The measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// TCP: one stream, eight, both directions
    Tcp,
    /// UDP: packets a second and loss, at two sizes
    Udp,
    /// Round trips, idle and under load
    Ping,
    /// TCP where packets are lost
    Loss,
    /// Through a third member
    Relay,
}

/// The figures of one program in one round. Rates in Gbit/s, round trips in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
struct Round {
    tcp_1: Option<f64>,
    tcp_8: Option<f64>,
    tcp_both: Option<f64>,
    /// Processor seconds of both daemons for each 10⁹ bytes of one stream.
    cpu_per_gb: Option<f64>,
    /// Resident memory of the larger daemon at the end of the eight streams.
    resident_mb: Option<f64>,
    udp: Vec<(usize, Vec<Point>)>,
    /// Median and 99th percentile.
    ping_idle: Option<(f64, f64)>,
    ping_loaded: Option<(f64, f64)>,
    /// Mbit/s of all streams together, for each of the losses.
    lossy: Vec<f64>,
    relayed: Option<f64>,
    /// Processor seconds of the relay for each 10⁹ bytes.
    relay_cpu_per_gb: Option<f64>,
    /// The measurements that failed, and why.
    failed: Vec<String>,
}

/// One row of the table.
#[derive(Debug, Serialize)]
struct TableRow {
    name: String,
    version: String,
    rounds: Vec<Round>,
}

struct Contender {
    which: ProgramName,
    name: String,
    places: Places,
}

/// Runs the measurements. `arguments`: those before a `testbed` command of this program.
///
/// # Errors
/// If not run as root, or the figures cannot be written. A program that fails is named in the table
/// instead.
pub fn run(options: &Options, arguments: &[&OsStr]) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("bench-net makes network namespaces: run it as root");
    }
    stage::sweep();
    let file = std::env::current_exe().context("cannot find this program's own file")?;
    let own = ThisProgram {
        file: file.clone(),
        arguments: arguments.iter().map(OsString::from).collect(),
    };
    let contenders = contenders(options, &own, &file);
    let mut results: Vec<TableRow> = contenders
        .iter()
        .map(|c| TableRow {
            name: c.name.clone(),
            version: String::new(),
            rounds: Vec::new(),
        })
        .collect();
    let recorder = options.figures.begin();
    for round in 1..=options.rounds {
        let lossy = if options.wants(Measure::Loss) {
            all_lossy(&contenders, &own)
        } else {
            contenders.iter().map(|_| Ok(Vec::new())).collect()
        };
        for ((contender, result), lossy) in contenders.iter().zip(&mut results).zip(lossy) {
            eprintln!("round {round} of {}: {}", options.rounds, contender.name);
            result.add_round(options, contender, &own, lossy);
        }
    }
    let figures = report::figures(&results);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        println!("{}", Recorder::overview(&figures));
    }
    recorder.record("speed", &command_line(), &figures)?;
    Ok(ExitCode::SUCCESS)
}

/// The programs to measure, in the order of the table.
fn contenders(options: &Options, own: &ThisProgram, this_program: &Path) -> Vec<Contender> {
    let contender = |which: ProgramName, name: &str, p2pvm: &Path| Contender {
        which,
        name: name.into(),
        places: Places {
            p2pvm: p2pvm.to_owned(),
            plain: own.clone(),
            peers: options.peers.clone(),
            easytier: options.easytier.clone(),
        },
    };
    let p2pvm = options.program.as_deref().unwrap_or(this_program);
    let mut contenders = Vec::new();
    for which in ProgramName::ALL
        .into_iter()
        .filter(|w| options.only.is_empty() || options.only.contains(w))
    {
        contenders.push(contender(which, which.name(), p2pvm));
        if let (ProgramName::P2pvm, Some(before)) = (which, &options.before) {
            contenders.push(contender(which, "p2pvm before", before));
        }
    }
    let pairs = options.pair.iter();
    contenders.extend(pairs.map(|(name, file)| contender(ProgramName::Pair, name, file)));
    contenders
}

impl TableRow {
    /// Measures one round of a program; `lossy` is what [`all_lossy`] measured of it.
    fn add_round(
        &mut self,
        options: &Options,
        contender: &Contender,
        own: &ThisProgram,
        lossy: anyhow::Result<Vec<f64>>,
    ) {
        let mut measured = Round::default();
        match contender.places.version(contender.which) {
            Ok(version) => {
                self.version = version;
                one_round(options, contender, own, &mut measured);
                match lossy {
                    Ok(rates) => measured.lossy = rates,
                    Err(error) => measured
                        .failed
                        .push(format!("with loss: {}", chain(error.as_ref()))),
                }
            }
            Err(error) => measured.failed.push(chain(error.as_ref())),
        }
        measured.failed.iter().for_each(|why| eprintln!("  {why}"));
        self.rounds.push(measured);
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("NAME=FILE")?;
    Ok((name.into(), file.into()))
}

impl Options {
    fn wants(&self, measure: Measure) -> bool {
        self.measure.is_empty() || self.measure.contains(&measure)
    }
}

/// Measures all but loss, which is measured of all programs at the same time.
fn one_round(options: &Options, contender: &Contender, own: &ThisProgram, round: &mut Round) {
    let direct = [Measure::Tcp, Measure::Udp, Measure::Ping]
        .into_iter()
        .any(|m| options.wants(m));
    if direct && let Err(error) = measure_direct(options, contender, own, round) {
        round.failed.push(chain(error.as_ref()));
    }
    if options.wants(Measure::Relay)
        && let Err(error) = measure_relayed(contender, own, round)
    {
        round
            .failed
            .push(format!("relayed: {}", chain(error.as_ref())));
    }
}

fn measure_direct(
    options: &Options,
    contender: &Contender,
    own: &ThisProgram,
    round: &mut Round,
) -> anyhow::Result<()> {
    let stage = Stage::up(own, Topology::Direct, &contender.which.short())?;
    let running = RunningProgram::start(contender.which, &contender.places, &stage)?;
    let [a, b] = running.addresses;
    load::until_reached(&stage, 0, b, REACHED)?;
    let pids = running.pids(&[0, 1]);
    // The first stream lets every program settle: path MTU, session, buffers.
    drop((Bulk::start(&stage, 0, 1, b, 1)?, thread::sleep(WARM_UP)));
    if options.wants(Measure::Ping) {
        round.ping_idle = Some(summary(&pings(&stage, b, IDLE_PINGS.0, IDLE_PINGS.1)?));
    }
    if options.wants(Measure::Tcp) {
        let bulk = [Bulk::start(&stage, 0, 1, b, 1)?];
        let mut cost = Vec::new();
        round.tcp_1 = Some(rate(&bulk, WARM_UP, THROUGHPUT, || {
            cost.push((usage::cpu_seconds(&pids), bulk[0].received()))
        }));
        round.cpu_per_gb = cpu_per_gb(&cost, &pids);
        drop(bulk);
        let bulk = [Bulk::start(&stage, 0, 1, b, 8)?];
        round.tcp_8 = Some(rate(&bulk, WARM_UP, THROUGHPUT, || {}));
        round.resident_mb = (!pids.is_empty()).then(|| usage::resident_mb(&pids));
        drop(bulk);
        let bulk = [
            Bulk::start(&stage, 0, 1, b, 1)?,
            Bulk::start(&stage, 1, 0, a, 1)?,
        ];
        round.tcp_both = Some(rate(&bulk, WARM_UP, THROUGHPUT, || {}));
    }
    if options.wants(Measure::Ping) {
        let bulk = Bulk::start(&stage, 0, 1, b, 1)?;
        thread::sleep(WARM_UP);
        round.ping_loaded = Some(summary(&pings(&stage, b, LOADED_PINGS.0, LOADED_PINGS.1)?));
        drop(bulk);
    }
    if options.wants(Measure::Udp) {
        for (bytes, ladder) in SIZES.into_iter().zip(LADDER) {
            let mut points = Vec::new();
            for wanted in ladder {
                points.push(datagrams(&stage, b, bytes, *wanted, POINT)?);
            }
            round.udp.push((bytes, points));
        }
    }
    Ok(())
}

fn measure_relayed(
    contender: &Contender,
    own: &ThisProgram,
    round: &mut Round,
) -> anyhow::Result<()> {
    let topology = if contender.which == ProgramName::Raw {
        Topology::Routed
    } else {
        Topology::Middle
    };
    let stage = Stage::up(own, topology, &format!("{}-m", contender.which.short()))?;
    let running = RunningProgram::start(contender.which, &contender.places, &stage)?;
    let b = running.addresses[1];
    load::until_reached(&stage, 0, b, REACHED)?;
    drop((Bulk::start(&stage, 0, 1, b, 1)?, thread::sleep(WARM_UP)));
    let (bulk, relay) = ([Bulk::start(&stage, 0, 1, b, 1)?], running.pids(&[2]));
    let mut cost = Vec::new();
    round.relayed = Some(rate(&bulk, WARM_UP, THROUGHPUT, || {
        cost.push((usage::cpu_seconds(&relay), bulk[0].received()))
    }));
    round.relay_cpu_per_gb = cpu_per_gb(&cost, &relay);
    Ok(())
}

/// TCP with loss, all programs at once: each carries a few Mbit/s, which leaves the machine nearly
/// idle.
fn all_lossy(contenders: &[Contender], own: &ThisProgram) -> Vec<anyhow::Result<Vec<f64>>> {
    eprintln!("measuring loss of all programs at the same time");
    let one = |contender: &Contender, number: usize| {
        let stage = Stage::up(own, Topology::Far { rtt_ms: FAR_MS }, &number.to_string())?;
        let running = RunningProgram::start(contender.which, &contender.places, &stage)?;
        let b = running.addresses[1];
        load::until_reached(&stage, 0, b, REACHED)?;
        let mut rates = Vec::new();
        for percent in LOSSES {
            let bulk = [Bulk::start(&stage, 0, 1, b, LOSSY_STREAMS)?];
            bulk[0].use_cubic()?;
            stage.lose(FAR_MS, percent)?;
            rates.push(rate(&bulk, Duration::from_secs(1), LOSSY, || {}) * 1000.0);
            stage.lose(FAR_MS, 0.0)?;
        }
        Ok(rates)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = contenders
            .iter()
            .enumerate()
            .map(|(n, c)| scope.spawn(move || one(c, n)))
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// Processor seconds for each 10⁹ bytes between two marks of processor seconds and bytes; `None` if
/// no daemon ran.
fn cpu_per_gb(marks: &[(f64, u64)], daemons: &[u32]) -> Option<f64> {
    let ([before, after], false) = (marks, daemons.is_empty()) else {
        return None;
    };
    Some((after.0 - before.0) / ((after.1 - before.1) as f64 / 1e9).max(1e-9))
}

/// Median and 99th percentile of ascending values.
fn summary(sorted: &[f64]) -> (f64, f64) {
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    (at(0.5), at(0.99))
}
