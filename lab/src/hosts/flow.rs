//! Continuous traffic between two places, and how long it was interrupted: a TCP stream of numbered
//! bytes that are echoed, pings, and look-ups of names.

use super::probe::ProbeSource;
use crate::{Error, Testbed, namespace};
use p2pvm_overlay::lock;
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The time between two bytes of a stream.
const EVERY: Duration = Duration::from_millis(100);
/// The time between two pings.
const PING_EVERY: Duration = Duration::from_millis(200);
/// The time between two look-ups.
const LOOK_UP_EVERY: Duration = Duration::from_millis(500);
/// The time between two checks whether a flow is back.
pub const POLL: Duration = Duration::from_millis(20);
/// How long one read waits before the end of the flow is checked.
const SLICE: Duration = Duration::from_millis(200);

/// The answers that a flow got so far.
#[derive(Clone, Debug)]
pub struct FlowAnswers {
    /// Answers so far.
    pub answers: u64,
    /// When the newest answer came.
    pub last: Instant,
    /// When the request of the newest answer was sent: the answer proves the path since then.
    pub asked: Instant,
    /// Why the flow ended by itself, if it did.
    pub ended: Option<String>,
}

/// A flow; dropping it ends it.
pub struct Flow {
    name: String,
    seen: Arc<Mutex<FlowAnswers>>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    fn new(name: String) -> Self {
        let now = Instant::now();
        let seen = FlowAnswers {
            answers: 0,
            last: now,
            asked: now,
            ended: None,
        };
        Self {
            name,
            seen: Arc::new(Mutex::new(seen)),
            end: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One TCP connection that stays open all the time.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn stream(
        name: &str,
        from: &ProbeSource,
        to: &ProbeSource,
        address: &str,
        port: u16,
    ) -> Result<Self, Error> {
        let failed = |e| Error::Io(format!("open the stream {name}"), e);
        let ip: IpAddr = address
            .parse()
            .map_err(|e| failed(std::io::Error::other(e)))?;
        let listener =
            namespace::inside(&to.0, || TcpListener::bind(("0.0.0.0", port)))?.map_err(failed)?;
        let target = SocketAddr::new(ip, port);
        let client = namespace::inside(&from.0, || {
            TcpStream::connect_timeout(&target, Duration::from_secs(10))
        })?
        .map_err(failed)?;
        let (server, _) = listener.accept().map_err(failed)?;
        for stream in [&client, &server] {
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_read_timeout(Some(SLICE)))
                .map_err(failed)?;
        }
        let mut flow = Self::new(name.to_owned());
        let end = flow.end.clone();
        flow.threads
            .push(std::thread::spawn(move || echo(server, &end)));
        let (seen, end) = (flow.seen.clone(), flow.end.clone());
        flow.threads
            .push(std::thread::spawn(move || ask(client, &seen, &end)));
        Ok(flow)
    }

    /// Pings, several a second.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn pings(name: &str, from: &ProbeSource, address: &str) -> Result<Self, Error> {
        let mut flow = Self::new(name.to_owned());
        let (seen, end) = (flow.seen.clone(), flow.end.clone());
        let (from, address) = (from.0.clone(), address.to_owned());
        flow.threads.push(std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let ping = || {
                    let words = ["-n", "-q", "-c", "1", "-W", "1", &address];
                    Command::new("ping")
                        .args(words)
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .status()
                };
                if matches!(namespace::inside(&from, ping), Ok(Ok(status)) if status.success()) {
                    answered(&seen, asked);
                }
                std::thread::sleep(PING_EVERY.saturating_sub(asked.elapsed()));
            }
        }));
        Ok(flow)
    }

    /// Look-ups on a host by its C library, one after the other: `wanted` has names and the address
    /// of each.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn names(
        name: &str,
        testbed: &Testbed,
        host: &str,
        wanted: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let mut flow = Self::new(name.to_owned());
        let (seen, end) = (flow.seen.clone(), flow.end.clone());
        let testbed = Testbed::open(&testbed.plan().name)?;
        testbed.host(host)?;
        let host = host.to_owned();
        let wanted: Vec<(String, String)> = wanted
            .iter()
            .map(|(name, address)| ((*name).to_owned(), (*address).to_owned()))
            .collect();
        flow.threads.push(std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let finds = |(name, address): &(String, String)| {
                    let said = testbed.exec(&host, &["timeout", "5", "getent", "ahostsv4", name]);
                    said.is_ok_and(|said| {
                        String::from_utf8_lossy(&said.stdout)
                            .split_whitespace()
                            .next()
                            == Some(address)
                    })
                };
                if wanted.iter().all(finds) {
                    answered(&seen, asked);
                }
                std::thread::sleep(LOOK_UP_EVERY.saturating_sub(asked.elapsed()));
            }
        }));
        Ok(flow)
    }

    /// Its observations so far.
    pub fn seen(&self) -> FlowAnswers {
        lock(&self.seen).clone()
    }

    /// How long after `moment` the first request that was sent since was answered; `None` if none
    /// was.
    ///
    /// # Errors
    /// Why the flow has ended.
    pub fn back(&self, moment: Instant) -> Result<Option<Duration>, String> {
        let seen = self.seen();
        match seen.ended {
            Some(why) => Err(format!("{} ended: {why}", self.name)),
            None => Ok((seen.asked > moment).then(|| seen.last.duration_since(moment))),
        }
    }

    /// Waits until a request sent after `moment` is answered.
    ///
    /// # Errors
    /// Why the flow has ended, or that no answer came within the limit.
    pub fn back_after(&self, moment: Instant, limit: Duration) -> Result<Duration, String> {
        loop {
            if let Some(after) = self.back(moment)? {
                return Ok(after);
            }
            if moment.elapsed() > limit {
                return Err(self.overdue(limit));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The message that a flow is not back within the limit.
    pub fn overdue(&self, limit: Duration) -> String {
        let silent = self.seen().last.elapsed().as_secs_f64();
        format!(
            "{} is not back {:.0} s later; its last answer came {silent:.1} s ago",
            self.name,
            limit.as_secs_f64()
        )
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .for_each(|thread| drop(thread.join()));
    }
}

fn answered(seen: &Mutex<FlowAnswers>, asked: Instant) {
    let mut seen = lock(seen);
    (seen.answers, seen.last, seen.asked) = (seen.answers + 1, Instant::now(), asked);
}

/// Echoes all bytes until the end.
fn echo(mut stream: TcpStream, end: &AtomicBool) {
    let mut buffer = [0; 64];
    while !end.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(_) => return,
        }
    }
}

/// Sends one numbered byte at a time and waits for its echo, which proves the path since the byte
/// was sent.
fn ask(mut stream: TcpStream, seen: &Mutex<FlowAnswers>, end: &AtomicBool) {
    let ended = |why: String| lock(seen).ended = Some(why);
    let mut number = 0u8;
    while !end.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if let Err(e) = stream.write_all(&[number]) {
            return ended(format!("sending: {}", crate::chain(&e)));
        }
        let mut got = [0];
        loop {
            match stream.read(&mut got) {
                Ok(0) => return ended("closed by the other side".into()),
                Ok(_) if got[0] == number => break,
                Ok(_) => return ended(format!("byte {} came instead of {number}", got[0])),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                }
                Err(e) => return ended(format!("receiving: {}", crate::chain(&e))),
            }
        }
        answered(seen, asked);
        number = number.wrapping_add(1);
        std::thread::sleep(EVERY);
    }
}
