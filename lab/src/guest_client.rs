//! A client of a guest's counter: shows from outside whether the guest ran on, paused, or ran
//! twice.
//!
//! The guest answers every line with `<counter> <line>`, where the counter is a number in its
//! memory that grows by one per reply. The client sends numbered lines at a fixed pace over one TCP
//! connection. A line without a reply is lost, one with two is doubled; a counter that jumps or
//! goes back means that another copy of the guest answered; the longest time between two replies is
//! the gap a user sees.

use clap::Args;
use p2pvm_overlay::lock;
use serde::Serialize;
use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How to talk to the guest.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address and port of the guest's counter
    pub guest: SocketAddr,
    /// Milliseconds between two lines
    #[arg(long, default_value_t = 10)]
    pub interval_ms: u64,
    /// Seconds until it stops (default: at SIGTERM or SIGINT)
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Milliseconds between two reports
    #[arg(long, default_value_t = 1000)]
    pub report_ms: u64,
    /// Seconds to wait at the end for replies that are still out
    #[arg(long, default_value_t = 10.0)]
    pub grace_seconds: f64,
    /// Seconds to go on trying to connect
    #[arg(long, default_value_t = 10.0)]
    pub connect_seconds: f64,
}

/// The answers so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Milliseconds since the connection was made.
    pub at_ms: f64,
    /// Lines sent.
    pub sent: u64,
    /// Replies to lines that were sent, each line counted once.
    pub replies: u64,
    /// Lines without a reply: still out while running, lost at the end.
    pub lost: u64,
    /// Replies to lines that had one already.
    pub doubled: u64,
    /// Replies that are no `<counter> <line>`, or that answer a line that was never sent.
    pub unexpected: u64,
    /// Replies whose counter was not one more than that of the previous reply.
    pub counter_gaps: u64,
    /// Counter of the newest reply.
    pub counter: Option<u64>,
    /// Longest time between two replies.
    pub longest_gap_ms: f64,
    /// When the longest gap ended.
    pub longest_gap_end_ms: f64,
    /// Time since the newest reply.
    pub silent_ms: f64,
    /// Longest time from a line to its reply.
    pub longest_reply_ms: f64,
    /// Set in the last report.
    pub summary: bool,
    /// Why the connection ended, if it did by itself.
    pub ended: Option<String>,
}

/// Counts replies, without socket or clock.
#[derive(Debug, Default)]
pub struct Tally {
    report: Report,
    sent_at: Vec<Duration>,
    seen: Vec<bool>,
    last_reply: Option<Duration>,
}

impl Tally {
    /// The next line to send, to be followed by a newline.
    pub fn send(&mut self, now: Duration) -> String {
        self.sent_at.push(now);
        self.seen.push(false);
        self.report.sent += 1;
        (self.seen.len() - 1).to_string()
    }

    /// A line from the guest.
    pub fn reply(&mut self, now: Duration, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let parsed = (
            words.next().and_then(|w| w.parse::<u64>().ok()),
            words.next().and_then(|w| w.parse::<usize>().ok()),
            words.next(),
        );
        let (Some(counter), Some(number), None) = parsed else {
            self.report.unexpected += 1;
            return;
        };
        let Some(seen) = self.seen.get_mut(number) else {
            self.report.unexpected += 1;
            return;
        };
        if std::mem::replace(seen, true) {
            self.report.doubled += 1;
        } else {
            self.report.replies += 1;
            self.report.longest_reply_ms = self
                .report
                .longest_reply_ms
                .max(ms(now.saturating_sub(self.sent_at[number])));
        }
        if self
            .report
            .counter
            .is_some_and(|before| before.checked_add(1) != Some(counter))
        {
            self.report.counter_gaps += 1;
        }
        self.report.counter = Some(counter);
        let gap = ms(now.saturating_sub(self.last_reply.unwrap_or(now)));
        if gap > self.report.longest_gap_ms {
            (self.report.longest_gap_ms, self.report.longest_gap_end_ms) = (gap, ms(now));
        }
        self.last_reply = Some(now);
    }

    /// Whether every line has its reply.
    pub fn complete(&self) -> bool {
        self.report.replies == self.report.sent
    }

