//! The other overlays of the comparison: EasyTier, nebula, tinc and n2n, each configured as its
//! manual says for one well-known host, with its NAT traversal and relaying on.

use super::Overlay;
use crate::{n2n, testbed::Testbed};
use anyhow::{Context, bail};
use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The number of a host in its overlay address.
fn number(host: &str) -> usize {
    super::HOSTS
        .iter()
        .position(|h| *h == host)
        .map_or(0, |i| i + 1)
}

/// The first line that a program prints for an argument, or why it cannot be run.
fn ask(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("{} is not installed", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}

/// Runs a program to its end on this machine, outside the emulated hosts.
fn run(program: &str, arguments: &[&str], dir: &Path) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The processes of one program, by host; dropping it ends those that still run.
#[derive(Default)]
struct Processes(HashMap<String, Child>);

impl Processes {
    fn start(&mut self, bed: &Testbed, host: &str, command: &mut Command) -> anyhow::Result<()> {
        self.start_as(host, bed, host, command)
    }

    /// Starts a process under a name of its own, beside another on the same host.
    fn start_as(
        &mut self,
        name: &str,
        bed: &Testbed,
        host: &str,
        command: &mut Command,
    ) -> anyhow::Result<()> {
        let log = fs::File::create(bed.host(host)?.dir.join(format!("{name}.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.0.insert(name.into(), bed.spawn(host, command)?);
        Ok(())
    }

    fn stop(&mut self, host: &str) -> anyhow::Result<()> {
        if let Some(mut child) = self.0.remove(host) {
            // An error means that it has ended.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            for _ in 0..100 {
                if child.try_wait()?.is_some() {
                    return Ok(());
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.0.values_mut() {
            // An error means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn dir_of(bed: &Testbed, host: &str) -> anyhow::Result<PathBuf> {
    let dir = bed.host(host)?.dir.clone();
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn boot_address(bed: &Testbed) -> anyhow::Result<String> {
    Ok(bed.host("boot")?.address.to_string())
}

/// EasyTier: a mesh in user space with a list of initial peers.
pub(super) struct EasyTier {
    program: PathBuf,
    version: String,
    running: Processes,
}

impl EasyTier {
    pub(super) fn new(program: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: program.to_owned(),
            version: ask(program, "--version")?,
            running: Processes::default(),
        })
    }
}

impl Overlay for EasyTier {
    fn version(&self) -> String {
        format!("EasyTier ({})", self.version)
    }

    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()> {
        super::HOSTS
            .iter()
            .try_for_each(|host| dir_of(bed, host).map(drop))
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        let address = self.address(bed, host)?;
        command.args([
            "--ipv4",
            &address,
            "--network-name",
            "lab",
            "--network-secret",
            "a secret of the lab",
            "--hostname",
            host,
        ]);
        command.args([
            "--dev-name",
            "et0",
            "--rpc-portal",
            "0",
            "-l",
            "udp://0.0.0.0:11010",
            "-l",
            "tcp://0.0.0.0:11010",
        ]);
        if host != "boot" {
            command.args(["-p", &format!("udp://{}:11010", boot_address(bed)?)]);
        }
        self.running
            .start(bed, host, command.current_dir(dir_of(bed, host)?))
    }

    fn stop(&mut self, _bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.running.stop(host)
    }

    fn address(&self, _bed: &Testbed, host: &str) -> anyhow::Result<String> {
        Ok(format!("10.92.0.{}", number(host)))
    }
}

/// nebula: certificates, a lighthouse that also relays.
pub(super) struct Nebula {
    version: String,
    /// Whether the lighthouse relays. A pair that begins through a relay stays there.
    relays: bool,
    running: Processes,
}

impl Nebula {
    pub(super) fn new(relays: bool) -> anyhow::Result<Self> {
        ask(Path::new("nebula-cert"), "-version")?;
        Ok(Self {
            version: ask(Path::new("nebula"), "-version")?.replace("Version: ", ""),
            relays,
            running: Processes::default(),
        })
    }
}

impl Overlay for Nebula {
    fn version(&self) -> String {
        format!(
            "nebula {}, relay {}",
            self.version,
            if self.relays { "on" } else { "off" }
        )
    }

    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()> {
        let ca = dir_of(bed, "boot")?;
        run("nebula-cert", &["ca", "-name", "lab"], &ca)?;
        for host in super::HOSTS {
            let dir = dir_of(bed, host)?;
            let (crt, key) = (dir.join("host.crt"), dir.join("host.key"));
            let address = format!("{}/24", self.address(bed, host)?);
            let paths = (
                crt.to_string_lossy().into_owned(),
                key.to_string_lossy().into_owned(),
            );
            run(
                "nebula-cert",
                &[
                    "sign", "-name", host, "-ip", &address, "-out-crt", &paths.0, "-out-key",
                    &paths.1,
                ],
                &ca,
            )?;
            let lighthouse = host == "boot";
            let boot = self.address(bed, "boot")?;
            let use_relays = self.relays;
            let (known, hosts, relays) = if lighthouse {
                (String::from("{}"), String::from("[]"), String::from("[]"))
            } else {
                (
                    format!("{{ \"{boot}\": [\"{}:4242\"] }}", boot_address(bed)?),
                    format!("[\"{boot}\"]"),
                    format!("[\"{boot}\"]"),
                )
            };
            let config = format!(
                "pki: {{ ca: {ca}/ca.crt, cert: {crt}, key: {key} }}\nstatic_host_map: {known}\n\
                 lighthouse: {{ am_lighthouse: {lighthouse}, interval: 60, hosts: {hosts} \
                 }}\nlisten: {{ host: 0.0.0.0, port: 4242 }}\n\
                 punchy: {{ punch: true, respond: true }}\nrelay: {{ am_relay: {lighthouse}, \
                 use_relays: {use_relays}, relays: {relays} }}\n\
                 tun: {{ dev: nebula1, mtu: 1300 }}\nlogging: {{ level: info }}\n\
                 firewall:\n  outbound: [ {{ port: any, proto: any, host: any }} ]\n  inbound: [ \
                 {{ port: any, proto: any, host: any }} ]\n",
                ca = ca.display(),
                crt = crt.display(),
                key = key.display(),
            );
            fs::write(dir.join("nebula.yml"), config)?;
        }
        Ok(())
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        let config = dir_of(bed, host)?.join("nebula.yml");
        self.running
            .start(bed, host, Command::new("nebula").arg("-config").arg(config))
    }

    fn stop(&mut self, _bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.running.stop(host)
    }

    fn address(&self, _bed: &Testbed, host: &str) -> anyhow::Result<String> {
        Ok(format!("10.93.0.{}", number(host)))
    }
}

/// tinc 1.0: a mesh whose members find each other through those they are connected to.
pub(super) struct Tinc {
    version: String,
    running: Processes,
}

impl Tinc {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            version: ask(Path::new("tincd"), "--version")?,
            running: Processes::default(),
        })
    }
}

impl Overlay for Tinc {
    fn version(&self) -> String {
        self.version.replace("version ", "")
    }

    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()> {
        let mut keys = Vec::new();
        for host in super::HOSTS {
            let dir = dir_of(bed, host)?;
            fs::create_dir_all(dir.join("hosts"))?;
            let connect = if host == "boot" {
                ""
            } else {
                "ConnectTo = boot\n"
            };
            fs::write(
                dir.join("tinc.conf"),
                format!("Name = {host}\nInterface = tinc0\nMode = router\n{connect}"),
            )?;
            let address = self.address(bed, host)?;
            let up = format!(
                "#!/bin/sh\nip link set tinc0 up mtu 1400\nip addr add {address}/24 dev tinc0\n"
            );
            fs::write(dir.join("tinc-up"), up)?;
            fs::set_permissions(dir.join("tinc-up"), fs::Permissions::from_mode(0o755))?;
            let known = if host == "boot" {
                format!("Address = {}\n", boot_address(bed)?)
            } else {
                String::new()
            };
            fs::write(
                dir.join("hosts").join(host),
                format!("{known}Subnet = {address}/32\n"),
            )?;
            run("tincd", &["-c", &dir.to_string_lossy(), "-K", "2048"], &dir)?;
            keys.push((host, fs::read(dir.join("hosts").join(host))?));
        }
        for host in super::HOSTS {
            for (other, key) in &keys {
                fs::write(dir_of(bed, host)?.join("hosts").join(other), key)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        let dir = dir_of(bed, host)?;
        let mut command = Command::new("tincd");
        command
            .arg("-c")
            .arg(&dir)
            .arg(format!("--pidfile={}", dir.join("tinc.pid").display()))
            .arg("-D");
        self.running.start(bed, host, &mut command)
    }

    fn stop(&mut self, _bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.running.stop(host)
    }

    fn address(&self, _bed: &Testbed, host: &str) -> anyhow::Result<String> {
        Ok(format!("10.94.0.{}", number(host)))
    }
}

/// n2n: edges that register with a supernode, which relays until they find each other.
pub(super) struct N2n {
    version: String,
    running: Processes,
}

impl N2n {
    pub(super) fn new() -> anyhow::Result<Self> {
        ask(Path::new("supernode"), "-h")?;
        Ok(Self {
            version: ask(Path::new("edge"), "-h")?,
            running: Processes::default(),
        })
    }
}

impl Overlay for N2n {
    fn version(&self) -> String {
        // "Welcome to n2n v.1.3.2 for unknown"
        self.version
            .split_whitespace()
            .find(|w| w.starts_with("v."))
            .map_or("n2n".into(), |v| {
                format!("n2n {}", v.trim_start_matches("v."))
            })
    }

    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()> {
        super::HOSTS
            .iter()
            .try_for_each(|host| dir_of(bed, host).map(drop))
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        if host == "boot" {
            let mut supernode = n2n::supernode(Path::new("supernode"));
            self.running
                .start_as("supernode", bed, host, &mut supernode)?;
        }
        let (address, supernode) = (self.address(bed, host)?, boot_address(bed)?);
        let mut command = n2n::edge(Path::new("edge"), &address, &supernode);
        self.running.start(bed, host, &mut command)
    }

    fn stop(&mut self, _bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.running.stop(host)
    }

    fn address(&self, _bed: &Testbed, host: &str) -> anyhow::Result<String> {
        Ok(format!("10.95.0.{}", number(host)))
    }
}
