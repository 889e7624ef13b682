//! What links cost that carry nothing: a plane with a thousand of them, each with a session, a path
//! that was probed and a NAT's mapping to keep alive. The far ends are link state machines on one
//! socket in a process of their own, so that this process is the plane alone. Prints the growth of
//! resident memory and the share of a processor; `P2PVM_FIGURES=docs/figures` also writes them
//! there, for docs/scale.md.

use super::{core::Inner, types::PlaneConfig};
use crate::{
    id::MemberId,
    link::{
        Keys, Link, Output, Session,
        frame::{FRAME_HEADER_LEN, Frame},
        wire::{self, Datagram, HEADER_LEN, TAG_LEN},
    },
};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use p2pvm_figures::{Figure, Recorder};
use std::{
    env,
    io::Read,
    net::UdpSocket,
    process::{self, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

const LINKS: u32 = 1000;
/// Names the plane's port to the process of the far ends.
const FAR: &str = "P2PVM_IDLE_LINKS_PORT";
/// Says that nothing else runs in this process, whose memory and time are measured.
const ALONE: &str = "P2PVM_IDLE_LINKS_ALONE";
/// What such a process is asked to run.
const NAME: &str = "plane::idle_tests::a_thousand_idle_links_cost_some_megabytes";
/// Fewer than a doorman asks cookies for.
const HANDSHAKES_PER_SECOND: u32 = 150;
/// The plane is watched for so long; a few members' keepalives fall due meanwhile.
const WATCHED: Duration = Duration::from_secs(10);

fn secret(number: u32) -> Zeroizing<[u8; 32]> {
    let mut secret = [9; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    Zeroizing::new(secret)
}

fn member(number: u32) -> MemberId {
    let mut id = [1; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    MemberId(id)
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 4096
}

fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

struct FarEnd {
    link: Link,
    session: Option<Arc<Session>>,
}

impl FarEnd {
    fn send(&self, socket: &UdpSocket, frame: Frame, padding: usize) {
        let Some(session) = &self.session else { return };
        let mut buf = vec![0; HEADER_LEN + FRAME_HEADER_LEN + padding + TAG_LEN];
        frame.write_header(&mut buf[HEADER_LEN..]);
        let len = session.seal(&mut buf, FRAME_HEADER_LEN + padding).unwrap();
        let _ = socket.send(&buf[..len]);
    }
}

/// The members: they open the handshakes and answer pings, until standard input ends.
fn far_ends(port: u16) {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(5)))
        .unwrap();
    let hub = Keys::new(secret(0)).public();
    let far = |number| FarEnd {
        link: Link::new(Arc::new(Keys::new(secret(number))), hub),
        session: None,
    };
    let mut ends: Vec<FarEnd> = (1..=LINKS).map(far).collect();
    let (began, mut opened, mut buf) = (Instant::now(), 0, vec![0; 2048]);
    loop {
        let now = Instant::now();
        let due = (began.elapsed().as_secs_f64() * f64::from(HANDSHAKES_PER_SECOND)) as u32;
        while opened < due.min(LINKS) {
            let message = ends[opened as usize].link.open(now, opened).unwrap();
            socket.send(&message).unwrap();
            opened += 1;
        }
        let Ok(len) = socket.recv(&mut buf) else {
            continue;
        };
        let parsed = wire::parse(&buf[..len]);
        let (Ok(Datagram::Response { receiver, .. }) | Ok(Datagram::Data { receiver, .. })) =
            parsed
        else {
            continue;
        };
        let end = &mut ends[receiver as usize];
        match parsed {
            Ok(Datagram::Response { .. }) if end.link.answered(now, &buf[..len]).is_ok() => {
                while let Some(output) = end.link.poll() {
                    if let Output::SendWith(session) = output {
                        end.session = session;
                    }
                }
                end.send(&socket, Frame::Keepalive, 0);
            }
            Ok(Datagram::Data { counter, .. }) => {
                let Some(session) = end.session.clone() else {
                    continue;
                };
                if let Ok(plain) = session.open(&mut buf[..len], counter)
                    && let Some(Frame::Ping(token)) = Frame::parse(plain)
                {
                    end.send(&socket, Frame::Pong(token), 0);
                }
            }
            _ => {}
        }
    }
}

/// Runs the test again in a process of its own, so that it measures nothing else.
fn run_alone() {
    let mut alone = Command::new(env::current_exe().unwrap());
    assert!(
        alone
            .args(["--exact", NAME, "--nocapture"])
            .env(ALONE, "1")
            .status()
            .unwrap()
            .success()
    );
}

/// A plane in a network namespace of its own; `None` without the right to make one.
fn start_plane() -> Option<Arc<Inner>> {
    unshare(CloneFlags::CLONE_NEWNET).ok()?;
    assert!(
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap()
            .success()
    );
    // The receiver is dropped: nobody takes the plane's events.
    let (events, _) = tokio::sync::mpsc::channel(1);
    let config = PlaneConfig {
        me: member(0),
        link_secret: secret(0),
        udp_port: 0,
        device: "p2pvm0".into(),
        mtu: 1340,
        traffic: true,
        network: String::new(),
        control_port: 0,
    };
    Some(Inner::start(config, events).unwrap())
}

/// How many links are up and at rest.
fn at_rest(inner: &Inner) -> usize {
    inner
        .tables
        .peers
        .load()
        .iter()
        .filter(|peer| peer.ready() && !peer.pmtu().busy() && !peer.paths().probing())
        .count()
}

/// Prints the figures, and writes them for docs/scale.md where that is asked for.
fn record(recorder: &Recorder, megabytes: f64, percent: f64) {
    let figures = [
        Figure::new(
            "idle-memory",
            "resident memory of 1000 idle links",
            "MB",
            [megabytes],
        )
        .digits(1)
        .aim("≤ 10 MB"),
        Figure::new(
            "idle-processor",
            "processor time of 1000 idle links",
            "%",
            [percent],
        )
        .digits(2)
        .aim("≤ 1 % of one"),
    ];
    println!("{}", Recorder::overview(&figures));
    let command = "cargo nextest run -p p2pvm-overlay --no-default-features a_thousand_idle_links";
    recorder
        .record_part("links", command, &figures)
        .expect("the figures are written");
}

#[test]
fn a_thousand_idle_links_cost_some_megabytes() {
    if let Ok(port) = env::var(FAR) {
        return far_ends(port.parse().unwrap());
    }
    if env::var_os(ALONE).is_none() {
        return run_alone();
    }
    let Some(inner) = start_plane() else {
        println!("NOT RUN: makes a network namespace, which needs root");
        return;
    };
    let recorder = Recorder::from_environment();
    thread::sleep(Duration::from_secs(1));
    let before = resident_bytes();
    for number in 1..=LINKS {
        inner
            .linked(member(number), Keys::new(secret(number)).public())
            .keep_alive
            .store(true, Ordering::Relaxed);
    }
    let mut far = Command::new(env::current_exe().unwrap());
    far.args(env::args().skip(1))
        .env(FAR, inner.udp.port().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut far = far.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while at_rest(&inner) < LINKS as usize && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let linked = at_rest(&inner);
    thread::sleep(Duration::from_secs(2));
    let (memory, busy) = (resident_bytes().saturating_sub(before), processor_seconds());
    thread::sleep(WATCHED);
    let share = (processor_seconds() - busy) / WATCHED.as_secs_f64();
    inner.stop();
    drop(far.stdin.take());
    let _ = far.wait();
    record(&recorder, memory as f64 / 1e6, share * 100.0);
    assert_eq!(linked, LINKS as usize);
    // Twice the memory aimed at. The share of a processor has no limit: it depends on what else the
    // machine does.
    assert!(memory <= 20_000_000, "{memory} bytes");
}
