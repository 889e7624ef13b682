//! The programs that are measured, each configured as its manual says for hosts that know each
//! other's addresses. Where they are joined only by a third host, that one is told to relay
//! (nebula, EasyTier, n2n, tinc, p2pvm) or to route (WireGuard, which knows no relays: the third
//! host decrypts and encrypts again).

use super::stage::{Own, Stage, Way};
use anyhow::{Context, bail};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A device or control socket that has not appeared by then never will.
const APPEAR: Duration = Duration::from_secs(10);

/// What can be measured, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
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

impl Which {
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

    /// What the table calls it.
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
    pub plain: Own,
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
    fn program(&self, which: Which) -> anyhow::Result<PathBuf> {
        match which {
            Which::Raw => Ok(PathBuf::new()),
            Which::Plain => Ok(self.plain.file.clone()),
            Which::P2pvm | Which::Pair => Ok(self.p2pvm.clone()),
            Which::WireguardGo => self.find("wireguard-go"),
            Which::Gotatun => self.find("gotatun"),
            Which::Boringtun => self.find("boringtun-cli"),
            Which::Easytier => self
                .easytier
                .clone()
                .map_or_else(|| self.find("easytier-core"), Ok),
            Which::Nebula => self.find("nebula"),
            Which::Tinc => self.find("tincd"),
            Which::N2n => self.find("edge"),
        }
    }

