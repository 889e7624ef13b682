//! Where the programs are measured: two hosts on one cable, two hosts that reach each other only
//! through a third, or two hosts of an emulated wide area with delay and loss. Each has a network
//! namespace and a directory of its own; all are removed with the stage.

use crate::{
    keeper::Life,
    namespace,
    sites::{Properties, Sites},
    testbed::{self, Testbed},
};
use anyhow::Context;
use std::{
    ffi::{OsStr, OsString},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The prefix of the namespaces' names; this process's id follows.
const PREFIX: &str = "p2pvm-nb-";
/// The prefix of the directories' names.
const DIR: &str = "p2pvm-bench-net";

/// This program, as a stage starts it for further commands.
#[derive(Clone)]
pub(super) struct ThisProgram {
    pub file: PathBuf,
    /// The arguments before a `testbed` command.
    pub arguments: Vec<OsString>,
}

impl ThisProgram {
    /// One of its `testbed` commands.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.file);
        command.args(&self.arguments).arg(name);
        command
    }
}

/// How the two hosts at the ends are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology {
    /// One veth pair.
    Direct,
    /// Two veth pairs that end at a third host, which does not route between them.
    Middle,
    /// As `Middle`, but the third host routes: the bound of the path.
    Routed,
    /// An emulated wide area of this round trip.
    Far {
        /// Milliseconds.
        rtt_ms: u32,
    },
}

/// One host.
pub(super) struct Host {
    pub name: &'static str,
    pub namespace: String,
    /// Its address on the cable; on the third host, on that to `a`.
    pub address: IpAddr,
    /// Its address on the other cable, on the third host.
    pub second: Option<IpAddr>,
    pub dir: PathBuf,
}

/// Hosts to run programs on.
pub(super) struct Stage {
    pub topology: Topology,
    /// `a`, `b` and, if there is one, the third host `m`.
    pub hosts: Vec<Host>,
    bed: Option<Testbed>,
    root: Option<PathBuf>,
}

