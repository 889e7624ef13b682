//! `p2pvm demo`: the main job end to end on the emulated wide area. Six members at six sites, two
//! of them behind port-restricted NATs and one behind a symmetric one, join, talk, run a virtual
//! machine, move it while a client counts replies, lose its host and restore it; then the cluster
//! moves it off an overloaded host by itself, and starts another one, whose host's plug was pulled,
//! on a member that has its disk (`demo/heal.rs`). Every step is a p2pvm command on an emulated
//! host. The first failure ends the demo.

mod heal;

use crate::{
    Sites,
    figures::{Figure, Recorder, command_line},
    lab::{CountSummary, Lab, PingResult},
    runner::{Runner, find_image, require_root},
};
use clap::Args;
use p2pvm_api::{
    Doing, Failure, Kind, Outcome, SnapshotState, SnapshotTaken, VmMoved, VmStateView, VmView,
};
use serde::Serialize;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The hosts of the built-in sites file, by their role in the demo.
const FOUNDER: &str = "bootstrap";
const PUBLIC: &str = "london";
const THIRD: &str = "amsterdam";
const HOME_A: &str = "lyon";
const HOME_B: &str = "prague";
const STRICT: &str = "madrid";

const SITES: &str = include_str!("../sites/demo.toml");
const MEMBERS: [&str; 5] = [PUBLIC, THIRD, HOME_A, HOME_B, STRICT];

/// The `node.toml` of every host.
/// Reason: a capacity of one processor each lets six hosts share one machine.
const SETTINGS: &str = "cpus = 1\nupnp = false\n";

/// One line of the table at the end.
#[derive(Serialize)]
struct Row {
    what: String,
    measured: String,
}

/// Options of `p2pvm demo`.
#[derive(Args, Debug)]
pub struct Options {
    /// The guest image that guest-image/build.sh made
    #[arg(long)]
    image: PathBuf,
    /// The emulated wide area; by default the built-in six hosts, each at a site of its own
    #[arg(long)]
    sites: Option<PathBuf>,
    /// Keep the testbed and its logs when something fails
    #[arg(long)]
    keep: bool,
}

struct Demo {
    lab: Lab,
    json: bool,
    began: Instant,
    rows: Vec<Row>,
    /// The numbers of the rows, for the set `demo`.
    figures: Vec<Figure>,
    image: PathBuf,
}

/// Runs the demo. A failed step is reported with the end of each host's log.
pub fn run(options: &Options, runner: &Runner) -> Outcome<()> {
    require_root("demo")?;
    let image = find_image(&options.image)?;
    let sites = match &options.sites {
        Some(path) => Sites::load(path).doing(path.display())?,
        None => Sites::parse(SITES).doing("the built-in sites file")?,
    };
    let recorder = Recorder::from_environment();
    let began = Instant::now();
    let lab = {
        let building = "building the emulated wide area";
        let _progress = (runner.show_progress)(building);
        Lab::up(&sites, "p2pvm-demo", runner.program).doing(building)?
    };
    let mut demo = Demo {
        lab,
        json: runner.json,
        began,
        rows: Vec::new(),
        figures: Vec::new(),
        image,
    };
    let outcome = demo.play();
    if outcome.is_err() {
        for host in std::iter::once(FOUNDER).chain(MEMBERS) {
            eprintln!(
                "--- the end of {host}'s log\n{}",
                demo.lab.log_tail(host, 25)
            );
        }
        if options.keep {
            eprintln!("the testbed stays for 10 minutes: p2pvm testbed status --name p2pvm-demo");
            std::thread::sleep(Duration::from_secs(600));
        }
    }
    let Demo {
        lab,
        rows,
        mut figures,
        ..
    } = demo;
    let down = lab.down().doing("taking the testbed down");
    outcome?;
    down?;
    let total = began.elapsed();
    figures.push(seconds("whole", "the demo", total, 0).aim("≤ 3 min after the build"));
    recorder
        .record("demo", &command_line(), &figures)
        .doing("writing the figures")?;
    print_rows(&rows, runner.json, total)
}

