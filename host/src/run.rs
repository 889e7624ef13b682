//! Runs another program (nft, iptables-legacy, firewall-cmd) with a time limit; what it prints to
//! standard error becomes the error.

use crate::lock;
use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

/// How long a program may run.
/// Reason: none takes longer, unless something it waits for hangs (firewalld's D-Bus).
const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for the rest of a program's output after it has ended.
/// Reason: a child of it may hold its pipes for ever.
const AFTER: Duration = Duration::from_secs(2);
/// How many bytes of a program's output are kept.
/// Reason: a ruleset of 100 000 rules fits.
const MOST: usize = 64 << 20;

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It is not on this machine.
    #[error("{program} is not installed (apt-get install {package})")]
    Missing {
        /// Its name in the search path.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// It could not be started or asked.
    #[error("cannot run {program}")]
    Io {
        /// Its name in the search path.
        program: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// It refused.
    #[error("{program}: {said}")]
    Refused {
        /// Its name in the search path.
        program: &'static str,
        /// What it wrote to standard error.
        said: String,
    },
    /// It did not end.
    #[error("{program} did not end within {} s", LIMIT.as_secs())]
    TimedOut {
        /// Its name in the search path.
        program: &'static str,
    },
}

fn package(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        "firewall-cmd" => "firewalld",
        "wg" => "wireguard-tools",
        _ => "iptables",
    }
}

/// Runs the program, gives it `input`, and returns what it printed.
///
/// # Errors
/// It is missing, refuses, or does not end.
pub fn run(program: &'static str, words: &[&str], input: &str) -> Result<Vec<u8>, RunError> {
    run_within(LIMIT, program, words, input)
}

/// The output of a pipe, read by a thread of its own: a program's child may hold the pipe long
/// after the program has ended.
struct Output {
    read: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Output {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let (end, ended) = mpsc::channel();
        let read: Arc<Mutex<Vec<u8>>> = Arc::default();
        if let Some(mut pipe) = pipe {
            let read = read.clone();
            std::thread::spawn(move || {
                let mut part = [0; 16 << 10];
                // A pipe that breaks ends with the program, whose exit status says more.
                while let Ok(n @ 1..) = pipe.read(&mut part) {
                    let mut read = lock(&read);
                    let room = MOST.saturating_sub(read.len());
                    read.extend_from_slice(&part[..n.min(room)]);
                }
                let _ = end.send(());
            });
        }
        Self { read, ended }
    }

    /// What was read until the pipe ended or `deadline` came.
    fn take(&self, deadline: Instant) -> Vec<u8> {
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = self.ended.recv_timeout(left);
        std::mem::take(&mut *lock(&self.read))
    }
}

/// As [`run`], with a time limit of its own.
pub(crate) fn run_within(
    limit: Duration,
    program: &'static str,
    words: &[&str],
    input: &str,
) -> Result<Vec<u8>, RunError> {
    let failed = |cause| RunError::Io { program, cause };
    let mut command = Command::new(program);
    command
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own: a kill then also ends a wrapper's child.
    command.process_group(0);
    let began = Instant::now();
    let mut child = command.spawn().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => RunError::Missing {
            program,
            package: package(program),
        },
        _ => RunError::Io { program, cause },
    })?;
    let out = Output::of(child.stdout.take());
    let said = Output::of(child.stderr.take());
    if let Some(mut pipe) = child.stdin.take() {
        let input = input.to_owned();
        std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    }
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if began.elapsed() > limit => {
                let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                let _ = child.wait();
                return Err(RunError::TimedOut { program });
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    // All output is in the pipes by now: it is read at once, unless there is very much.
    let deadline = Instant::now() + AFTER;
    if status.success() {
        return Ok(out.take(deadline));
    }
    let said = said.take(deadline);
    let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    Err(RunError::Refused { program, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapper_whose_child_hangs_does_not_outlast_the_limit() {
        let began = Instant::now();
        let ended = run_within(
            Duration::from_millis(200),
            "sh",
            &["-c", "sleep 30; true"],
            "",
        );
        assert!(
            matches!(ended, Err(RunError::TimedOut { program: "sh" })),
            "{ended:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(10));
        // A child that keeps the pipes, in the program's group and in one of its own.
        for child in ["sleep 30 & echo said", "setsid sleep 30 & echo said"] {
            let began = Instant::now();
            let printed = run_within(LIMIT, "sh", &["-c", child], "").unwrap();
            assert_eq!(printed, b"said\n");
            assert!(began.elapsed() < LIMIT, "{child}: {:?}", began.elapsed());
        }
        let much = run_within(LIMIT, "sh", &["-c", "head -c 9000000 /dev/zero"], "").unwrap();
        assert_eq!(much.len(), 9_000_000);
        assert_eq!(
            run_within(LIMIT, "sh", &["-c", "cat"], "heard").unwrap(),
            b"heard"
        );
    }
}