    /// What the program says of its version; why it cannot be run, if it cannot.
    pub fn version(&self, which: Which) -> anyhow::Result<String> {
        let program = self.program(which)?;
        let argument = match which {
            Which::Raw | Which::Plain | Which::Pair => return Ok(String::new()),
            // Debian's package carries another number than the program says.
            Which::WireguardGo => return Ok(debian_version("wireguard-go").unwrap_or_default()),
            Which::Nebula => "-version",
            Which::N2n => "-h",
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
pub(super) struct Running {
    /// With the host of each.
    daemons: Vec<(usize, Child)>,
    /// Of `a` and `b`, in the overlay.
    pub addresses: [IpAddr; 2],
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.daemons {
            // One that ends with its input cleans up; one that is dead already is as good.
            if child.stdin.take().is_none() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

impl Running {
    /// Processes on these hosts.
    pub fn pids(&self, hosts: &[usize]) -> Vec<u32> {
        self.daemons
            .iter()
            .filter(|(host, _)| hosts.contains(host))
            .map(|(_, child)| child.id())
            .collect()
    }

    /// Starts `which` on all hosts of the stage.
    pub fn start(which: Which, places: &Places, stage: &Stage) -> anyhow::Result<Self> {
        let program = places.program(which)?;
        let overlay = |net: u8| [IpAddr::from([10, net, 0, 1]), IpAddr::from([10, net, 0, 2])];
        let mut running = Self {
            daemons: Vec::new(),
            addresses: overlay(90),
        };
        match which {
            Which::Raw => running.addresses = [stage.reach(1, 0), stage.hosts[1].address],
            Which::Plain => plain(&mut running, &places.plain, stage)?,
            Which::P2pvm => p2pvm(&mut running, &program, stage)?,
            Which::WireguardGo | Which::Gotatun | Which::Boringtun => {
                wireguard(&mut running, which, &program, stage)?
            }
            Which::Pair => pair(&mut running, &program, stage)?,
            Which::Easytier => easytier(&mut running, &program, stage)?,
            Which::Nebula => nebula(&mut running, &program, stage)?,
            Which::Tinc => tinc(&mut running, &program, stage)?,
            Which::N2n => n2n(&mut running, &program, &places.find("supernode")?, stage)?,
        }
        Ok(running)
    }

    fn daemon(&mut self, stage: &Stage, host: usize, command: &mut Command) -> anyhow::Result<()> {
        let child = stage.spawn(host, &format!("daemon{}", self.daemons.len()), command)?;
        self.daemons.push((host, child));
        Ok(())
    }
}

/// Where the last octet of a host's overlay address comes from.
fn octet(host: usize) -> u8 {
    host as u8 + 1
}

/// The host that all know first: the one in the middle, or `a`.
fn first(stage: &Stage) -> usize {
    if stage.hosts.len() > 2 { 2 } else { 0 }
}

/// Runs `action` until it succeeds.
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

fn plain(running: &mut Running, own: &Own, stage: &Stage) -> anyhow::Result<()> {
    for host in 0..2 {
        let to = stage.reach(host, if stage.hosts.len() > 2 { 2 } else { 1 - host });
        let mut command = own.command("plain-tunnel");
        command.args(["--listen", "0.0.0.0:9000", "--to", &format!("{to}:9000")]);
        running.daemon(
            stage,
            host,
            command.args(["--address", &running.addresses[host].to_string()]),
        )?;
    }
    if stage.hosts.len() > 2 {
        let (a, b) = (
            format!("{}:9000", stage.hosts[0].address),
            format!("{}:9000", stage.hosts[1].address),
        );
        let mut command = own.command("plain-tunnel");
        running.daemon(
            stage,
            2,
            command.args(["--listen", "0.0.0.0:9000", "--to", &a, "--to", &b]),
        )?;
    }
    Ok(())
}

fn p2pvm(running: &mut Running, program: &Path, stage: &Stage) -> anyhow::Result<()> {
    let program_name = program.to_string_lossy().into_owned();
    let call = |host: usize, words: &[&str]| -> anyhow::Result<serde_json::Value> {
        let argv: Vec<&str> = std::iter::once(&*program_name)
            .chain(words.iter().copied())
            .chain(["--json"])
            .collect();
        Ok(serde_json::from_str(&stage.run(host, &argv)?).unwrap_or_default())
    };
    let hub = first(stage);
    // No limit for the relay, and the machine's own resolver is left alone.
    let config = "cpus = 1\naccel = \"tcg\"\nresolver = \"off\"\nupnp = false\nrelay_mbit = 0\n";
    stage
        .hosts
        .iter()
        .try_for_each(|host| fs::write(host.dir.join("node.toml"), config))?;
    let up = |running: &mut Running, host: usize| {
        running.daemon(stage, host, Command::new(program).arg("up"))
    };
    call(hub, &["init", "--network", "lab"])?;
    up(running, hub)?;
    let invite = until(|| call(hub, &["invite", "--uses", "4"]))?;
    let invite = invite["invite"].as_str().context("no invite")?.to_owned();
    for host in (0..stage.hosts.len()).filter(|host| *host != hub) {
        call(host, &["join", &invite])?;
        up(running, host)?;
    }
    for host in 0..2 {
        let address = until(|| {
            call(host, &["status"])?["address"]
                .as_str()
                .map(str::to_owned)
                .context("no address yet")
        })?;
        running.addresses[host] = address
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()
            .context("an odd address")?;
    }
    Ok(())
}

/// `overlay/benches/pair.rs`: one process with a plane in each namespace.
fn pair(running: &mut Running, program: &Path, stage: &Stage) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command
        .args(stage.hosts.iter().map(|host| &host.namespace))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run the planes")?;
    let stdout = child.stdout.take();
    running.daemons.push((0, child));
    let mut line = String::new();
    stdout
        .map(|out| BufReader::new(out).read_line(&mut line))
        .transpose()?;
    let mut addresses = line.split_whitespace().map(str::parse);
    let mut next = || {
        addresses
            .next()
            .context("the planes did not start")?
            .context("an odd address")
    };
    running.addresses = [next()?, next()?];
    Ok(())
}

fn wireguard(
    running: &mut Running,
    which: Which,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    const DEVICE: &str = "wgbench0";
    let keys: Vec<(String, String)> = stage
        .hosts
        .iter()
        .map(|host| {
            let secret = said("wg", &["genkey"], "")?;
            fs::write(host.dir.join("secret"), &secret)?;
            let public = said("wg", &["pubkey"], &secret)?;
            Ok((secret, public))
        })
        .collect::<anyhow::Result<_>>()?;
    for host in 0..stage.hosts.len() {
        let mut command = Command::new(program);
        match which {
            Which::WireguardGo => command.args(["-f", DEVICE]),
            // Otherwise they give up root, which some of their sandboxes do not allow.
            _ => command.args(["--foreground", "--disable-drop-privileges", DEVICE]),
        };
        // Its control socket's directory is shared by all namespaces: each has its own.
        let inside = "mkdir -p run && mount --bind run /var/run/wireguard && exec \"$0\" \"$@\"";
        let mut shell = Command::new("unshare");
        shell
            .args(["--mount", "sh", "-c", inside])
            .arg(command.get_program())
            .args(command.get_args());
        fs::create_dir_all("/var/run/wireguard")?;
        running.daemon(stage, host, &mut shell)?;
        let pid = running
            .daemons
            .last()
            .map(|(_, child)| child.id())
            .unwrap_or_default()
            .to_string();
        let wg = |words: &[&str]| {
            let argv: Vec<&str> = ["nsenter", "-m", "-t", &pid, "wg"]
                .into_iter()
                .chain(words.iter().copied())
                .collect();
            stage.run(host, &argv)
        };
        let secret = stage.hosts[host]
            .dir
            .join("secret")
            .to_string_lossy()
            .into_owned();
        until(|| {
            wg(&[
                "set",
                DEVICE,
                "listen-port",
                "51820",
                "private-key",
                &secret,
            ])
        })?;
        let others: Vec<(usize, String)> = match (stage.hosts.len(), host) {
            (2, host) => vec![(1 - host, format!("10.90.0.{}/32", octet(1 - host)))],
            (_, 2) => vec![(0, "10.90.0.1/32".into()), (1, "10.90.0.2/32".into())],
            _ => vec![(2, "10.90.0.0/24".into())],
        };
        for (other, allowed) in others {
            let endpoint = format!(
                "{}:51820",
                if host == 2 {
                    stage.hosts[other].address
                } else {
                    stage.reach(host, other)
                }
            );
            wg(&[
                "set",
                DEVICE,
                "peer",
                &keys[other].1,
                "allowed-ips",
                &allowed,
                "endpoint",
                &endpoint,
            ])?;
        }
        stage.run(
            host,
            &[
                "ip",
                "addr",
                "add",
                &format!("10.90.0.{}/24", octet(host)),
                "dev",
                DEVICE,
            ],
        )?;
        stage.run(host, &["ip", "link", "set", DEVICE, "mtu", "1420", "up"])?;
        if host == 2 {
            // It routes between its two tunnels, and still not between its two cables.
            stage.inside(host, || {
                fs::write("/proc/sys/net/ipv4/conf/wgbench0/forwarding", "1")
            })??;
        }
    }
    Ok(())
}

fn easytier(running: &mut Running, program: &Path, stage: &Stage) -> anyhow::Result<()> {
    let hub = first(stage);
    for host in 0..stage.hosts.len() {
        let mut command = Command::new(program);
        let address = format!("10.90.0.{}", octet(host));
        command.args([
            "--ipv4",
            &address,
            "--network-name",
            "lab",
            "--network-secret",
            "a secret of the lab",
            "--multi-thread",
        ]);
        command.args([
            "--dev-name",
            "et0",
            "--rpc-portal",
            "0",
            "-l",
            "udp://0.0.0.0:11010",
            "--hostname",
            stage.hosts[host].name,
        ]);
        if host != hub {
            command.args(["-p", &format!("udp://{}:11010", stage.reach(host, hub))]);
        }
        running.daemon(stage, host, &mut command)?;
    }
    Ok(())
}

fn nebula(running: &mut Running, program: &Path, stage: &Stage) -> anyhow::Result<()> {
    let (hub, middle) = (first(stage), stage.way == Way::Middle);
    let ca = stage.hosts[hub].dir.to_string_lossy().into_owned();
    let cert = program
        .with_file_name("nebula-cert")
        .to_string_lossy()
        .into_owned();
    stage.run(hub, &[&cert, "ca", "-name", "lab"])?;
    for (host, there) in stage.hosts.iter().enumerate() {
        let (crt, key) = (there.dir.join("host.crt"), there.dir.join("host.key"));
        let (crt, key) = (crt.to_string_lossy(), key.to_string_lossy());
        let address = format!("10.90.0.{}/24", octet(host));
        stage.run(
            hub,
            &[
                &cert, "sign", "-name", there.name, "-ip", &address, "-out-crt", &crt, "-out-key",
                &key,
            ],
        )?;
        let hub_address = format!("10.90.0.{}", octet(hub));
        let is_hub = host == hub;
        let known = if is_hub {
            "{}".into()
        } else {
            format!(
                "{{ \"{hub_address}\": [\"{}:4242\"] }}",
                stage.reach(host, hub)
            )
        };
        let hubs = if is_hub {
            "[]".into()
        } else {
            format!("[\"{hub_address}\"]")
        };
        let config = format!(
            "pki: {{ ca: {ca}/ca.crt, cert: {crt}, key: {key} }}\nstatic_host_map: {known}\n\
             lighthouse: {{ am_lighthouse: {is_hub}, interval: 60, hosts: {hubs} }}\nlisten: {{ \
             host: 0.0.0.0, port: 4242, batch: 64 }}\n\
             relay: {{ am_relay: {am_relay}, use_relays: {middle}, relays: {relays} }}\ncipher: \
             aes\n\
             tun: {{ dev: nebula1, mtu: 1300 }}\nlogging: {{ level: warning }}\n\
             firewall:\n  outbound: [ {{ port: any, proto: any, host: any }} ]\n  inbound: [ {{ \
             port: any, proto: any, host: any }} ]\n",
            am_relay = middle && is_hub,
            relays = if middle { hubs.clone() } else { "[]".into() },
        );
        fs::write(there.dir.join("nebula.yml"), config)?;
        running.daemon(
            stage,
            host,
            Command::new(program)
                .arg("-config")
                .arg(there.dir.join("nebula.yml")),
        )?;
    }
    Ok(())
}

fn tinc(running: &mut Running, program: &Path, stage: &Stage) -> anyhow::Result<()> {
    let hub = first(stage);
    let mut keys = Vec::new();
    for (host, there) in stage.hosts.iter().enumerate() {
        let (dir, name) = (&there.dir, there.name);
        fs::create_dir_all(dir.join("hosts"))?;
        let connect = if host == hub {
            String::new()
        } else {
            format!("ConnectTo = {}\n", stage.hosts[hub].name)
        };
        fs::write(
            dir.join("tinc.conf"),
            format!("Name = {name}\nInterface = tinc0\nMode = router\n{connect}"),
        )?;
        let address = format!("10.90.0.{}", octet(host));
        fs::write(
            dir.join("tinc-up"),
            format!(
                "#!/bin/sh\nip link set tinc0 up mtu 1400\nip addr add {address}/24 dev tinc0\n"
            ),
        )?;
        fs::set_permissions(dir.join("tinc-up"), fs::Permissions::from_mode(0o755))?;
        fs::write(
            dir.join("hosts").join(name),
            format!("Subnet = {address}/32\n"),
        )?;
        stage.run(
            host,
            &[
                &program.to_string_lossy(),
                "-c",
                &dir.to_string_lossy(),
                "-K",
                "2048",
            ],
        )?;
        keys.push((name, fs::read_to_string(dir.join("hosts").join(name))?));
    }
    for (host, there) in stage.hosts.iter().enumerate() {
        for (other, (name, key)) in keys.iter().enumerate() {
            let known = if other == hub && host != hub {
                format!("Address = {}\n", stage.reach(host, hub))
            } else {
                String::new()
            };
            fs::write(there.dir.join("hosts").join(name), format!("{known}{key}"))?;
        }
    }
    for (host, there) in stage.hosts.iter().enumerate() {
        let pidfile = format!("--pidfile={}", there.dir.join("tinc.pid").display());
        running.daemon(
            stage,
            host,
            Command::new(program)
                .arg("-c")
                .arg(&there.dir)
                .args([&pidfile, "-D"]),
        )?;
    }
    Ok(())
}

fn n2n(
    running: &mut Running,
    program: &Path,
    supernode: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let hub = first(stage);
    running.daemon(stage, hub, Command::new(supernode).args(["-l", "7654"]))?;
    for host in 0..2 {
        let mut command = Command::new(program);
        command.args([
            "-d",
            "n2n0",
            "-c",
            "lab",
            "-k",
            "secret",
            "-a",
            &format!("10.90.0.{}", octet(host)),
        ]);
        // By its own name it does not set the address of every kernel's TAP the same way: the mask
        // is given.
        command.args([
            "-s",
            "255.255.255.0",
            "-l",
            &format!("{}:7654", stage.reach(host, hub)),
        ]);
        running.daemon(stage, host, &mut command)?;
    }
    Ok(())
}

/// Runs a program here, feeding it `input`; the line it prints.
fn said(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    use std::io::Write;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| {
        format!("{program} is not installed (scripts/bench-peers.sh installs it)")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_string(&mut text)?;
    }
    if !child.wait()?.success() {
        bail!("{program} {} failed", arguments.join(" "));
    }
    Ok(text.trim().to_owned())
}
