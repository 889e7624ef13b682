//! A p2pvm network on a testbed, driven by its own command line; the demo, the bench and the
//! end-to-end tests share it. Every step is a real `p2pvm` process on an emulated host; every
//! figure is printed by such a process or measured with this machine's clock.

use crate::{
    keeper::{self, Life},
    sites::Sites,
    testbed::{self, Testbed},
};
use p2pvm_api::{
    Joined, NetCheckView, Peer, PingSummary, Pong, RouteView, Status, VmMoved, VmView,
};
use p2pvm_overlay::chain;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Why a step on the lab failed; [`chain`] adds the cause.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The testbed could not be built or used.
    #[error(transparent)]
    Testbed(#[from] testbed::Error),
    /// A p2pvm command failed.
    #[error("on {host}: p2pvm {words} failed with exit code {code}: {said}")]
    Command {
        /// The host.
        host: String,
        /// The command's words.
        words: String,
        /// Its exit code, -1 if killed.
        code: i32,
        /// What it wrote to standard error.
        said: String,
    },
    /// A command printed an invalid answer.
    #[error("on {host}: p2pvm {words} printed an invalid answer: {said}")]
    Answer {
        /// The host.
        host: String,
        /// The command's words.
        words: String,
        /// The answer.
        said: String,
    },
    /// An awaited event did not happen in time.
    #[error("{what} did not happen within {seconds} s")]
    TimedOut {
        /// The event.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// A file or process of this machine failed.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
}

/// The answers of a `ping`.
#[derive(Clone, Debug, Default)]
pub struct PingResult {
    /// The last path: "direct ...", "relayed via ..." or "stream".
    pub path: String,
    /// Round trips of the answered probes, milliseconds, in order.
    pub rtts_ms: Vec<f64>,
}

impl PingResult {
    /// The smallest round trip, milliseconds.
    pub fn best_ms(&self) -> f64 {
        self.rtts_ms.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// A line of `ping --json`.
#[derive(Deserialize)]
#[serde(untagged)]
enum PingLine {
    Probe(Pong),
    #[allow(dead_code, reason = "it is read so that it is known to be valid")]
    End(PingSummary),
}

/// One p2pvm network on a testbed of its own. Dropping it takes everything down.
pub struct Lab {
    testbed: Option<Testbed>,
    program: PathBuf,
    /// The executables of hosts that run another one.
    others: BTreeMap<String, PathBuf>,
}

impl Lab {
    /// Builds the testbed. `program` is the p2pvm executable.
    pub fn up(sites: &Sites, name: &str, program: &Path) -> Result<Self, LabError> {
        let testbed = Testbed::up_by(program, &[OsStr::new("testbed")], sites, name, Life::Tied)?;
        Ok(Self {
            testbed: Some(testbed),
            program: program.to_owned(),
            others: BTreeMap::new(),
        })
    }

    /// The testbed underneath.
    pub fn testbed(&self) -> &Testbed {
        self.testbed
            .as_ref()
            .expect("it is taken by down and drop alone, which own the lab")
    }

    /// The testbed underneath, to be changed.
    pub fn testbed_mut(&mut self) -> &mut Testbed {
        self.testbed
            .as_mut()
            .expect("it is taken by down and drop alone, which own the lab")
    }

    /// Gives a host a root file system of its own ([`Testbed::give_root`]) in which this program
    /// and `binds` are.
    pub fn give_root(
        &mut self,
        host: &str,
        tree: &Path,
        binds: &[&Path],
    ) -> Result<(), testbed::Error> {
        let program = self.program.clone();
        let binds: Vec<&Path> = std::iter::once(program.as_path())
            .chain(binds.iter().copied())
            .collect();
        self.testbed_mut().give_root(host, tree, &binds)
    }

    /// The p2pvm executable.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Has a host run another p2pvm executable, such as the previous release's, from its next
    /// command on. A daemon that runs there stays.
    pub fn use_program(&mut self, host: &str, program: &Path) {
        self.others.insert(host.to_owned(), program.to_owned());
    }

    /// A host's state directory.
    pub fn dir(&self, host: &str) -> Result<PathBuf, LabError> {
        Ok(self.testbed().host(host)?.dir.clone())
    }

    /// Writes a host's `node.toml`.
    pub fn configure(&self, host: &str, settings: &str) -> Result<(), LabError> {
        let dir = self.dir(host)?;
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("node.toml"), settings))
            .map_err(|e| LabError::Io(format!("configuring {host}"), e))
    }

    /// The command that would run `p2pvm WORDS` on a host.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        command
    }

    /// Runs `p2pvm WORDS` on a host; returns its exit code, standard output and standard error.
    pub fn try_p2pvm(&self, host: &str, words: &[&str]) -> Result<(i32, String, String), LabError> {
        let program = self.others.get(host).unwrap_or(&self.program);
        let program = program.to_string_lossy();
        let argv: Vec<&str> = std::iter::once(&*program)
            .chain(words.iter().copied())
            .collect();
        let output = self.testbed().exec(host, &argv)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok((
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }

    /// Runs `p2pvm WORDS` on a host and returns its output.
    pub fn p2pvm(&self, host: &str, words: &[&str]) -> Result<String, LabError> {
        match self.try_p2pvm(host, words)? {
            (0, out, _) => Ok(out),
            (code, _, said) => Err(LabError::Command {
                host: host.to_owned(),
                words: words.join(" "),
                code,
                said,
            }),
        }
    }

    /// Runs `p2pvm --json WORDS` on a host and returns its answer.
    pub fn json<T: DeserializeOwned>(&self, host: &str, words: &[&str]) -> Result<T, LabError> {
        let words: Vec<&str> = std::iter::once("--json")
            .chain(words.iter().copied())
            .collect();
        let said = self.p2pvm(host, &words)?;
        serde_json::from_str(&said).map_err(|_| LabError::Answer {
            host: host.to_owned(),
            words: words.join(" "),
            said,
        })
    }

    /// The answer of `status` on a host.
    pub fn status(&self, host: &str) -> Result<Status, LabError> {
        self.json(host, &["status"])
    }

    /// The answer of `peers` on a host.
    pub fn peers(&self, host: &str) -> Result<Vec<Peer>, LabError> {
        self.json(host, &["peers"])
    }

    /// The answer of `netcheck` on a host.
    pub fn netcheck(&self, host: &str) -> Result<NetCheckView, LabError> {
        self.json(host, &["netcheck"])
    }

    /// The answer of `route list` on a host.
    pub fn routes(&self, host: &str) -> Result<Vec<RouteView>, LabError> {
        self.json(host, &["route", "list"])
    }

    /// The answer of `vm list` on a host.
    pub fn vms(&self, host: &str) -> Result<Vec<VmView>, LabError> {
        self.json(host, &["vm", "list"])
    }

    /// The answer of `vm show` on a host.
    pub fn vm(&self, host: &str, vm: &str) -> Result<VmView, LabError> {
        self.json(host, &["vm", "show", vm])
    }

    /// Moves a VM between two hosts; `from` runs the command.
    pub fn migrate(&self, from: &str, vm: &str, to: &str) -> Result<VmMoved, LabError> {
        self.json(from, &["vm", "migrate", vm, "--to", to])
    }

    /// Starts the daemon of a host that is a member already.
    pub fn start(&self, host: &str) -> Result<Status, LabError> {
        self.json(host, &["up", "--detach"])
    }

    /// Founds a network on a host and starts its daemon.
    pub fn found(&self, host: &str, network: &str) -> Result<Status, LabError> {
        self.p2pvm(host, &["init", "--network", network])?;
        self.start(host)
    }

    /// An invite made on a host.
    pub fn invite(&self, host: &str, uses: u32) -> Result<String, LabError> {
        self.p2pvm(
            host,
            &["invite", "--uses", &uses.to_string(), "--expires", "1h"],
        )
    }

    /// Lets a host join with an invite; returns what `join --json` prints.
    pub fn join(&self, host: &str, invite: &str) -> Result<Joined, LabError> {
        self.json(host, &["join", invite])
    }

    /// Pings one member from another.
    pub fn ping(
        &self,
        from: &str,
        to: &str,
        count: u32,
        interval: &str,
    ) -> Result<PingResult, LabError> {
        let count = count.to_string();
        let words = [
            "--json",
            "ping",
            to,
            "--count",
            &count,
            "--interval",
            interval,
        ];
        let said = self.p2pvm(from, &words)?;
        let mut pinged = PingResult::default();
        for line in said.lines() {
            let line = serde_json::from_str(line).map_err(|_| LabError::Answer {
                host: from.to_owned(),
                words: words.join(" "),
                said: said.clone(),
            })?;
            if let PingLine::Probe(probe) = line
                && let Some(rtt) = probe.rtt_ms
            {
                pinged.path = probe.path;
                pinged.rtts_ms.push(rtt);
            }
        }
        Ok(pinged)
    }

    /// Waits until `check` returns a value, calling it every `every`.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        every: Duration,
        mut check: impl FnMut() -> Result<Option<T>, LabError>,
    ) -> Result<T, LabError> {
        let began = Instant::now();
        loop {
            if let Some(found) = check()? {
                return Ok(found);
            }
            if began.elapsed() > limit {
                return Err(LabError::TimedOut {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                });
            }
            std::thread::sleep(every);
        }
    }

    /// Waits until a guest answers on TCP port 7000, seen from a host.
    pub fn wait_for_guest(
        &self,
        from: &str,
        address: &str,
        limit: Duration,
    ) -> Result<Duration, LabError> {
        let began = Instant::now();
        let target = format!("{address}:7000")
            .parse()
            .map_err(|e| LabError::Io(address.to_owned(), std::io::Error::other(e)))?;
        self.wait(
            &format!("an answer of the guest at {address}"),
            limit,
            Duration::from_millis(200),
            || {
                let connected = self.testbed().inside(from, || {
                    std::net::TcpStream::connect_timeout(&target, Duration::from_millis(800))
                        .is_ok()
                })?;
                Ok(connected.then_some(()))
            },
        )?;
        Ok(began.elapsed())
    }

    /// Starts the counting TCP client on a host.
    pub fn client(&self, host: &str, address: &str, interval_ms: u64) -> Result<Client, LabError> {
        let mut command = self.command(&["testbed", "client", &format!("{address}:7000")]);
        command.args([
            "--interval-ms",
            &interval_ms.to_string(),
            "--report-ms",
            "200",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = self.testbed().spawn(host, &mut command)?;
        let output = child.stdout.take().ok_or_else(|| {
            LabError::Io(
                "the client has no output".into(),
                std::io::ErrorKind::BrokenPipe.into(),
            )
        })?;
        let reader = std::thread::spawn(move || {
            let mut last = None;
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                last = serde_json::from_str::<CountSummary>(&line).ok().or(last);
            }
            last
        });
        Ok(Client {
            child,
            reader: Some(reader),
        })
    }

    /// Kills a host's p2pvm daemon with SIGKILL, but not its guests; returns its process id on the
    /// host.
    pub fn kill_daemon(&self, host: &str) -> Result<u32, LabError> {
        if self.testbed().host(host)?.root.is_some() {
            let said = self.testbed().run(
                host,
                &[
                    "sh",
                    "-euc",
                    "read -r pid <$P2PVM_DIR/daemon.pid; kill -9 $pid; \
                        while grep -qs '^State:[^ZX]*$' /proc/$pid/status; do sleep 0.01; done; \
                        echo $pid",
                ],
            )?;
            return Ok(said.trim().parse().unwrap_or_default());
        }
        let path = self.dir(host)?.join("daemon.pid");
        let text =
            fs::read_to_string(&path).map_err(|e| LabError::Io(path.display().to_string(), e))?;
        let pid: i32 = text
            .trim()
            .parse()
            .map_err(|e| LabError::Io(path.display().to_string(), std::io::Error::other(e)))?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .map_err(|e| LabError::Io(format!("killing process {pid}"), e.into()))?;
        // Until it is gone, its sockets take packets that nothing will answer.
        self.wait(
            &format!("process {pid} to end"),
            Duration::from_secs(30),
            Duration::from_millis(1),
            || Ok(keeper::start_time(pid).is_none().then_some(())),
        )?;
        Ok(pid as u32)
    }

    /// The end of a host's daemon log, for a report of a failure.
    pub fn log_tail(&self, host: &str, lines: usize) -> String {
        let text = self
            .dir(host)
            .ok()
            .and_then(|dir| fs::read_to_string(dir.join("daemon.log")).ok())
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Takes everything down; an error says what is left.
    pub fn down(mut self) -> Result<(), LabError> {
        match self.testbed.take() {
            Some(testbed) => Ok(testbed.down()?),
            None => Ok(()),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(testbed) = self.testbed.take()
            && let Err(error) = testbed.down()
        {
            eprintln!("the testbed could not be removed: {}", chain(&error));
        }
    }
}

/// The summary of the counting client; the fields are those of [`crate::guest_client::Report`].
#[derive(Clone, Debug, Deserialize)]
pub struct CountSummary {
    /// Lines sent.
    pub sent: u64,
    /// Replies, each line counted once.
    pub replies: u64,
    /// Lines without a reply.
    pub lost: u64,
    /// Second replies to a line.
    pub doubled: u64,
    /// Replies whose counter was not one more than that of the previous reply.
    pub counter_gaps: u64,
    /// The guest's counter at the end.
    pub counter: Option<u64>,
    /// Longest time between two replies, milliseconds.
    pub longest_gap_ms: f64,
    /// Why the connection ended, if it did by itself.
    pub ended: Option<String>,
}

/// A running counting client.
pub struct Client {
    child: Child,
    reader: Option<std::thread::JoinHandle<Option<CountSummary>>>,
}

impl Client {
    /// Ends it and returns its summary.
    pub fn finish(mut self) -> Result<CountSummary, LabError> {
        self.signal();
        let seen = self
            .reader
            .take()
            .and_then(|reader| reader.join().ok())
            .flatten();
        self.child
            .wait()
            .map_err(|e| LabError::Io("waiting for the client".into(), e))?;
        seen.ok_or_else(|| {
            LabError::Io(
                "the client saw nothing".into(),
                std::io::ErrorKind::UnexpectedEof.into(),
            )
        })
    }

    fn signal(&self) {
        // An error means that it has ended.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.signal();
            // Reaped so that no zombie stays; its status says nothing that matters here.
            let _ = self.child.wait();
        }
    }
}
