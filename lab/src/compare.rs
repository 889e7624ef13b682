//! p2pvm beside other overlays on the same emulated sites: how soon a host that starts reaches
//! another, what an idle host costs, and which traffic continues when the bootstrap host dies.
//!
//! Every program gets the same five hosts: a public one that all are configured with (the
//! bootstrap, lighthouse or supernode), a second public one, and three behind port-restricted NATs.
//! Keys and configuration are made beforehand; only starting is timed. The probe is the system's
//! `ping` to the overlay address, started every 25 ms until one is answered. A program that is not
//! installed is named with the reason and left out.

pub mod joins;
mod others;
mod p2pvm;

use crate::{
    figures::{Destination, Figure, Recorder, command_line},
    sites::Sites,
    testbed::{self, Testbed},
};
use anyhow::{Context, bail};
use clap::Args;
use p2pvm_overlay::chain;
use serde::Serialize;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The five hosts; all others are configured with the first.
const SITES: &str = r#"
seed = 11
[default]
rtt_ms = 40
mbit = 500
[[site]]
name = "boot"
[[site]]
name = "pub2"
[[site]]
name = "a"
nat = "port-restricted"
[[site]]
name = "b"
nat = "port-restricted"
[[site]]
name = "c"
nat = "port-restricted"
"#;

/// The hosts in the order in which they start; `a` comes last and is timed.
const HOSTS: [&str; 5] = ["boot", "pub2", "b", "c", "a"];
/// How long a ping is waited for before it counts as never answered.
const NEVER: Duration = Duration::from_secs(30);
/// The time between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How long a network settles after its start before its idle traffic is counted.
const SETTLE: Duration = Duration::from_secs(20);
/// How long idle traffic is counted.
const IDLE: Duration = Duration::from_secs(30);
/// How long traffic between two hosts is watched after the bootstrap's death.
const WATCH: Duration = Duration::from_secs(25);

/// Arguments of `testbed compare`.
#[derive(Args, Debug)]
pub struct Options {
    /// Which programs; all by default
    #[arg(value_parser = ["p2pvm", "easytier", "nebula", "nebula-direct", "tinc", "n2n"])]
    programs: Vec<String>,
    /// How many rounds each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Where easytier-core is, if it is not on the path (cargo install easytier)
    #[arg(long, default_value = "easytier-core", value_name = "FILE")]
    easytier: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// The options that all measurements on these hosts share: the program that is measured, and where
/// the result goes.
#[derive(Args, Debug)]
struct Common {
    #[command(flatten)]
    figures: Destination,
    /// Print JSON
    #[arg(long = "as-json")]
    json: bool,
    /// The p2pvm executable; by default this program
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Common {
    /// The p2pvm executable to measure, or an error if this user cannot measure.
    fn program(&self) -> anyhow::Result<PathBuf> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this makes network namespaces: run it as root");
        }
        crate::runner::program_or_this(self.program.clone())
    }

    /// Prints the results in the form of the options, and writes their figures if these say so.
    fn report<T: Serialize>(
        &self,
        results: &[T],
        recorder: &Recorder,
        set: &str,
        figures: &[Figure],
    ) -> anyhow::Result<ExitCode> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(results)?);
        } else {
            println!("{}", Recorder::overview(figures));
        }
        recorder.record(set, &command_line(), figures)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// One overlay, as this comparison drives it on the hosts of one testbed.
