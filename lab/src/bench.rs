//! `p2pvm bench`: the figures of docs/SPECIFICATION.md, measured on the emulated wide area by the
//! same commands a user runs. Prints the value of every round, so that the spread is visible;
//! asserts nothing.

mod traces;

use crate::{
    Sites, figures,
    figures::{Amount, Recorder, command_line},
    lab::Lab,
    runner::{Runner, find_image, require_root},
};
use clap::Args;
use p2pvm_api::{Doing, Failure, Outcome, SnapshotTaken, VmView};
use serde::Serialize;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// The round trip at which joining is measured.
const JOIN_RTT_MS: f64 = 50.0;
/// The round trips at which migration is measured.
const MIGRATION_RTTS_MS: [f64; 3] = [0.1, 50.0, 200.0];
/// The `node.toml` of every host.
/// Reason: one processor each, and no move but those of the bench.
const SETTINGS: &str = "cpus = 1\nupnp = false\nautonomic = false\n";
/// How long an idle network is watched.
const IDLE_SECONDS: u64 = 60;
/// How long a network settles after a change before it counts as idle.
const SETTLE: Duration = Duration::from_secs(30);

/// One printed line: a figure with all its rounds.
#[derive(Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

/// Options of `p2pvm bench`.
#[derive(Args, Debug)]
pub struct Options {
    /// Which figures; all but "traces" by default
    #[arg(value_parser = ["join", "ping", "migration", "snapshot", "idle", "traces"])]
    figures: Vec<String>,
    /// How many rounds each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The guest image that guest-image/build.sh made
    #[arg(long, default_value = "target/guest-image/guest.qcow2")]
    image: PathBuf,
}

struct Bench<'a> {
    runner: &'a Runner<'a>,
    rounds: u32,
    image: PathBuf,
    rows: Vec<Row>,
    /// The same for docs/figures.
    recorded: Vec<figures::Figure>,
    /// Those of traces, which have a page of their own.
    recorded_traces: Vec<figures::Figure>,
}

/// Measures the figures asked for.
pub fn run(options: &Options, runner: &Runner) -> Outcome<()> {
    require_root("bench")?;
    let mut bench = Bench {
        runner,
        rounds: options.rounds,
        image: options.image.clone(),
        rows: Vec::new(),
        recorded: Vec::new(),
        recorded_traces: Vec::new(),
    };
    let recorder = Recorder::from_environment();
    let is_named = |name: &str| options.figures.iter().any(|figure| figure == name);
    let wanted = |name: &str| options.figures.is_empty() || is_named(name);
    let traces = is_named("traces");
    if wanted("migration") || wanted("snapshot") || traces {
        bench.image = find_image(&options.image)?;
    }
    if wanted("join") || wanted("ping") || wanted("idle") {
        bench.network(wanted("join"), wanted("ping"), wanted("idle"))?;
    }
    for rtt in MIGRATION_RTTS_MS
        .into_iter()
        .filter(|_| wanted("migration"))
    {
        bench.migration(rtt)?;
    }
    bench.compare_gaps();
    if wanted("snapshot") {
        bench.snapshot()?;
    }
    if traces {
        bench.traces()?;
    }
    if runner.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&bench.rows).doing("encoding the figures")?
        );
    }
    for (set, figures) in [("bench", bench.recorded), ("traces", bench.recorded_traces)] {
        if !figures.is_empty() {
            recorder
                .record(set, &command_line(), &figures)
                .doing("writing the figures")?;
        }
    }
    Ok(())
}

/// The aim of docs/SPECIFICATION.md for a figure, if it has one.
fn aim(name: &str, of: &str) -> Option<&'static str> {
    Some(match (name, of) {
        ("join", _) => "≤ 2 s",
        ("migration-gap", "200") => "< 1 s",
        ("migration-gap-growth", _) => "≤ 5 times",
        ("migration-wrong", _) => "0",
        ("idle-traffic", _) => "≤ 1 kB/s",
        ("memory", _) => "≤ 50 MB",
        _ => return None,
    })
}