    /// The answers until `now`.
    pub fn report(&self, now: Duration) -> Report {
        Report {
            at_ms: ms(now),
            lost: self.report.sent - self.report.replies,
            silent_ms: ms(now.saturating_sub(self.last_reply.unwrap_or_default())),
            ..self.report.clone()
        }
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Talks to the guest until `stop` is set or the time is over, calls `report` at intervals, and
/// returns the summary.
///
/// An error means that no connection was made; [`Report::ended`] says why one broke later.
pub fn run(
    options: &Options,
    stop: &AtomicBool,
    mut report: impl FnMut(&Report),
) -> io::Result<Report> {
    let stream = connect(options, stop)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let talk = Arc::new(Talk {
        stream,
        started: Instant::now(),
        tally: Mutex::default(),
        ended: Mutex::default(),
    });
    let reader = {
        let talk = talk.clone();
        thread::Builder::new()
            .name("replies".into())
            .spawn(move || {
                let why = talk.read_replies();
                *lock(&talk.ended) = Some(why);
            })?
    };
    talk.send_lines(options, stop, &mut report);
    let grace = Instant::now();
    while talk.ended().is_none()
        && !talk.tally().complete()
        && grace.elapsed().as_secs_f64() < options.grace_seconds
    {
        thread::sleep(Duration::from_millis(5));
    }
    let ended = talk.ended();
    let summary = Report {
        summary: true,
        ended,
        ..talk.report()
    };
    // The reader waits in a read: closing the connection ends it. It may be closed already.
    let _ = talk.stream.shutdown(std::net::Shutdown::Both);
    let _ = reader.join();
    report(&summary);
    Ok(summary)
}

/// One connection, as the thread that sends and the one that reads share it.
struct Talk {
    stream: TcpStream,
    started: Instant,
    tally: Mutex<Tally>,
    /// Why the connection ended, once it has.
    ended: Mutex<Option<String>>,
}

impl Talk {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    fn ended(&self) -> Option<String> {
        let ended = lock(&self.ended);
        ended.clone()
    }

    fn report(&self) -> Report {
        self.tally().report(self.started.elapsed())
    }

    /// Sends lines at their pace until `stop` is set, the time is over or the connection ends.
    fn send_lines(&self, options: &Options, stop: &AtomicBool, report: &mut impl FnMut(&Report)) {
        let interval = Duration::from_millis(options.interval_ms.max(1));
        let report_every = Duration::from_millis(options.report_ms.max(1));
        let (mut next_line, mut next_report) = (Duration::ZERO, report_every);
        let mut unsent: Vec<u8> = Vec::new();
        let is_over = |now: Duration| {
            let limit = options.seconds;
            stop.load(Ordering::SeqCst) || limit.is_some_and(|limit| now.as_secs_f64() >= limit)
        };
        while !is_over(self.started.elapsed()) && self.ended().is_none() {
            let now = self.started.elapsed();
            if now >= next_report {
                report(&self.report());
                next_report += report_every;
            }
            if now < next_line {
                thread::sleep((next_line - now).min(Duration::from_millis(100)));
                continue;
            }
            // A line counts as sent when its time has come, even if the connection takes no more:
            // that wait is what is measured.
            if unsent.is_empty() {
                unsent.extend_from_slice(self.tally().send(now).as_bytes());
                unsent.push(b'\n');
                next_line += interval;
            }
            match (&self.stream).write(&unsent) {
                Ok(count) => drop(unsent.drain(..count)),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => break,
            }
        }
    }

    /// Reads until the connection ends; returns why it did.
    fn read_replies(&self) -> String {
        let mut reader = BufReader::new(&self.stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return "closed by the guest".into(),
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    self.tally().reply(self.started.elapsed(), &text);
                }
                Err(error) => return error.to_string(),
            }
        }
    }
}

fn connect(options: &Options, stop: &AtomicBool) -> io::Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&options.guest, Duration::from_secs(3)) {
            Ok(stream) => return Ok(stream),
            Err(e)
                if started.elapsed().as_secs_f64() > options.connect_seconds
                    || stop.load(Ordering::SeqCst) =>
            {
                return Err(e);
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The command: one JSON object a line while it runs, the last with `"summary":true`. Exit status 1
/// if a reply was lost, doubled, unexpected or out of count.
///
/// SIGTERM and SIGINT end it with the summary, provided that no thread was started before.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    use nix::sys::signal::{SigSet, Signal};
    let stop = Arc::new(AtomicBool::new(false));
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block()?;
    let asked = stop.clone();
    thread::spawn(move || {
        let _ = ending.wait();
        asked.store(true, Ordering::SeqCst);
    });
    let summary = run(options, &stop, |report| {
        // A closed standard output is ignored: the exit status still counts.
        let mut out = io::stdout().lock();
        if serde_json::to_writer(&mut out, report).is_ok() {
            let _ = out.write_all(b"\n").and_then(|()| out.flush());
        }
    })?;
    let flawless = summary.lost == 0
        && summary.doubled == 0
        && summary.counter_gaps == 0
        && summary.unexpected == 0;
    Ok(if flawless {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn lost_doubled_and_skipped_replies_and_the_longest_gap_are_told_apart() {
        let mut tally = Tally::default();
        for i in 0..6 {
            assert_eq!(tally.send(at(i * 10)), i.to_string());
        }
        for (time, line) in [
            (5, "100 0"),
            (15, "101 1"),
            (25, "102 1"),
            (325, "104 3"),
            (326, "5 4"),
            (327, "nonsense"),
            (328, "6 99"),
        ] {
            tally.reply(at(time), line);
        }
        let report = tally.report(at(400));
        assert_eq!(
            (report.sent, report.replies, report.lost, report.doubled),
            (6, 4, 2, 1)
        );
        assert_eq!(
            (report.counter_gaps, report.unexpected, report.counter),
            (2, 2, Some(5))
        );
        assert_eq!(
            (
                report.longest_gap_ms,
                report.longest_gap_end_ms,
                report.silent_ms
            ),
            (300.0, 325.0, 74.0)
        );
        assert_eq!(report.longest_reply_ms, 295.0);
    }

    #[test]
    fn a_guest_that_answers_everything_once_gets_a_clean_report() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let guest = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            for (counter, line) in BufReader::new(&stream).lines().enumerate() {
                writeln!(&stream, "{} {}", counter + 7, line.unwrap()).unwrap();
            }
        });
        let options = Options {
            guest,
            interval_ms: 2,
            seconds: Some(0.2),
            report_ms: 50,
            grace_seconds: 5.0,
            connect_seconds: 1.0,
        };
        let mut reports = 0;
        let summary = run(&options, &AtomicBool::new(false), |_| reports += 1).unwrap();
        assert!(summary.sent > 50, "{summary:?}");
        assert_eq!(
            (
                summary.replies,
                summary.lost,
                summary.doubled,
                summary.counter_gaps
            ),
            (summary.sent, 0, 0, 0)
        );
        assert!(
            summary.summary && summary.ended.is_none() && reports >= 3,
            "{summary:?}"
        );
    }
}