trait Overlay {
    /// The overlay's name and version.
    fn version(&self) -> String;
    /// Makes keys and configuration for all hosts.
    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()>;
    /// Starts it on a host.
    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()>;
    /// Ends it on a host.
    fn stop(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()>;
    /// The host's address on the overlay; it may be known only once it has started.
    fn address(&self, bed: &Testbed, host: &str) -> anyhow::Result<String>;
}

/// The figures of one round, in seconds; `None` means never (within [`NEVER`]).
#[derive(Debug, Default, Serialize)]
struct Round {
    /// From the start of `a` until `b` answers its ping; both are behind NATs.
    first_ping: Option<f64>,
    /// Bytes per second on the wire of `a`, both ways, with nothing to do.
    idle_bytes: f64,
    /// The longest silence of the traffic between `a` and `b` after the bootstrap's death.
    silence: Option<f64>,
    /// After that, from the first ping of `a` to `c`, with which it had no contact, until an
    /// answer.
    new_pair: Option<f64>,
    /// After that, from a restart of `a` until `b` answers its ping.
    restart: Option<f64>,
}

#[derive(Debug, Serialize)]
struct MeasuredProgram {
    program: String,
    version: String,
    rounds: Vec<Round>,
    /// Why the program was not measured.
    failed: Option<String>,
}

/// Runs the comparison.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let program = &options.common.program()?;
    let wanted =
        |name: &str| options.programs.is_empty() || options.programs.iter().any(|p| p == name);
    let recorder = options.common.figures.begin();
    let mut results = Vec::new();
    for name in [
        "p2pvm",
        "easytier",
        "nebula",
        "nebula-direct",
        "tinc",
        "n2n",
    ]
    .into_iter()
    .filter(|name| wanted(name))
    {
        let mut result = MeasuredProgram {
            program: name.into(),
            version: String::new(),
            rounds: Vec::new(),
            failed: None,
        };
        for round in 1..=options.rounds {
            let overlay: anyhow::Result<Box<dyn Overlay>> = match name {
                "p2pvm" => Ok(Box::new(p2pvm::P2pvm::new(program))),
                "easytier" => others::EasyTier::new(&options.easytier)
                    .map(|o| Box::new(o) as Box<dyn Overlay>),
                "nebula" | "nebula-direct" => {
                    others::Nebula::new(name == "nebula").map(|o| Box::new(o) as Box<dyn Overlay>)
                }
                "tinc" => others::Tinc::new().map(|o| Box::new(o) as Box<dyn Overlay>),
                _ => others::N2n::new().map(|o| Box::new(o) as Box<dyn Overlay>),
            };
            let measured = overlay.and_then(|mut overlay| {
                result.version = overlay.version();
                eprintln!("{name}, round {round} of {}", options.rounds);
                one_round(program, overlay.as_mut())
            });
            match measured {
                Ok(round) => {
                    eprintln!("  {round:?}");
                    result.rounds.push(round);
                }
                Err(error) => {
                    let why = chain(error.as_ref());
                    eprintln!("  {name}: {why}");
                    result.failed = Some(why);
                    break;
                }
            }
        }
        results.push(result);
    }
    let figures = figures(&results);
    options
        .common
        .report(&results, &recorder, "peers", &figures)
}

fn one_round(program: &Path, overlay: &mut dyn Overlay) -> anyhow::Result<Round> {
    let bed = Testbed::up_by(
        program,
        &[OsStr::new("testbed")],
        &Sites::parse(SITES)?,
        "compare",
        crate::keeper::Life::Tied,
    )?;
    overlay.prepare(&bed)?;
    for host in &HOSTS[..4] {
        overlay.start(&bed, host)?;
    }
    let address = |overlay: &dyn Overlay, host: &str| overlay.address(&bed, host);
    for host in &HOSTS[1..4] {
        let boot = address(overlay, "boot")?;
        first_answer(&bed, host, &boot)?
            .with_context(|| format!("{host} never reached the bootstrap"))?;
    }
    let b = address(overlay, "b")?;
    let began = Instant::now();
    overlay.start(&bed, "a")?;
    let first_ping = first_answer(&bed, "a", &b)?.map(|_| began.elapsed().as_secs_f64());
    thread::sleep(SETTLE);
    let before = wire_bytes(&bed, "a")?;
    let counted = Instant::now();
    thread::sleep(IDLE);
    let idle_bytes = (wire_bytes(&bed, "a")? - before) as f64 / counted.elapsed().as_secs_f64();

    // `a` and `b` exchange packets before the bootstrap dies.
    first_answer(&bed, "a", &b)?;
    let talk = Talk::start(&bed, "a", &b)?;
    thread::sleep(Duration::from_secs(3));
    bed.kill("boot")?;
    thread::sleep(WATCH);
    let silence = talk.longest_silence()?;
    let c = address(overlay, "c")?;
    let began = Instant::now();
    let new_pair = first_answer(&bed, "a", &c)?.map(|_| began.elapsed().as_secs_f64());
    overlay.stop(&bed, "a")?;
    thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    overlay.start(&bed, "a")?;
    let restart = first_answer(&bed, "a", &b)?.map(|_| began.elapsed().as_secs_f64());
    for host in &HOSTS[1..] {
        overlay.stop(&bed, host)?;
    }
    bed.down()?;
    Ok(Round {
        first_ping,
        idle_bytes,
        silence,
        new_pair,
        restart,
    })
}

