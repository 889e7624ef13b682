//! Whether packets arrive: pings, TCP connections and look-ups of names, from a host or from behind
//! one.

use crate::{Error, lab::Lab, namespace};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long an answer may take before its packet counts as dropped.
/// Reason: an answer on the emulated wide area takes milliseconds.
const SILENCE: Duration = Duration::from_millis(1500);
/// The time between two tries.
const PAUSE: Duration = Duration::from_millis(150);

/// Where a probe starts: the name of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSource(pub(crate) String);

impl ProbeSource {
    /// From a host.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn host(lab: &Lab, host: &str) -> Result<Self, Error> {
        Ok(Self(lab.testbed().host(host)?.namespace.clone()))
    }

    /// Whether one of two pings is answered.
    pub fn pings(&self, to: &str) -> bool {
        self.tries("ping", &["-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", to])
    }

    fn tries(&self, program: &str, words: &[&str]) -> bool {
        let run = || {
            Command::new(program)
                .args(words)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
        };
        matches!(namespace::inside(&self.0, run), Ok(Ok(status)) if status.success())
    }

    /// Whether a TCP connection is made and answered ([`answer`]).
    pub fn connects(&self, to: &str, port: u16) -> bool {
        let Ok(to) = to.parse::<IpAddr>() else {
            return false;
        };
        let connect = || {
            let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(to, port), SILENCE)
            else {
                return false;
            };
            let _ = stream.set_read_timeout(Some(SILENCE));
            stream.read_exact(&mut [0]).is_ok()
        };
        namespace::inside(&self.0, connect).unwrap_or(false)
    }

    /// Answers each TCP connection to that port here with one byte, for as long as this process
    /// lives.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn answer(&self, port: u16) -> Result<(), Error> {
        let bound = namespace::inside(&self.0, || {
            TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        })?;
        let listener = bound.map_err(|e| Error::Io(format!("listen on port {port}"), e))?;
        std::thread::spawn(move || {
            listener
                .incoming()
                .flatten()
                .for_each(|mut stream| drop(stream.write_all(b"!")))
        });
        Ok(())
    }

    /// Answers every question for an IPv4 address here with 192.0.2.77, as a provider's name server
    /// that resolves all names but those that end with `unknown`.
    ///
    /// # Errors
    /// If port 53 is taken.
    pub fn serve_names(&self, address: &str, unknown: &'static str) -> Result<(), Error> {
        let socket = namespace::inside(&self.0, || UdpSocket::bind((address, 53)))?;
        let socket = socket.map_err(|e| Error::Io(format!("listen on port 53 of {address}"), e))?;
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Some(answer) = name_answer(&buffer[..length], unknown) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(())
    }
}

fn name_answer(question: &[u8], unknown: &str) -> Option<Vec<u8>> {
    let (mut end, mut name) = (12, String::new());
    while let Some(&length) = question.get(end).filter(|l| **l != 0) {
        let label = question.get(end + 1..end + 1 + usize::from(length))?;
        name.push_str(&String::from_utf8_lossy(label));
        name.push('.');
        end += 1 + usize::from(length);
    }
    let is_a = question.get(end + 1..end + 3)? == [0, 1];
    let is_known = !name.trim_end_matches('.').ends_with(unknown);
    let mut answer = question.get(..end + 5)?.to_vec();
    let (code, answers) = if is_known {
        (0x80, u8::from(is_a))
    } else {
        (0x83, 0)
    };
    answer[2..12].copy_from_slice(&[0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
    if answers == 1 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
    }
    Some(answer)
}

/// How long it took until `done`; `None` if it exceeded the limit.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> Option<Duration> {
    let began = Instant::now();
    loop {
        if done() {
            return Some(began.elapsed());
        }
        if began.elapsed() > limit {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The addresses of a name on a host, as its C library finds them.
pub fn look_up(lab: &Lab, host: &str, name: &str) -> Vec<String> {
    look_up_by(lab, host, &["getent", "ahostsv4"], name)
}

/// The same, as `program` finds them; it prints one address a line.
pub fn look_up_by(lab: &Lab, host: &str, program: &[&str], name: &str) -> Vec<String> {
    let said = lab
        .testbed()
        .exec(host, &[&["timeout", "8"], program, &[name]].concat());
    let text = said
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    found.dedup();
    found
}
