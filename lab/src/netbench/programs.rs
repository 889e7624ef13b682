//! The programs that are measured, each configured as its manual says for hosts that know each
//! other's addresses. Where they are joined only by a third host, that one is told to relay
//! (nebula, EasyTier, n2n, tinc, p2pvm) or to route (WireGuard, which has no relays: the third
//! host decrypts and encrypts again).

mod others;
mod own;
mod wireguard;

use super::stage::{Stage, ThisProgram};
use anyhow::Context;
use others::{easytier, n2n, nebula, tinc};
use own::{p2pvm, pair, plain};
use std::{
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use wireguard::wireguard;

/// How long a device or control socket may take to appear before its program counts as failed.
const APPEAR: Duration = Duration::from_secs(10);

/// The programs, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgramName {
    /// The cable alone
    Raw,
    /// Our forwarder without encryption
    Plain,
    /// This program
    P2pvm,
    /// wireguard-go
    WireguardGo,
    /// gotatun
    Gotatun,
    /// boringtun
    Boringtun,
    /// EasyTier
    Easytier,
    /// nebula
    Nebula,
    /// tinc
    Tinc,
    /// n2n
    N2n,
    /// Packet planes without the rest
    #[value(skip)]
    Pair,
}

impl ProgramName {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Raw,
        Self::Plain,
        Self::P2pvm,
        Self::WireguardGo,
        Self::Gotatun,
        Self::Boringtun,
        Self::Easytier,
        Self::Nebula,
        Self::Tinc,
        Self::N2n,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw veth",
            Self::Plain => "plain forwarder, no encryption",
            Self::P2pvm => "p2pvm",
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::Easytier => "EasyTier",
            Self::Nebula => "nebula",
            Self::Tinc => "tinc",
            Self::N2n => "n2n",
            Self::Pair => "planes",
        }
    }

    /// Letters for names of interfaces and namespaces.
    pub fn short(self) -> String {
        format!("{self:?}").to_lowercase().chars().take(5).collect()
    }
}

/// Where the executables are.
pub(super) struct Places {
    pub p2pvm: PathBuf,
    pub plain: ThisProgram,
    pub peers: PathBuf,
    pub easytier: Option<PathBuf>,
}

impl Places {
    /// A peer's executable: in the directory of those built for this, else on the path.
    fn find(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = vec![self.peers.clone()];
        dirs.extend(std::env::split_paths(&path));
        dirs.push("/usr/sbin".into());
        let found = dirs
            .iter()
            .map(|dir| dir.join(name))
            .find(|file| file.is_file());
        found.with_context(|| {
            format!("{name} is not installed (scripts/bench-peers.sh installs it)")
        })
    }

    /// The executable that `which` needs first.
    fn program(&self, which: ProgramName) -> anyhow::Result<PathBuf> {
        match which {
            ProgramName::Raw => Ok(PathBuf::new()),
            ProgramName::Plain => Ok(self.plain.file.clone()),
            ProgramName::P2pvm | ProgramName::Pair => Ok(self.p2pvm.clone()),
            ProgramName::WireguardGo => self.find("wireguard-go"),
            ProgramName::Gotatun => self.find("gotatun"),
            ProgramName::Boringtun => self.find("boringtun-cli"),
            ProgramName::Easytier => self
                .easytier
                .clone()
                .map_or_else(|| self.find("easytier-core"), Ok),
            ProgramName::Nebula => self.find("nebula"),
            ProgramName::Tinc => self.find("tincd"),
            ProgramName::N2n => self.find("edge"),
        }
    }

    /// The version that the program prints, or why it cannot be run.
    pub fn version(&self, which: ProgramName) -> anyhow::Result<String> {
        let program = self.program(which)?;
        let argument = match which {
            ProgramName::Raw | ProgramName::Plain | ProgramName::Pair => return Ok(String::new()),
            // The program prints another number than Debian's package carries.
            ProgramName::WireguardGo => {
                return Ok(debian_version("wireguard-go").unwrap_or_default());
            }
            ProgramName::Nebula => "-version",
            ProgramName::N2n => "-h",
            _ => "--version",
        };
        let output = Command::new(&program)
            .arg(argument)
            .stdin(Stdio::null())
            .output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let word = text.split_whitespace().map(|w| {
            w.trim_start_matches("v.")
                .trim_start_matches('v')
                .trim_end_matches(',')
        });
        let number = word
            .into_iter()
            .find(|w| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.'));
        Ok(number.unwrap_or_default().to_owned())
    }
}

fn debian_version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", package])
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program that runs on all hosts of a stage; it ends when this is dropped.
pub(super) struct RunningProgram {
    /// Each with the index of its host.
    daemons: Vec<(usize, Child)>,
    /// The overlay addresses of `a` and `b`.
    pub addresses: [IpAddr; 2],
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        for (_, child) in &mut self.daemons {
            // A program with an open input ends when that closes, and cleans up; others are killed.
            if child.stdin.take().is_none() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

impl RunningProgram {
    /// Process ids of the daemons on these hosts.
    pub fn pids(&self, hosts: &[usize]) -> Vec<u32> {
        self.daemons
            .iter()
            .filter(|(host, _)| hosts.contains(host))
            .map(|(_, child)| child.id())
            .collect()
    }

    /// Starts `which` on all hosts of the stage.
    pub fn start(which: ProgramName, places: &Places, stage: &Stage) -> anyhow::Result<Self> {
        let program = places.program(which)?;
        let overlay = |net: u8| [IpAddr::from([10, net, 0, 1]), IpAddr::from([10, net, 0, 2])];
        let mut running = Self {
            daemons: Vec::new(),
            addresses: overlay(90),
        };
        match which {
            ProgramName::Raw => running.addresses = [stage.reach(1, 0), stage.hosts[1].address],
            ProgramName::Plain => plain(&mut running, &places.plain, stage)?,
            ProgramName::P2pvm => p2pvm(&mut running, &program, stage)?,
            ProgramName::WireguardGo | ProgramName::Gotatun | ProgramName::Boringtun => {
                wireguard(&mut running, which, &program, stage)?
            }
            ProgramName::Pair => pair(&mut running, &program, stage)?,
            ProgramName::Easytier => easytier(&mut running, &program, stage)?,
            ProgramName::Nebula => nebula(&mut running, &program, stage)?,
            ProgramName::Tinc => tinc(&mut running, &program, stage)?,
            ProgramName::N2n => n2n(&mut running, &program, &places.find("supernode")?, stage)?,
        }
        Ok(running)
    }

    fn daemon(&mut self, stage: &Stage, host: usize, command: &mut Command) -> anyhow::Result<()> {
        let child = stage.spawn(host, &format!("daemon{}", self.daemons.len()), command)?;
        self.daemons.push((host, child));
        Ok(())
    }
}

/// The last octet of a host's overlay address.
fn octet(host: usize) -> u8 {
    host as u8 + 1
}

/// The host whose address all others are configured with: the one in the middle, or `a`.
fn first(stage: &Stage) -> usize {
    if stage.hosts.len() > 2 { 2 } else { 0 }
}

/// Retries `action` until it succeeds or [`APPEAR`] has passed.
fn until<T>(mut action: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match action() {
            Ok(done) => return Ok(done),
            Err(_) if began.elapsed() < APPEAR => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error),
        }
    }
}