impl Stage {
    /// Makes the hosts. `own` keeps testbeds; `name` is unique among the stages of this process.
    pub fn up(own: &ThisProgram, topology: Topology, name: &str) -> anyhow::Result<Self> {
        if let Topology::Far { rtt_ms } = topology {
            return Self::far(own, rtt_ms, name);
        }
        let root = std::env::temp_dir().join(format!("{DIR}-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let mut stage = Self {
            topology,
            hosts: Vec::new(),
            bed: None,
            root: Some(root.clone()),
        };
        let names: &[&'static str] = if topology == Topology::Direct {
            &["a", "b"]
        } else {
            &["a", "b", "m"]
        };
        for name_of in names {
            let namespace = format!("{PREFIX}{}-{name}-{name_of}", std::process::id());
            namespace::create(&namespace)?;
            let (address, second): (IpAddr, Option<IpAddr>) = match (topology, *name_of) {
                (_, "a") => ([172, 29, 1, 1].into(), None),
                (Topology::Direct, _) => ([172, 29, 1, 2].into(), None),
                (_, "b") => ([172, 29, 2, 2].into(), None),
                _ => ([172, 29, 1, 9].into(), Some([172, 29, 2, 9].into())),
            };
            let dir = root.join(name_of);
            fs::create_dir_all(&dir)?;
            stage.hosts.push(Host {
                name: name_of,
                namespace,
                address,
                second,
                dir,
            });
        }
        let [a, b] = [&stage.hosts[0].namespace, &stage.hosts[1].namespace];
        match topology {
            Topology::Direct => cable((a, "172.29.1.1/24"), (b, "172.29.1.2/24"), "0")?,
            _ => {
                let m = &stage.hosts[2].namespace;
                cable((a, "172.29.1.1/24"), (m, "172.29.1.9/24"), "0")?;
                cable((b, "172.29.2.2/24"), (m, "172.29.2.9/24"), "1")?;
                let routes = u8::from(topology == Topology::Routed);
                namespace::inside(m, || {
                    fs::write("/proc/sys/net/ipv4/ip_forward", routes.to_string())
                })??;
                // Both get a route; only the third host decides whether it forwards.
                ip(&["-n", a, "route", "add", "default", "via", "172.29.1.9"])?;
                ip(&["-n", b, "route", "add", "default", "via", "172.29.2.9"])?;
            }
        }
        Ok(stage)
    }

    fn far(own: &ThisProgram, rtt_ms: u32, name: &str) -> anyhow::Result<Self> {
        let sites = format!(
            "seed = 5\n[default]\nrtt_ms = {rtt_ms}\n[[site]]\nname = \"a\"\n[[site]]\nname \
                = \"b\"\n"
        );
        let sites = Sites::parse(&sites)?;
        let arguments: Vec<&OsStr> = own.arguments.iter().map(OsString::as_os_str).collect();
        let bed = Testbed::up_by(
            &own.file,
            &arguments,
            &sites,
            &format!("nb-{}-{name}", std::process::id()),
            Life::Tied,
        )?;
        let mut hosts = Vec::new();
        for name in ["a", "b"] {
            let host = bed.host(name)?;
            fs::create_dir_all(&host.dir)?;
            // One segment a packet, so that a loss is one packet of a wire and not a whole batch.
            ip(&[
                "-n",
                &host.namespace,
                "link",
                "set",
                "dev",
                "eth0",
                "gso_max_segs",
                "1",
            ])?;
            hosts.push(Host {
                name,
                namespace: host.namespace.clone(),
                address: host.address,
                second: None,
                dir: host.dir.clone(),
            });
        }
        Ok(Self {
            topology: Topology::Far { rtt_ms },
            hosts,
            bed: Some(bed),
            root: None,
        })
    }

    /// Sets the share of packets that are lost each way, in percent.
    pub fn lose(&self, rtt_ms: u32, percent: f64) -> anyhow::Result<()> {
        let bed = self
            .bed
            .as_ref()
            .context("only an emulated wide area loses packets")?;
        let shape = Properties {
            rtt_ms: Some(f64::from(rtt_ms)),
            loss: Some(percent / 100.0),
            ..Properties::default()
        };
        Ok(bed.reshape("a", "b", shape)?)
    }

    /// The address at which `host` reaches `other` on the cable.
    pub fn reach(&self, host: usize, other: usize) -> IpAddr {
        let there = &self.hosts[other];
        if host == 1 {
            there.second.unwrap_or(there.address)
        } else {
            there.address
        }
    }

    /// Runs `action` in a thread on the host's network; sockets made there stay there.
    pub fn inside<T: Send>(
        &self,
        host: usize,
        action: impl FnOnce() -> T + Send,
    ) -> Result<T, testbed::Error> {
        namespace::inside(&self.hosts[host].namespace, action)
    }

    /// Starts a command on a host; its output goes to `<log>.log` in the host's directory.
    pub fn spawn(&self, host: usize, log: &str, command: &mut Command) -> anyhow::Result<Child> {
        let host = &self.hosts[host];
        let log = fs::File::create(host.dir.join(format!("{log}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(&host.dir)
            .env("P2PVM_DIR", &host.dir);
        let line = command.get_program().to_string_lossy().into_owned();
        namespace::as_machine(&host.namespace, host.name, || command.spawn())?
            .with_context(|| format!("cannot run {line}"))
    }

    /// Runs a command on a host to its end; returns its output, or an error with its messages.
    pub fn run(&self, host: usize, argv: &[&str]) -> anyhow::Result<String> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        let host = &self.hosts[host];
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(&host.dir)
            .env("P2PVM_DIR", &host.dir);
        let output = namespace::as_machine(&host.namespace, host.name, || command.output())?
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            anyhow::bail!(
                "{} on {}: {}",
                argv.join(" "),
                host.name,
                String::from_utf8_lossy(&said).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.bed.is_some() {
            return;
        }
        for host in &self.hosts {
            // All processes there were started for this stage. An error means that the name is
            // gone.
            let _ = namespace::kill_processes(&host.namespace, &host.dir);
            let _ = namespace::delete(&host.namespace);
        }
        if let Some(root) = &self.root {
            let _ = fs::remove_dir_all(root);
        }
    }
}

/// Removes what killed runs left: namespaces of processes that have ended.
pub(super) fn sweep() {
    for name in namespace::list(PREFIX) {
        let Some(pid) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let _ = namespace::kill_processes(&name, Path::new("/nonexistent"));
            let _ = namespace::delete(&name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), testbed::Error> {
    namespace::run("ip", arguments, "")
}

/// Joins two namespaces by a veth pair whose ends are both named `eth<number>`.
fn cable(
    (a, a_address): (&str, &str),
    (b, b_address): (&str, &str),
    number: &str,
) -> anyhow::Result<()> {
    let name = format!("eth{number}");
    ip(&[
        "-n", a, "link", "add", &name, "type", "veth", "peer", "name", &name, "netns", b,
    ])?;
    for (namespace, address) in [(a, a_address), (b, b_address)] {
        ip(&["-n", namespace, "addr", "add", address, "dev", &name])?;
        ip(&["-n", namespace, "link", "set", &name, "up"])?;
    }
    Ok(())
}