/// Pings until one is answered; `None` if none is within [`NEVER`].
fn first_answer(bed: &Testbed, from: &str, to: &str) -> anyhow::Result<Option<Duration>> {
    let began = Instant::now();
    let mut probes: Vec<Child> = Vec::new();
    let mut answered = false;
    while !answered && began.elapsed() < NEVER {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c", "1", "-W", "1", to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        probes.push(bed.spawn(from, &mut ping)?);
        thread::sleep(PROBE_EVERY);
        let mut running = Vec::new();
        for mut probe in probes {
            match probe.try_wait()? {
                None => running.push(probe),
                Some(status) => answered |= status.success(),
            }
        }
        probes = running;
    }
    let took = began.elapsed();
    for mut probe in probes {
        // It ends by itself within a second; its status does not matter.
        let _ = probe.kill();
        probe.wait()?;
    }
    Ok(answered.then_some(took))
}

/// Bytes on the links from and to a site so far.
fn wire_bytes(bed: &Testbed, site: &str) -> anyhow::Result<u64> {
    let index = bed
        .plan()
        .sites
        .iter()
        .position(|s| s.name == site)
        .context("no such site")?;
    let counters = bed.counters()?;
    let sent: u64 = counters[index].iter().map(|c| c.bytes).sum();
    let received: u64 = counters.iter().map(|row| row[index].bytes).sum();
    Ok(sent + received)
}

/// A ping ten times a second.
struct Talk(Child);

impl Talk {
    fn start(bed: &Testbed, from: &str, to: &str) -> Result<Self, testbed::Error> {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-D", "-i", "0.1", "-W", "1", to])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        bed.spawn(from, &mut ping).map(Self)
    }

    /// Ends it and returns the longest time between two answers until now; `None` if none came in
    /// the last five seconds.
    fn longest_silence(mut self) -> anyhow::Result<Option<f64>> {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id() as i32),
            nix::sys::signal::Signal::SIGINT,
        )?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs_f64();
        let mut text = String::new();
        std::io::Read::read_to_string(self.0.stdout.as_mut().context("no output")?, &mut text)?;
        self.0.wait()?;
        // [1700000000.123456] 64 bytes from ...
        let answers = text
            .lines()
            .filter(|l| l.contains(" bytes from "))
            .filter_map(|l| l.strip_prefix('[')?.split_once(']')?.0.parse().ok());
        let mut times: Vec<f64> = answers.collect();
        times.push(now);
        let last = times.len().checked_sub(2).map(|i| times[i]);
        let longest = times.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        Ok(last.is_some_and(|last| now - last < 5.0).then_some(longest))
    }
}

fn figures(results: &[MeasuredProgram]) -> Vec<Figure> {
    type Getter = fn(&Round) -> Option<f64>;
    let all: [(&str, &str, &str, usize, Getter); 5] = [
        (
            "first-ping",
            "start to first ping, both ends behind NATs",
            "s",
            2,
            |r| r.first_ping,
        ),
        (
            "idle",
            "traffic of an idle host, both ways",
            "bytes/s",
            0,
            |r| Some(r.idle_bytes),
        ),
        (
            "silence",
            "bootstrap dies: longest silence of a pair that talks",
            "s",
            2,
            |r| r.silence,
        ),
        (
            "new-pair",
            "bootstrap is dead: first ping of a new pair",
            "s",
            2,
            |r| r.new_pair,
        ),
        (
            "restart",
            "bootstrap is dead: restart to first ping",
            "s",
            2,
            |r| r.restart,
        ),
    ];
    let words = |name: &str, what: &str, said: &str, of: &MeasuredProgram| {
        Figure::new(name, what, "", [said]).of(of.program.as_str())
    };
    let versions = results.iter().filter(|r| !r.version.is_empty());
    let mut figures: Vec<Figure> = versions
        .map(|r| words("version", "version", &r.version, r))
        .collect();
    for (name, what, unit, digits, of) in all {
        let measured = results.iter().filter(|r| !r.rounds.is_empty());
        figures.extend(measured.map(|r| {
            Figure::new(name, what, unit, r.rounds.iter().map(of))
                .of(r.program.as_str())
                .digits(digits)
        }));
    }
    figures.extend(results.iter().filter_map(|r| {
        let why = r.failed.as_deref()?.replace(['\n', '|'], " ");
        Some(words("failed", "not measured", &why, r))
    }));
    figures
}
