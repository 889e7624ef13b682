//! What traces cost: the time of moves of one guest to and fro between two hosts, whose daemons
//! send their spans to a collector during half of the moves, and the processor time of those
//! daemons while nothing happens. The collector answers and discards everything.
//!
//! In each round one move is traced and one is not, in an order that changes, so that neither the
//! direction nor the machine's other load is charged to one of them alone. Daemons are
//! restarted in between; the guest runs on.

use super::{Bench, SETTINGS};
use crate::lab::Lab;
use p2pvm_api::{Doing, Failure, Kind, Outcome, VmStateView};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The round trip between any two hosts.
const RTT_MS: f64 = 20.0;
/// Where the collector listens on the first host.
const PORT: u16 = 4318;
/// How long a daemon settles after its start before it counts as idle.
const SETTLE: Duration = Duration::from_secs(15);
/// How long the idle daemons are watched.
const IDLE: Duration = Duration::from_secs(20);
/// How long the daemons have to send the spans of a move that has ended.
const SENT: Duration = Duration::from_secs(10);
/// How long a restarted daemon may take to find its peers and its guest.
const READY: Duration = Duration::from_secs(60);

/// The figures of all rounds with traces, or of those without.
#[derive(Default)]
struct Cost {
    total: Vec<f64>,
    downtime: Vec<f64>,
    gap: Vec<f64>,
    idle: Vec<f64>,
    /// Bytes that the collector got.
    sent: Vec<f64>,
}

impl Bench<'_> {
    pub(super) fn traces(&mut self) -> Outcome<()> {
        let lab = self.lab(3, RTT_MS)?;
        self.members(&lab, 3)?;
        let address = self.vm(&lab, "h2")?;
        let collector = lab.testbed().host("h1").doing("h1")?.address;
        let listener = lab
            .testbed()
            .inside("h1", || TcpListener::bind((collector, PORT)))
            .doing("h1")?
            .doing("the collector")?;
        let swallowed = swallow(listener);
        let traced_settings =
            format!("{SETTINGS}[traces]\nendpoint = \"http://{collector}:{PORT}\"\n");
        let (mut with, mut without) = (Cost::default(), Cost::default());
        let (mut from, mut to) = ("h2", "h3");
        for round in 0..self.rounds {
            for traced in [round % 2 == 1, round % 2 == 0] {
                let (settings, cost) = if traced {
                    (&*traced_settings, &mut with)
                } else {
                    (SETTINGS, &mut without)
                };
                for host in ["h2", "h3"] {
                    restart(&lab, host, settings)?;
                }
                cost.idle.push(idle_cost(&lab, [from, to])?);
                let before = swallowed.load(Ordering::SeqCst);
                cost.migrate(&lab, &address, [from, to])?;
                let sent = swallowed.load(Ordering::SeqCst) - before;
                if traced != (sent > 0) {
                    return Err(Failure::new(
                        Kind::Failed,
                        format!(
                            "the collector got {sent} bytes during a move with traces {}",
                            if traced { "on" } else { "off" }
                        ),
                    ));
                }
                cost.sent.push(sent as f64);
                std::mem::swap(&mut from, &mut to);
            }
        }
        let before = self.recorded.len();
        self.show_costs("off", without);
        let sent = std::mem::take(&mut with.sent);
        self.show_costs("on", with);
        self.figure(
            ("sent", "on"),
            "traces on: sent for one migration by both hosts",
            "B",
            sent,
        );
        // They have a page of their own.
        self.recorded_traces = self.recorded.split_off(before);
        lab.down().doing("taking the testbed down")
    }

    fn show_costs(&mut self, traces: &str, cost: Cost) {
        let figures = [
            (
                "total",
                format!("migration at {RTT_MS} ms RTT: total"),
                "ms",
                cost.total,
            ),
            ("downtime", "downtime by QEMU".into(), "ms", cost.downtime),
            (
                "gap",
                "longest gap of the TCP client".into(),
                "ms",
                cost.gap,
            ),
            (
                "idle",
                "an idle daemon's processor time".into(),
                "ms/s",
                cost.idle,
            ),
        ];
        for (name, what, unit, rounds) in figures {
            let what = format!("traces {traces}: {what}");
            self.figure((name, traces), what, unit, rounds);
        }
    }
}

/// Processor time of an idle daemon, the mean of two hosts, milliseconds a second.
fn idle_cost(lab: &Lab, hosts: [&str; 2]) -> Outcome<f64> {
    std::thread::sleep(SETTLE);
    let busy_of_both = || Ok::<_, Failure>(busy(lab, hosts[0])? + busy(lab, hosts[1])?);
    let before = busy_of_both()?;
    std::thread::sleep(IDLE);
    Ok((busy_of_both()? - before) / 2.0 / IDLE.as_secs_f64())
}

impl Cost {
    /// Moves the guest while a client talks to it, and waits until its traces are sent.
    fn migrate(&mut self, lab: &Lab, address: &str, [from, to]: [&str; 2]) -> Outcome<()> {
        let client = lab.client("h1", address, 10).doing("starting the client")?;
        std::thread::sleep(Duration::from_secs(2));
        let moved = lab.migrate(from, "web", to).doing("migrating")?;
        std::thread::sleep(SENT);
        let seen = client.finish().doing("asking the client")?;
        self.total.push(moved.total_ms as f64);
        self.downtime.push(moved.downtime_ms as f64);
        self.gap.push(seen.longest_gap_ms);
        Ok(())
    }
}

/// Restarts a host's daemon with other settings, and waits until it is connected with the two
/// others and its guest runs.
fn restart(lab: &Lab, host: &str, settings: &str) -> Outcome<()> {
    lab.configure(host, settings).doing("configuring")?;
    lab.p2pvm(host, &["down"]).doing("stopping a daemon")?;
    lab.start(host).doing("starting a daemon")?;
    let ready = || {
        let status = lab.status(host)?;
        let vm = lab.vm(host, "web")?;
        let is_at_rest = vm.state == VmStateView::Running && vm.activity.is_none();
        let is_whole = status.connected == 2 && is_at_rest;
        Ok(is_whole.then_some(()))
    };
    lab.wait(
        "the network to be whole again",
        READY,
        Duration::from_millis(200),
        ready,
    )
    .doing("starting a daemon")
}

/// Processor time that a host's daemon has used so far, milliseconds.
fn busy(lab: &Lab, host: &str) -> Outcome<f64> {
    let pid = fs::read_to_string(lab.dir(host).doing("the host")?.join("daemon.pid"))
        .doing("the daemon's process id")?;
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.trim())).doing("the daemon's threads")?;
    // A thread that has ended meanwhile had nothing to do.
    let nanos = |task: fs::DirEntry| -> Option<f64> {
        fs::read_to_string(task.path().join("schedstat"))
            .ok()?
            .split_ascii_whitespace()
            .next()?
            .parse()
            .ok()
    };
    Ok(tasks.flatten().filter_map(nanos).sum::<f64>() / 1e6)
}

/// Starts a collector that answers every request with success and discards it; returns the count of
/// the bytes of all bodies so far. It ends with this program.
fn swallow(listener: TcpListener) -> Arc<AtomicU64> {
    let swallowed = Arc::new(AtomicU64::new(0));
    let count = swallowed.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let count = count.clone();
            // A daemon that goes away breaks its connection, which is the end of it.
            std::thread::spawn(move || answer(&stream, &count));
        }
    });
    swallowed
}

fn answer(stream: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let read = io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        count.fetch_add(read, Ordering::SeqCst);
        (&*stream).write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
        )?;
    }
}