fn print_rows(rows: &[Row], json: bool, total: Duration) -> Outcome<()> {
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(rows).doing("encoding the figures")?
        );
        return Ok(());
    }
    let width = rows
        .iter()
        .map(|row| row.what.chars().count())
        .max()
        .unwrap_or(0);
    println!("\n{}", "-".repeat(width + 40));
    for row in rows {
        println!("{:width$}  {}", row.what, row.measured);
    }
    println!("{:width$}  {:.0} s", "whole demo", total.as_secs_f64());
    Ok(())
}

fn ms(value: Option<u64>) -> String {
    value.map_or("-".to_owned(), |v| format!("{v} ms"))
}

fn figure_ms(name: &str, what: &str, value: Option<u64>) -> Figure {
    Figure::new(name, what, "ms", [value.map(|v| v as f64)])
}

fn seconds(name: &str, what: &str, took: Duration, digits: usize) -> Figure {
    Figure::new(name, what, "s", [took.as_secs_f64()]).digits(digits)
}

fn words(name: &str, what: &str, value: &str) -> Figure {
    Figure::new(name, what, "", [value])
}

impl Demo {
    fn say(&self, text: &str) {
        let line = format!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f64());
        if self.json {
            eprintln!("{line}")
        } else {
            println!("{line}")
        }
    }

    /// Prints a line of the table and keeps it, with its figures for the set `demo`.
    fn row(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        figures: impl IntoIterator<Item = Figure>,
    ) {
        let row = Row {
            what: what.into(),
            measured: measured.into(),
        };
        self.say(&format!("{}: {}", row.what, row.measured));
        self.rows.push(row);
        self.figures.extend(figures);
    }

    fn play(&mut self) -> Outcome<()> {
        self.join()?;
        self.ping()?;
        let address = self.guest()?;
        self.migrate(&address)?;
        self.unprotect()?;
        self.lose_host(&address)?;
        self.overload(&address)?;
        self.heal()
    }

    fn join(&mut self) -> Outcome<()> {
        for host in std::iter::once(FOUNDER).chain(MEMBERS) {
            self.lab.configure(host, SETTINGS).doing("configuring")?;
        }
        self.say(&format!("{FOUNDER} founds the network 'lab'"));
        self.lab.found(FOUNDER, "lab").doing("founding")?;
        let invite = self
            .lab
            .invite(FOUNDER, MEMBERS.len() as u32)
            .doing("inviting")?;
        for host in MEMBERS {
            let joined = self.lab.join(host, &invite).doing("joining")?;
            let (took, claim) = (Some(joined.joined_ms), joined.status.start_ms.claim);
            let address = joined.status.address.as_deref().unwrap_or("-");
            self.row(
                format!("join of {host}, command to address"),
                format!("{} ({address}; address claimed in {})", ms(took), ms(claim)),
                [
                    figure_ms("join", "join, command to address", took),
                    figure_ms("claim", "address claimed", claim),
                    words("address", "the member's address", address),
                ]
                .map(|figure| figure.of(host)),
            );
        }
        let (code, _, said) = self
            .lab
            .try_p2pvm(
                FOUNDER,
                &[
                    "--dir",
                    "/nonexistent-p2pvm/x",
                    "join",
                    &invite[..invite.len() - 4],
                ],
            )
            .doing("joining with a cut invite")?;
        if code != 5 {
            return Err(Failure::new(
                Kind::Failed,
                format!("a damaged invite was not refused (exit code {code}): {said}"),
            ));
        }
        self.say(&format!("a damaged invite is refused: {said}"));
        Ok(())
    }

    fn ping(&mut self) -> Outcome<()> {
        let pairs = [
            ("public to public", FOUNDER, PUBLIC),
            ("public to port-restricted NAT", PUBLIC, HOME_A),
            ("port-restricted to port-restricted", HOME_A, HOME_B),
            ("public to symmetric NAT", FOUNDER, STRICT),
            ("port-restricted to symmetric", HOME_A, STRICT),
        ];
        for (kind, from, to) in pairs {
            // A punched path may need a moment after the first packets went by the relay.
            let pinged = self.lab.ping(from, to, 6, "300ms").doing(kind)?;
            if pinged.rtts_ms.is_empty() {
                return Err(Failure::timed_out(format!("{kind}: no answer")));
            }
            let raw = self.raw_rtt(from, to);
            let rtt = |name, what, rtt: Option<f64>| Figure::new(name, what, "ms", [rtt]).digits(1);
            self.row(
                format!("ping {kind} ({from} to {to})"),
                describe(&pinged, raw),
                [
                    words("path", "path of a ping", &pinged.path),
                    rtt("ping", "least round trip of a ping", Some(pinged.best_ms())),
                    rtt("raw", "configured round trip", raw),
                ]
                .map(|figure| figure.of(kind)),
            );
        }
        Ok(())
    }

    /// The configured round trip between two hosts' sites, milliseconds.
    fn raw_rtt(&self, from: &str, to: &str) -> Option<f64> {
        let plan = self.lab.testbed().plan();
        let (a, b) = (plan.host(from)?.site, plan.host(to)?.site);
        Some((plan.shapes[a][b].delay + plan.shapes[b][a].delay).as_secs_f64() * 1e3)
    }

    fn guest(&mut self) -> Outcome<String> {
        let image = self.image.to_string_lossy().into_owned();
        self.say(&format!(
            "{HOME_A}, behind a port-restricted NAT, creates and starts the VM 'web'"
        ));
        let began = Instant::now();
        let made: VmView = self
            .lab
            .json(
                HOME_A,
                &[
                    "vm", "create", "web", "--image", &image, "--cpus", "1", "--memory", "128M",
                    "--start",
                ],
            )
            .doing("creating the VM")?;
        let address = made.address;
        self.lab
            .wait_for_guest(STRICT, &address, Duration::from_secs(60))
            .doing("waiting for the guest")?;
        let what = "guest from 'vm create --start' to its first TCP answer";
        let took = began.elapsed();
        self.row(
            what,
            format!("{:.1} s ({address}, under emulation)", took.as_secs_f64()),
            [
                seconds("guest", what, took, 1),
                words("guest-address", "the guest's address", &address),
            ],
        );
        Ok(address)
    }

    fn migrate(&mut self, address: &str) -> Outcome<()> {
        self.say(&format!(
            "a client behind the symmetric NAT ({STRICT}) counts replies; 'web' \
            moves live from {HOME_A} to {THIRD}"
        ));
        let client = self
            .lab
            .client(STRICT, address, 10)
            .doing("starting the client")?;
        std::thread::sleep(Duration::from_secs(2));
        let moved = self.lab.migrate(HOME_A, "web", THIRD).doing("migrating")?;
        std::thread::sleep(Duration::from_secs(3));
        let seen = client.finish().doing("asking the client")?;
        self.migration_rows(&moved, &seen);
        if seen.lost + seen.doubled + seen.counter_gaps > 0
            || seen.replies == 0
            || seen.ended.is_some()
        {
            return Err(Failure::new(
                Kind::Failed,
                format!("the connection did not survive the move: {seen:?}"),
            ));
        }
        Ok(())
    }

    fn migration_rows(&mut self, moved: &VmMoved, seen: &CountSummary) {
        let (total, downtime) = (Some(moved.total_ms), Some(moved.downtime_ms));
        let what = "live migration, total";
        self.row(what, ms(total), [figure_ms("migration", what, total)]);
        let what = "live migration, downtime by QEMU";
        self.row(
            what,
            ms(downtime),
            [figure_ms("migration-downtime", what, downtime)],
        );
        let what = "live migration, longest gap the TCP client saw";
        let gap = Figure::new("migration-gap", what, "ms", [seen.longest_gap_ms]);
        self.row(what, format!("{:.0} ms", seen.longest_gap_ms), [gap]);
        let count = |name, what, count: u64| Figure::new(name, what, "", [count as f64]);
        self.row(
            "live migration, replies",
            format!(
                "{} of {}, {} lost, {} doubled, {} counter gaps",
                seen.replies, seen.sent, seen.lost, seen.doubled, seen.counter_gaps
            ),
            [
                count("replies", "replies to the TCP client", seen.replies),
                count("sent", "questions of the TCP client", seen.sent),
                count("lost", "replies lost", seen.lost),
                count("doubled", "replies doubled", seen.doubled),
                count("gaps", "gaps in the counter", seen.counter_gaps),
            ],
        );
    }

    /// Leaves the VM to a person when its host is lost.
    /// Reason: otherwise an heir would start it before the person does.
    fn unprotect(&self) -> Outcome<()> {
        let said = self
            .lab
            .p2pvm(THIRD, &["vm", "protect", "web", "--off"])
            .doing("ending the protection of the VM")?;
        self.say(&format!("protection is turned off for now: {said}"));
        Ok(())
    }

    fn lose_host(&mut self, address: &str) -> Outcome<()> {
        self.say("a snapshot of the running VM goes to two other members");
        let began = Instant::now();
        let snapshot: SnapshotTaken = self
            .lab
            .json(THIRD, &["vm", "snapshot", "web", "--name", "safe"])
            .doing("taking the snapshot")?;
        if snapshot.state != SnapshotState::Durable {
            return Err(Failure::new(
                Kind::Failed,
                format!("the snapshot is not durable, but {}", snapshot.state),
            ));
        }
        let took = began.elapsed();
        let what = "snapshot, guest pause";
        let pause = Figure::new("snapshot-pause", what, "ms", [snapshot.pause_ms]);
        self.row(what, format!("{:.0} ms", snapshot.pause_ms), [pause]);
        let what = "snapshot, command to durable on 2 other members";
        self.row(
            what,
            format!("{:.1} s", took.as_secs_f64()),
            [seconds("snapshot-durable", what, took, 1)],
        );
        self.say(&format!("{THIRD} loses power"));
        self.lab.testbed().kill(THIRD).doing("killing the host")?;
        let (code, _, said) = self
            .lab
            .try_p2pvm(PUBLIC, &["vm", "restore", "web@safe"])
            .doing("restoring without --force")?;
        if code == 0 {
            return Err(Failure::new(
                Kind::Failed,
                "a restore over an unreachable host went through without --force",
            ));
        }
        self.say(&format!("without --force: {said}"));
        let began = Instant::now();
        let restored: VmView = self
            .lab
            .json(PUBLIC, &["vm", "restore", "web@safe", "--force"])
            .doing("restoring")?;
        if restored.address != address {
            return Err(Failure::new(
                Kind::Failed,
                format!("the restored VM has another address: {}", restored.address),
            ));
        }
        self.lab
            .wait_for_guest(STRICT, address, Duration::from_secs(30))
            .doing("waiting for the restored guest")?;
        let what = "restore after the host's death, command to first TCP answer";
        let took = began.elapsed();
        self.row(
            what,
            format!("{:.1} s (on {PUBLIC}, same address)", took.as_secs_f64()),
            [seconds("restore", what, took, 1)],
        );
        Ok(())
    }

    fn overload(&mut self, address: &str) -> Outcome<()> {
        self.say(&format!(
            "a process takes the whole processor of {PUBLIC}; no command follows"
        ));
        let mut hog = Command::new("/bin/sh");
        hog.args(["-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut hog = self
            .lab
            .testbed()
            .spawn(PUBLIC, &mut hog)
            .doing("starting the hog")?;
        let began = Instant::now();
        let moved = self.lab.wait(
            "the autonomic move",
            Duration::from_secs(60),
            Duration::from_millis(500),
            || {
                let vm = self.lab.vm(FOUNDER, "web")?;
                let is_elsewhere = vm.state == VmStateView::Running && vm.host != PUBLIC;
                Ok(is_elsewhere.then_some(vm.host))
            },
        );
        // An error is ignored: the testbed kills it too.
        let _ = hog.kill();
        let _ = hog.wait();
        let host = moved.doing("waiting for the autonomic manager")?;
        let what = "autonomic move, from overload to running elsewhere";
        let took = began.elapsed();
        self.row(
            what,
            format!("{:.1} s (to {host})", took.as_secs_f64()),
            [
                seconds("autonomic", what, took, 1),
                words("autonomic-to", "the host that it moved to", &host),
            ],
        );
        self.lab
            .wait_for_guest(STRICT, address, Duration::from_secs(15))
            .doing("waiting for the moved guest")?;
        let why = self
            .lab
            .p2pvm(PUBLIC, &["explain", "web"])
            .doing("asking why")?;
        self.say(&format!("p2pvm explain web:\n{why}"));
        Ok(())
    }
}

fn describe(pinged: &PingResult, raw: Option<f64>) -> String {
    let best = pinged.best_ms();
    let raw = raw.map_or(String::new(), |raw| format!(", raw path {raw:.1} ms"));
    format!("{} {best:.1} ms{raw}", pinged.path)
}