/// The figure as docs/figures has it.
fn recorded((name, of): (&str, &str), what: &str, unit: &str, rounds: &[f64]) -> figures::Figure {
    let mut figure = figures::Figure::new(name, what, unit, rounds.iter().copied()).of(of);
    // As it is printed: small ones with two decimals.
    let is_small = rounds.iter().all(|v| v.abs() < 10.0);
    let is_count = unit.is_empty();
    figure.digits = if is_small && !is_count { 2 } else { 0 };
    figure.aim = aim(name, of).map(str::to_owned);
    figure
}

fn sites(hosts: usize, rtt_ms: f64) -> Outcome<Sites> {
    let mut text = format!("seed = 1\n[default]\nrtt_ms = {rtt_ms}\nmbit = 1000\n");
    for i in 1..=hosts {
        text.push_str(&format!("[[site]]\nname = \"h{i}\"\n"));
    }
    Sites::parse(&text).doing("the bench's sites")
}

fn number(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |value| value as f64)
}

impl Bench<'_> {
    /// Prints a figure and keeps it. `key`: its name in docs/figures, and its subject.
    fn figure(
        &mut self,
        key: (&str, &str),
        what: impl Into<String>,
        unit: &'static str,
        rounds: Vec<f64>,
    ) {
        let what = what.into();
        self.recorded.push(recorded(key, &what, unit, &rounds));
        if !self.runner.json {
            let mut sorted = rounds.clone();
            sorted.sort_by(f64::total_cmp);
            let show = |v: f64| {
                if v.abs() < 10.0 {
                    format!("{v:.2}")
                } else {
                    format!("{v:.0}")
                }
            };
            let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
            let all: Vec<_> = rounds.iter().map(|v| show(*v)).collect();
            println!(
                "{what:64} {:>8} {unit:6} ({})",
                show(median),
                all.join(", ")
            );
        }
        self.rows.push(Row { what, unit, rounds });
    }

    fn lab(&self, hosts: usize, rtt_ms: f64) -> Outcome<Lab> {
        let building = format!("building {hosts} hosts {rtt_ms} ms apart");
        let _progress = (self.runner.show_progress)(&building);
        let lab = Lab::up(&sites(hosts, rtt_ms)?, "p2pvm-bench", self.runner.program)
            .doing("building the testbed")?;
        for i in 1..=hosts {
            lab.configure(&format!("h{i}"), SETTINGS)
                .doing("configuring")?;
        }
        lab.found("h1", "bench").doing("founding")?;
        Ok(lab)
    }

    fn network(&mut self, join: bool, ping: bool, idle: bool) -> Outcome<()> {
        let hosts = 6.max(self.rounds as usize + 1);
        let lab = self.lab(hosts, JOIN_RTT_MS)?;
        let invite = lab.invite("h1", hosts as u32).doing("inviting")?;
        let (mut joined, mut admitted, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for i in 2..=hosts {
            let host = format!("h{i}");
            let began = Instant::now();
            let answer = lab.join(&host, &invite).doing("joining")?;
            lab.ping(&host, "h1", 1, "1s").doing("the first ping")?;
            joined.push(began.elapsed().as_secs_f64() * 1e3);
            admitted.push(answer.admitted_ms as f64);
            claims.push(number(answer.status.start_ms.claim));
        }
        if join {
            let trips = joined.iter().map(|ms| ms / JOIN_RTT_MS).collect();
            self.figure(
                ("join", ""),
                "join: command to first overlay ping at 50 ms RTT",
                "ms",
                joined,
            );
            self.figure(
                ("join-trips", ""),
                "join: the same in round trips",
                "RTT",
                trips,
            );
            self.figure(
                ("join-admitted", ""),
                "join: of that, until admitted",
                "ms",
                admitted,
            );
            self.figure(("join-claim", ""), "join: address claim", "ms", claims);
        }
        if ping {
            self.ping(&lab)?;
        }
        if idle {
            self.idle(&lab, hosts)?;
        }
        lab.down().doing("taking the testbed down")
    }

    /// System ping over the raw path and over the overlay, in turn.
    fn ping(&mut self, lab: &Lab) -> Outcome<()> {
        let raw_address = lab.testbed().host("h2").doing("h2")?.address.to_string();
        let status = lab.status("h2").doing("status")?;
        let overlay_address = status.address.unwrap_or_default();
        let (mut raw, mut overlay, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let (a, b) = (
                system_ping(lab, "h1", &raw_address)?,
                system_ping(lab, "h1", &overlay_address)?,
            );
            raw.push(a);
            overlay.push(b);
            over.push(b - a);
        }
        self.figure(("ping-raw", ""), "ping: raw path, mean of 20", "ms", raw);
        self.figure(
            ("ping-overlay", ""),
            "ping: overlay, mean of 20",
            "ms",
            overlay,
        );
        self.figure(
            ("ping-over", ""),
            "ping: overhead of the overlay",
            "ms",
            over,
        );
        Ok(())
    }

    fn idle(&mut self, lab: &Lab, hosts: usize) -> Outcome<()> {
        let _progress = (self.runner.show_progress)("watching an idle network");
        std::thread::sleep(SETTLE);
        let names: Vec<String> = (1..=hosts).map(|i| format!("h{i}")).collect();
        let before: Vec<u64> = names
            .iter()
            .map(|h| interface_bytes(lab, h))
            .collect::<Outcome<_>>()?;
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
        let after: Vec<u64> = names
            .iter()
            .map(|h| interface_bytes(lab, h))
            .collect::<Outcome<_>>()?;
        let rates = before
            .iter()
            .zip(&after)
            .map(|(b, a)| (a - b) as f64 / IDLE_SECONDS as f64)
            .collect();
        self.figure(
            ("idle-traffic", ""),
            format!("idle traffic of each of {hosts} members, sent and received"),
            "B/s",
            rates,
        );
        let mut resident = Vec::new();
        for host in &names {
            let status = lab.status(host).doing("status")?;
            resident.push(status.resident_bytes as f64 / 1e6);
        }
        self.figure(
            ("memory", ""),
            "daemon resident memory of each member",
            "MB",
            resident,
        );
        Ok(())
    }

    fn vm(&self, lab: &Lab, host: &str) -> Outcome<String> {
        let image = self.image.to_string_lossy().into_owned();
        let made: VmView = lab
            .json(
                host,
                &[
                    "vm", "create", "web", "--image", &image, "--memory", "128M", "--start",
                ],
            )
            .doing("creating the VM")?;
        lab.wait_for_guest("h1", &made.address, Duration::from_secs(90))
            .doing("waiting for the guest")?;
        Ok(made.address)
    }

    fn members(&self, lab: &Lab, hosts: usize) -> Outcome<()> {
        let invite = lab.invite("h1", hosts as u32).doing("inviting")?;
        for i in 2..=hosts {
            lab.join(&format!("h{i}"), &invite).doing("joining")?;
        }
        Ok(())
    }

    fn migration(&mut self, rtt_ms: f64) -> Outcome<()> {
        let lab = self.lab(3, rtt_ms)?;
        self.members(&lab, 3)?;
        let address = self.vm(&lab, "h2")?;
        let (mut total, mut downtime, mut gap, mut bad) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut from, mut to) = ("h2", "h3");
        for _ in 0..self.rounds {
            let client = lab
                .client("h1", &address, 10)
                .doing("starting the client")?;
            std::thread::sleep(Duration::from_secs(2));
            let moved = lab.migrate(from, "web", to).doing("migrating")?;
            std::thread::sleep(Duration::from_secs(2));
            let seen = client.finish().doing("asking the client")?;
            total.push(moved.total_ms as f64);
            downtime.push(moved.downtime_ms as f64);
            gap.push(seen.longest_gap_ms);
            bad.push((seen.lost + seen.doubled + seen.counter_gaps) as f64);
            std::mem::swap(&mut from, &mut to);
        }
        let of = rtt_ms.to_string();
        self.figure(
            ("migration-total", &of),
            format!("migration at {rtt_ms} ms RTT: total"),
            "ms",
            total,
        );
        self.figure(
            ("migration-downtime", &of),
            format!("migration at {rtt_ms} ms RTT: downtime by QEMU"),
            "ms",
            downtime,
        );
        self.figure(
            ("migration-gap", &of),
            format!("migration at {rtt_ms} ms RTT: longest gap of the TCP client"),
            "ms",
            gap,
        );
        self.figure(
            ("migration-wrong", &of),
            format!("migration at {rtt_ms} ms RTT: replies lost, doubled, out of count"),
            "",
            bad,
        );
        lab.down().doing("taking the testbed down")
    }

    /// The gap at the greatest round trip beside that at the least, round by round.
    fn compare_gaps(&mut self) {
        let [least, _, most] = MIGRATION_RTTS_MS.map(|rtt| rtt.to_string());
        let rounds = |of: &str| {
            let mut gaps = self.recorded.iter().filter(|f| f.name == "migration-gap");
            gaps.find(|f| f.of == of)
                .map_or(Vec::new(), |f| f.rounds.clone())
        };
        let ratio = |(far, near): (Amount, Amount)| match (far, near) {
            (Amount::Number(far), Amount::Number(near)) => Some(far / near),
            _ => None,
        };
        let pairs = rounds(&most).into_iter().zip(rounds(&least));
        let growth: Vec<f64> = pairs.filter_map(ratio).collect();
        if !growth.is_empty() {
            let what = format!("gap of the TCP client at {most} ms RTT beside that at {least} ms");
            self.figure(("migration-gap-growth", ""), what, "times", growth);
        }
    }

    fn snapshot(&mut self) -> Outcome<()> {
        let lab = self.lab(4, JOIN_RTT_MS)?;
        self.members(&lab, 4)?;
        self.vm(&lab, "h2")?;
        let (mut pause, mut durable) = (Vec::new(), Vec::new());
        for i in 0..self.rounds {
            let began = Instant::now();
            let taken: SnapshotTaken = lab
                .json("h2", &["vm", "snapshot", "web", "--name", &format!("s{i}")])
                .doing("taking the snapshot")?;
            pause.push(taken.pause_ms);
            durable.push(began.elapsed().as_secs_f64() * 1e3);
        }
        self.figure(
            ("snapshot-pause", ""),
            "snapshot of a 128 MiB guest: pause",
            "ms",
            pause,
        );
        self.figure(
            ("snapshot-durable", ""),
            "snapshot: command to durable on 2 other members, 50 ms away",
            "ms",
            durable,
        );
        lab.down().doing("taking the testbed down")
    }
}

/// The mean of twenty pings of the system's own `ping`, milliseconds.
fn system_ping(lab: &Lab, from: &str, to: &str) -> Outcome<f64> {
    let said = lab
        .testbed()
        .run(from, &["ping", "-n", "-q", "-c", "20", "-i", "0.2", to])
        .doing("ping")?;
    let mean = said
        .lines()
        .find_map(|l| l.split_once(" = ")?.1.split('/').nth(1)?.parse().ok());
    mean.ok_or_else(|| Failure::not_found(format!("the output of ping has no mean: {said}")))
}

/// Bytes received and sent on a host's underlay interface.
fn interface_bytes(lab: &Lab, host: &str) -> Outcome<u64> {
    let text = lab
        .testbed()
        .run(host, &["cat", "/proc/net/dev"])
        .doing("reading counters")?;
    let line = text
        .lines()
        .find_map(|l| l.trim().strip_prefix("eth0:"))
        .unwrap_or_default();
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .filter_map(|f| f.parse().ok())
        .collect();
    Ok(fields.first().copied().unwrap_or(0) + fields.get(8).copied().unwrap_or(0))
}
