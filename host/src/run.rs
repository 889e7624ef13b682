//! Runs another program (nft, iptables-legacy, firewall-cmd) with a time limit; its words become
//! the error.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longer than this none of them takes, unless something it waits for hangs (firewalld's D-Bus).
const LIMIT: Duration = Duration::from_secs(10);

/// Why a program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It is not on this machine.
    #[error("{program} is not installed (apt-get install {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// It could not be started or asked.
    #[error("cannot run {program}")]
    Io {
        /// The program.
        program: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// It refused.
    #[error("{program}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What it wrote to standard error.
        said: String,
    },
    /// It did not end.
    #[error("{program} did not end within {} s", LIMIT.as_secs())]
    TimedOut {
        /// The program.
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

fn run_within(
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
    // With what it starts: a wrapper's child would hold the pipes for as long as it likes.
    command.process_group(0);
    let mut child = command.spawn().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => RunError::Missing {
            program,
            package: package(program),
        },
        _ => RunError::Io { program, cause },
    })?;
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<&mut dyn Read>| {
        let mut text = Vec::new();
        // A pipe that breaks ends with the program, whose exit status says more.
        let _ = pipe.map(|pipe| pipe.read_to_end(&mut text));
        text
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(|| read(stdout.as_mut().map(|pipe| pipe as &mut dyn Read)));
        let said = scope.spawn(|| read(stderr.as_mut().map(|pipe| pipe as &mut dyn Read)));
        scope.spawn(move || {
            stdin
                .take()
                .map(|mut pipe| pipe.write_all(input.as_bytes()))
        });
        let began = Instant::now();
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
        let said = said.join().unwrap_or_default();
        if !status.success() {
            let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            return Err(RunError::Refused { program, said });
        }
        Ok(out.join().unwrap_or_default())
    })
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
        assert_eq!(
            run_within(LIMIT, "sh", &["-c", "cat"], "heard").unwrap(),
            b"heard"
        );
    }
}
