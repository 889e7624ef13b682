//! Which ways to look up names this machine has now: what is alive, not what is installed.

use super::{
    file,
    nsswitch::{self, Ways},
    text::{self, NameServer},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The only addresses that systemd-resolved listens on (systemd-resolved.service(8)).
const STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
/// How long to wait for a name server.
/// Reason: a slower one is of no use to programs.
pub const ANSWER: Duration = Duration::from_secs(2);
/// How long to wait for `resolvectl`.
/// Reason: it waits for a bus and a service that may both hang.
const TOLD: Duration = Duration::from_secs(5);

/// The paths of files and sockets; tests have their own.
#[derive(Clone, Debug)]
pub struct Places {
    /// The list of name servers.
    pub resolv_conf: PathBuf,
    /// The configuration of the C library glibc's look-ups.
    pub nsswitch: PathBuf,
    /// The socket of systemd-resolved.
    pub resolved: PathBuf,
    /// The directories of the C libraries' loaders.
    pub loaders: Vec<PathBuf>,
    /// Sockets of programs that copy the list of name servers for their containers.
    pub containers: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            nsswitch: "/etc/nsswitch.conf".into(),
            resolved: "/run/systemd/resolve/io.systemd.Resolve".into(),
            loaders: vec!["/lib".into(), "/lib64".into()],
            containers: [
                "docker.sock",
                "podman/podman.sock",
                "containerd/containerd.sock",
            ]
            .map(|s| Path::new("/run").join(s))
            .into(),
        }
    }
}

/// The state of systemd-resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It is not there.
    Absent,
    /// Its socket is there, but nothing listens.
    Dead,
    /// It takes questions and does not answer.
    Hangs,
    /// It answers.
    Alive,
}

/// Asks systemd-resolved's varlink service.
fn varlink(
    socket_at: &Path,
    method: &str,
    parameters: &Value,
    limit: Duration,
) -> io::Result<Value> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // It does not wait: a service that hangs has a full queue (EAGAIN).
    connect(descriptor.as_raw_fd(), &UnixAddr::new(socket_at)?)?;
    let mut stream = UnixStream::from(descriptor);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(limit))?;
    let mut call = json!({ "method": method, "parameters": parameters })
        .to_string()
        .into_bytes();
    call.push(0);
    stream.write_all(&call)?;
    let (began, mut said, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
    while said.last() != Some(&0) {
        let left = limit
            .checked_sub(began.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or(io::ErrorKind::TimedOut)?;
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => said.extend_from_slice(&buffer[..length]),
        }
    }
    said.pop();
    serde_json::from_slice(&said).map_err(io::Error::from)
}

/// The state of systemd-resolved, by asking it.
pub fn resolved(socket_at: &Path) -> Resolved {
    // A version that does not know the method answers so.
    match varlink(socket_at, "org.varlink.service.GetInfo", &json!({}), ANSWER) {
        Ok(_) => Resolved::Alive,
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Resolved::Absent,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Resolved::Hangs,
            _ => Resolved::Dead,
        },
    }
}

/// The IPv4 addresses that systemd-resolved has for a name, as programs with `resolve` in
/// nsswitch.conf get them.
///
/// # Errors
/// The socket's error, or systemd-resolved's as text.
pub fn by_resolved(socket_at: &Path, name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let parameters = json!({ "name": name, "family": 2, "flags": 0 });
    let said = varlink(
        socket_at,
        "io.systemd.Resolve.ResolveHostname",
        &parameters,
        ANSWER,
    )?;
    if let Some(error) = said["error"].as_str() {
        return Err(io::Error::other(
            error.rsplit('.').next().unwrap_or(error).to_owned(),
        ));
    }
    let read = |address: &Value| {
        let octets: Option<Vec<u8>> = address["address"]
            .as_array()?
            .iter()
            .map(|octet| u8::try_from(octet.as_u64()?).ok())
            .collect();
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets?).ok()?))
    };
    Ok(said["parameters"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(read)
        .collect())
}

/// Runs a command for a limited time.
///
/// # Errors
/// The command is missing, failed (with its last line) or timed out.
pub fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > TOLD {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it takes longer than {} s", TOLD.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    Err(io::Error::other(
        said.lines().last().unwrap_or("it failed").trim().to_owned(),
    ))
}

/// Makes systemd-resolved ask `server` through `device`, for these domains only.
///
/// # Errors
/// `resolvectl` failed.
pub fn tell_resolved(device: &str, server: &str, domains: &[String]) -> io::Result<()> {
    let routing: Vec<String> = domains.iter().map(|domain| format!("~{domain}")).collect();
    let mut domain = vec!["domain", device];
    domain.extend(routing.iter().map(String::as_str));
    run("resolvectl", &["dns", device, server])?;
    run("resolvectl", &domain)?;
    run("resolvectl", &["default-route", device, "false"])?;
    // These names are not signed, and our resolver has no TLS. A systemd-resolved that is too old
    // for these settings does neither.
    for setting in ["dnssec", "dnsovertls"] {
        if let Err(error) = run("resolvectl", &[setting, device, "no"]) {
            tracing::debug!(
                error = %crate::chain(&error),
                setting,
                "systemd-resolved does not take a setting"
            );
        }
    }
    Ok(())
}

