//! The guest client over a testbed: a link that was cut costs a gap and no reply; the program
//! reports as JSON and ends with its summary on SIGTERM.

mod testbed_common;

use p2pvm_lab::guest_client::{self, Options};
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};
use testbed_common::{at, up};

const SITES: &str =
    "[default]\nrtt_ms=10\n[[site]]\nname='client'\nnat='symmetric'\n[[site]]\nname='guest'\n";

/// What a guest does on its port 7000, for one connection.
fn guest(listener: TcpListener) {
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        for (counter, line) in BufReader::new(&stream)
            .lines()
            .map_while(Result::ok)
            .enumerate()
        {
            let _ = (&stream).write_all(format!("{counter} {line}\n").as_bytes());
        }
    });
}

fn options(guest: SocketAddr, seconds: f64) -> Options {
    Options {
        guest,
        interval_ms: 10,
        seconds: Some(seconds),
        report_ms: 200,
        grace_seconds: 10.0,
        connect_seconds: 5.0,
    }
}

#[test]
fn a_cut_link_shows_as_a_gap_and_loses_no_reply() {
    let testbed = up(SITES);
    guest(
        testbed
            .inside("guest", || TcpListener::bind("0.0.0.0:7000"))
            .unwrap()
            .unwrap(),
    );
    let address = at(&testbed, "guest", 7000);
    let summary = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(500));
            testbed.cut("client", "guest").unwrap();
            thread::sleep(Duration::from_millis(400));
            testbed.heal("client", "guest").unwrap();
        });
        testbed
            .inside("client", || {
                guest_client::run(&options(address, 2.0), &AtomicBool::new(false), |_| {})
            })
            .unwrap()
            .unwrap()
    });
    println!("{}", serde_json::to_string(&summary).unwrap());
    assert!(
        summary.sent > 100 && summary.replies == summary.sent,
        "{summary:?}"
    );
    assert_eq!(
        (
            summary.lost,
            summary.doubled,
            summary.unexpected,
            summary.counter_gaps
        ),
        (0, 0, 0, 0)
    );
    assert!(
        (390.0..3000.0).contains(&summary.longest_gap_ms),
        "{summary:?}"
    );
    assert!(summary.longest_gap_end_ms > 880.0, "{summary:?}");
}

#[test]
fn the_program_reports_while_it_runs_and_sums_up_on_sigterm() {
    let testbed = up(SITES);
    guest(
        testbed
            .inside("guest", || TcpListener::bind("0.0.0.0:7000"))
            .unwrap()
            .unwrap(),
    );
    let address = at(&testbed, "guest", 7000).to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm-testbed"));
    command
        .args(["client", &address, "--report-ms", "100"])
        .stdout(Stdio::piped());
    let mut child = testbed.spawn("client", &mut command).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap());
    let running: serde_json::Value = serde_json::from_str(&lines.nth(2).unwrap()).unwrap();
    assert_eq!(running["summary"], false);
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    let summary: serde_json::Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!(
        (summary["summary"].as_bool(), summary["lost"].as_u64()),
        (Some(true), Some(0)),
        "{summary}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
