//! `p2pvm demo`: the main job end to end on the emulated wide area. Six members at six sites, two
//! of them behind port-restricted NATs and one behind a symmetric one, join, talk, run a virtual
//! machine, move it while a client counts replies, lose its host and restore it; then the cluster
//! moves it off an overloaded host by itself. Every step is a p2pvm command on an emulated host.
//! The first failure ends the demo.

use crate::{
    Sites, figures,
    figures::{Recorder, command_line},
    lab::{Lab, Pinged},
    runner::{Runner, find_image, require_root},
};
use clap::Args;
use p2pvm_api::{Doing, Failure, Kind, Outcome, SnapshotTaken, VmStateView, VmView};
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
struct Figure {
    what: String,
    measured: String,
}

/// Options of `p2pvm demo`.
#[derive(Args, Debug)]
pub struct Options {
    /// The guest image that guest-image/build.sh made
    #[arg(long)]
    image: PathBuf,
    /// The emulated wide area; by default the built-in six hosts at five sites
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
    figures: Vec<Figure>,
    image: PathBuf,
}

/// Runs it. A failed step is reported with the end of each host's log.
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
    let Demo { lab, figures, .. } = demo;
    let down = lab.down().doing("taking the testbed down");
    outcome?;
    down?;
    let total = began.elapsed();
    let whole = figures::Figure::new("whole", "the demo", "s", [total.as_secs_f64()])
        .aim("≤ 3 min after the build");
    recorder
        .record("demo", &command_line(), &[whole])
        .doing("writing the figures")?;
    print_figures(&figures, runner.json, total)
}

fn print_figures(figures: &[Figure], json: bool, total: Duration) -> Outcome<()> {
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(figures).doing("encoding the figures")?
        );
        return Ok(());
    }
    let width = figures
        .iter()
        .map(|f| f.what.chars().count())
        .max()
        .unwrap_or(0);
    println!("\n{}", "-".repeat(width + 40));
    for figure in figures {
        println!("{:width$}  {}", figure.what, figure.measured);
    }
    println!("{:width$}  {:.0} s", "whole demo", total.as_secs_f64());
    Ok(())
}

fn ms(value: Option<u64>) -> String {
    value.map_or("-".to_owned(), |v| format!("{v} ms"))
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

    fn figure(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        let figure = Figure {
            what: what.into(),
            measured: measured.into(),
        };
        self.say(&format!("{}: {}", figure.what, figure.measured));
        self.figures.push(figure);
    }

    fn play(&mut self) -> Outcome<()> {
        self.join()?;
        self.ping()?;
        let address = self.guest()?;
        self.migrate(&address)?;
        self.lose_host(&address)?;
        self.overload(&address)
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
            self.figure(
                format!("join of {host}, command to address"),
                format!(
                    "{} ({}; address claimed in {})",
                    ms(Some(joined.joined_ms)),
                    joined.status.address.as_deref().unwrap_or("-"),
                    ms(joined.status.start_ms.claim)
                ),
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
            self.figure(
                format!("ping {kind} ({from} to {to})"),
                describe(&pinged, raw),
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
        self.figure(
            "guest from 'vm create --start' to its first TCP answer",
            format!(
                "{:.1} s ({address}, under emulation)",
                began.elapsed().as_secs_f64()
            ),
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
        self.figure("live migration, total", ms(Some(moved.total_ms)));
        self.figure(
            "live migration, downtime by QEMU",
            ms(Some(moved.downtime_ms)),
        );
        self.figure(
            "live migration, longest gap the TCP client saw",
            format!("{:.0} ms", seen.longest_gap_ms),
        );
        self.figure(
            "live migration, replies",
            format!(
                "{} of {}, {} lost, {} doubled, {} counter gaps",
                seen.replies, seen.sent, seen.lost, seen.doubled, seen.counter_gaps
            ),
        );
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

    fn lose_host(&mut self, address: &str) -> Outcome<()> {
        self.say("a snapshot of the running VM goes to two other members");
        let began = Instant::now();
        let snapshot: SnapshotTaken = self
            .lab
            .json(THIRD, &["vm", "snapshot", "web", "--name", "safe"])
            .doing("taking the snapshot")?;
        if snapshot.state != "durable" {
            return Err(Failure::new(
                Kind::Failed,
                format!("the snapshot is not durable, but {}", snapshot.state),
            ));
        }
        self.figure(
            "snapshot, guest pause",
            format!("{:.0} ms", snapshot.pause_ms),
        );
        self.figure(
            "snapshot, command to durable on 2 other members",
            format!("{:.1} s", began.elapsed().as_secs_f64()),
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
        self.figure(
            "restore after the host's death, command to first TCP answer",
            format!(
                "{:.1} s (on {PUBLIC}, same address)",
                began.elapsed().as_secs_f64()
            ),
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
        self.figure(
            "autonomic move, from overload to running elsewhere",
            format!("{:.1} s (to {host})", began.elapsed().as_secs_f64()),
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

fn describe(pinged: &Pinged, raw: Option<f64>) -> String {
    let best = pinged.best_ms();
    let raw = raw.map_or(String::new(), |raw| format!(", raw path {raw:.1} ms"));
    format!("{} {best:.1} ms{raw}", pinged.path)
}