/// Whether there is a loader whose name begins so.
fn has_loader(places: &Places, begins: &str) -> bool {
    let names = places
        .loaders
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .filter_map(Result::ok);
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .any(|name| name.starts_with(begins))
}

/// How this machine looks up names now.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The state of systemd-resolved.
    pub resolved: Resolved,
    /// How glibc looks up names.
    pub ways: Ways,
    /// Whether there may be programs of the C library musl, which asks all servers at once and
    /// takes the first answer.
    pub musl: bool,
    /// Whether there may be programs of the C library glibc.
    pub glibc: bool,
    /// Whether the list of name servers may be copied for containers, which cannot reach our
    /// address.
    pub copied: bool,
}

impl Scene {
    /// Looks.
    pub fn look(places: &Places) -> Self {
        let musl = has_loader(places, "ld-musl-");
        let glibc = has_loader(places, "ld-linux") || has_loader(places, "ld64.so");
        // By `file::read`, which does not wait for a pipe.
        let text = file::read(&places.nsswitch).ok().flatten();
        Self {
            resolved: resolved(&places.resolved),
            ways: text.map_or_else(Ways::default, |text| {
                nsswitch::ways(&String::from_utf8_lossy(&text))
            }),
            musl,
            glibc,
            copied: glibc && places.containers.iter().any(|socket| socket.exists()),
        }
    }

    /// Whether programs here read nsswitch.conf. A loader at an unknown place is glibc's, not
    /// musl's.
    pub fn reads_nsswitch(&self) -> bool {
        self.glibc || !self.musl
    }

    /// Whether programs of glibc ask the servers of the list.
    pub fn glibc_asks_list(&self) -> bool {
        let is_resolved = self.ways.dns_is_fallback && self.resolved == Resolved::Alive;
        self.reads_nsswitch() && self.ways.dns && !is_resolved
    }

    /// Whether our server has to be the only one in the list. A list that is copied for containers
    /// needs servers that they can reach: without one they would get public servers.
    pub fn alone(&self) -> bool {
        self.musl && !self.copied
    }
}

/// Whether a list of name servers leads to systemd-resolved.
pub fn is_stub(servers: &[NameServer]) -> bool {
    servers
        .first()
        .is_some_and(|server| STUBS.iter().any(|stub| server.ip == IpAddr::V4(*stub)))
}

/// The servers that a C library asks: the first three, or the one on this host if none is named.
pub fn asked(text: &[u8]) -> Vec<NameServer> {
    let mut servers = text::name_servers(text);
    servers.truncate(3);
    if servers.is_empty() {
        servers.push(NameServer {
            ip: Ipv4Addr::LOCALHOST.into(),
            scope: None,
        });
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_gone_dead_or_hanging_resolved_is_told_from_a_living_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("io.systemd.Resolve");
        assert_eq!(resolved(&at), Resolved::Absent);
        let listener = UnixListener::bind(&at).unwrap();
        let began = Instant::now();
        assert_eq!(resolved(&at), Resolved::Hangs);
        assert!(began.elapsed() < ANSWER * 2);
        let serving = std::thread::spawn(move || {
            // The first one is the question that nobody answered.
            for (call, mut stream) in listener.incoming().map(Result::unwrap).enumerate().take(2) {
                let mut buffer = [0; 512];
                let _ = stream.read(&mut buffer).unwrap();
                if call == 1 {
                    stream
                        .write_all(b"{\"error\":\"org.varlink.service.MethodNotFound\"}\0")
                        .unwrap();
                }
            }
        });
        assert_eq!(resolved(&at), Resolved::Alive);
        serving.join().unwrap();
        assert_eq!(resolved(&at), Resolved::Dead, "the socket stays behind");
    }

    #[test]
    fn musl_counts_unless_the_list_is_copied_for_containers() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            loaders: vec![dir.path().into()],
            containers: vec![dir.path().join("docker.sock")],
            resolved: dir.path().join("none"),
            ..Places::default()
        };
        assert!(!Scene::look(&places).alone());
        fs::write(dir.path().join("ld-musl-x86_64.so.1"), "").unwrap();
        fs::write(dir.path().join("docker.sock"), "").unwrap();
        assert!(Scene::look(&places).alone(), "all programs here are musl's");
        fs::write(dir.path().join("ld-linux-x86-64.so.2"), "").unwrap();
        assert!(!Scene::look(&places).alone());
    }

    #[test]
    fn a_command_that_hangs_or_fails_says_so() {
        assert!(run("true", &[]).is_ok());
        assert_eq!(
            run("sh", &["-c", "echo first; echo why >&2; exit 1"])
                .unwrap_err()
                .to_string(),
            "why"
        );
        assert_eq!(
            run("/no/such", &[]).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
