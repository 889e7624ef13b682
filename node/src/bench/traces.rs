//! What traces cost: the same guest moved to and fro between two hosts whose daemons now send their
//! spans to a collector, now do not, and the processor time of those daemons while nothing happens.
//! The collector answers and throws everything away.
//!
//! In each round one move is traced and one is not, in an order that changes, so that neither the
//! direction nor what else the machine does meanwhile is charged to one of them alone. Daemons are
//! started anew in between; the guest runs on.

use super::{Bench, SETTINGS, number};
use crate::failure::{Doing, Failure, Outcome};
use p2pvm_tests::lab::Lab;
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

/// Between any two hosts.
const RTT_MS: f64 = 20.0;
/// Where the collector listens on the first host.
const PORT: u16 = 4318;
/// A daemon that has just started settles this long before it counts as idle.
const SETTLE: Duration = Duration::from_secs(15);
/// How long the idle daemons are watched.
const IDLE: Duration = Duration::from_secs(20);
/// What has ended is sent within this.
const SENT: Duration = Duration::from_secs(10);
/// How long a daemon may take until it is whole again.
const READY: Duration = Duration::from_secs(60);

/// What one of the two ways gave.
#[derive(Default)]
struct Cost {
    total: Vec<f64>,
    downtime: Vec<f64>,
    gap: Vec<f64>,
    idle: Vec<f64>,
}

impl Bench {
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
        let (mut with, mut without, mut sent) = (Cost::default(), Cost::default(), Vec::new());
        let (mut from, mut to) = ("h2", "h3");
        for round in 0..self.rounds {
            for traced in [round % 2 == 1, round % 2 == 0] {
                for host in ["h2", "h3"] {
                    restart(&lab, host, if traced { &traced_settings } else { SETTINGS })?;
                }
                std::thread::sleep(SETTLE);
                let busy_before = busy(&lab, from)? + busy(&lab, to)?;
                std::thread::sleep(IDLE);
                let idle =
                    (busy(&lab, from)? + busy(&lab, to)? - busy_before) / 2.0 / IDLE.as_secs_f64();
                let before = swallowed.load(Ordering::SeqCst);
                let client = lab
                    .client("h1", &address, 10)
                    .doing("starting the client")?;
                std::thread::sleep(Duration::from_secs(2));
                let moved = lab
                    .json(from, &["vm", "migrate", "web", "--to", to])
                    .doing("migrating")?;
                std::thread::sleep(SENT);
                let seen = client.finish().doing("asking the client")?;
                let bytes = swallowed.load(Ordering::SeqCst) - before;
                if traced != (bytes > 0) {
                    return Err(Failure::from(anyhow::anyhow!(
                        "the collector took {bytes} bytes of a move that was traced: {traced}"
                    )));
                }
                let cost = if traced { &mut with } else { &mut without };
                cost.idle.push(idle);
                cost.total.push(number(&moved["total_ms"]));
                cost.downtime.push(number(&moved["downtime_ms"]));
                cost.gap.push(seen.longest_gap_ms);
                if traced {
                    sent.push(bytes as f64);
                }
                std::mem::swap(&mut from, &mut to);
            }
        }
        self.tell(with, without, sent);
        lab.down().doing("taking the testbed down")
    }

    /// The figures of both ways; they have a page of their own.
    fn tell(&mut self, with: Cost, without: Cost, sent: Vec<f64>) {
        let before = self.recorded.len();
        for (traces, cost) in [("off", without), ("on", with)] {
            self.figure(
                ("total", traces),
                format!("traces {traces}: migration at {RTT_MS} ms RTT: total"),
                "ms",
                cost.total,
            );
            self.figure(
                ("downtime", traces),
                format!("traces {traces}: downtime by QEMU"),
                "ms",
                cost.downtime,
            );
            self.figure(
                ("gap", traces),
                format!("traces {traces}: longest gap of the TCP client"),
                "ms",
                cost.gap,
            );
            self.figure(
                ("idle", traces),
                format!("traces {traces}: an idle daemon's processor time"),
                "ms/s",
                cost.idle,
            );
        }
        self.figure(
            ("sent", "on"),
            "traces on: sent for one migration by both hosts",
            "B",
            sent,
        );
        self.recorded_traces = self.recorded.split_off(before);
    }
}

/// Starts a host's daemon anew with other settings, and waits until it is connected with the two
/// others and knows its guest again.
fn restart(lab: &Lab, host: &str, settings: &str) -> Outcome<()> {
    lab.configure(host, settings).doing("configuring")?;
    lab.p2pvm(host, &["down"]).doing("stopping a daemon")?;
    lab.json(host, &["up", "--detach"])
        .doing("starting a daemon")?;
    let ready = || {
        let (connected, vm) = (
            lab.json(host, &["status"])?["connected"].as_u64(),
            lab.json(host, &["vm", "show", "web"])?,
        );
        Ok(
            (connected == Some(2) && vm["state"] == "running" && vm["activity"].is_null())
                .then_some(()),
        )
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

/// Answers every request with success and forgets it; gives the bytes of all bodies so far. It ends
/// with this program.
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
