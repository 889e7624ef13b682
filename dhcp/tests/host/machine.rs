//! A host of its own, the servers on it, and programs that look up names there.

use async_trait::async_trait;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use p2pvm_dhcp::{
    NameEntry, NameKind, Resolver, Subject,
    dns::{HostResolver, Names, Unavailable},
};
use p2pvm_host::{
    Board, Finding,
    names::{Keeper, Settings, file, scene::Places},
};
use p2pvm_overlay::{MemberId, VmId};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, task::JoinHandle};

pub const LIMIT: Duration = Duration::from_secs(30);
/// What a program may wait for a name on a host that is well; the test machine is busy.
pub const QUICK: Duration = Duration::from_millis(1500);
/// The host's name server before us: it knows one name.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// A name server that takes questions and says nothing.
pub const SILENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);
pub const OTHER: (&str, &str) = ("elsewhere.example.net", "192.0.2.77");
const MUSL: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
#include <string.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *found = 0;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    if (argc < 2 || getaddrinfo(argv[1], 0, &hints, &found)) return 2;
    for (struct addrinfo *at = found; at; at = at->ai_next) {
        if (at->ai_family != AF_INET) continue;
        puts(inet_ntop(AF_INET, &((struct sockaddr_in *)at->ai_addr)->sin_addr, text, sizeof text));
    }
    return 0;
}
"#;

/// A network of which this host is the member "me" and which has the VM "web".
struct Members(u8);

#[async_trait]
impl Names for Members {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable> {
        // As long as a question to other members takes: slower than a name server next door.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let named = |subject, last| NameEntry {
            subject,
            v4: Ipv4Addr::new(10, self.0, 0, last),
            v6: None,
        };
        Ok(match (kind, label) {
            (NameKind::Host, "me") => Some(named(Subject::Member(MemberId([1; 32])), 1)),
            (NameKind::Vm, "web") => Some(named(Subject::Vm(VmId([2; 32])), 80)),
            _ => None,
        })
    }

    async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        Ok((ip == IpAddr::from([10, self.0, 0, 80])).then(|| (NameKind::Vm, "web".into())))
    }
}

/// The host.
pub struct Machine {
    dir: tempfile::TempDir,
    pub runtime: Runtime,
    /// Whether programs with musl count as being here.
    pub musl: bool,
    stop: Arc<AtomicBool>,
    silent: Mutex<Option<UdpSocket>>,
    serving: Mutex<Option<thread::JoinHandle<()>>>,
}

/// Runs `test` on a host of its own whose `/etc` holds these files; not at all without root.
pub fn on(files: &[(&str, &str)], musl: bool, test: impl FnOnce(&Machine) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return crate::not_run("a network and mounts of its own need root");
    }
    thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let etc = dir.path().join("etc");
            fs::create_dir(&etc).unwrap();
            for (name, text) in files {
                fs::write(etc.join(name), text).unwrap();
            }
            mount(Some(&etc), "/etc", none, MsFlags::MS_BIND, none).unwrap();
            mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            for words in [
                "link set lo up",
                "addr add 192.0.2.53/32 dev lo",
                "addr add 192.0.2.54/32 dev lo",
            ] {
                run("ip", &words.split(' ').collect::<Vec<_>>()).unwrap();
            }
            // Its threads are born here and so belong to the host.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let silent = Mutex::new(Some(UdpSocket::bind((SILENT, 53)).unwrap()));
            let serving = Mutex::new(Some(serve_elsewhere(stop.clone())));
            let machine = Machine {
                dir,
                runtime,
                musl,
                stop,
                silent,
                serving,
            };
            test(&machine);
            machine.free_port_53();
            machine.runtime.shutdown_background();
        };
        scope.spawn(inside).join().unwrap();
    });
}

/// The host's name server: it has one name, and says of all others that they do not exist.
fn serve_elsewhere(stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let socket = UdpSocket::bind((SERVER, 53)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let _ = socket.send_to(&elsewhere(&buffer[..length]), from);
        }
    })
}

/// An answer to a query, by hand: the question, and one address if the name is the known one.
fn elsewhere(query: &[u8]) -> Vec<u8> {
    let mut end = 12;
    let mut name = String::new();
    while query[end] != 0 {
        let label = &query[end + 1..end + 1 + usize::from(query[end])];
        name = format!(
            "{name}{}.",
            String::from_utf8_lossy(label).to_ascii_lowercase()
        );
        end += 1 + usize::from(query[end]);
    }
    let (kind, end) = (query[end + 2], end + 5);
    let mut answer = query[..end].to_vec();
    answer[2] = 0x81;
    answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    let is_known = name.trim_end_matches('.') == OTHER.0;
    answer[3] = if is_known || name.is_empty() {
        0x80
    } else {
        0x83
    };
    if is_known && kind == 1 {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    answer
}

pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!(
            "{program}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// The addresses that a program with glibc finds, and how long it looked.
pub fn glibc(name: &str) -> (Vec<String>, Duration) {
    let began = Instant::now();
    let said = run("getent", &["ahostsv4", name]).unwrap_or_default();
    let mut found: Vec<String> = said
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    found.dedup();
    (found, began.elapsed())
}

/// A program with musl, made once; none where musl's compiler is not here.
pub fn musl_program() -> Option<&'static Path> {
    static PROGRAM: std::sync::OnceLock<Option<(tempfile::TempDir, PathBuf)>> =
        std::sync::OnceLock::new();
    let made = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().ok()?;
        let (source, program) = (dir.path().join("look.c"), dir.path().join("look"));
        fs::write(&source, MUSL).ok()?;
        let arguments = ["-static", "-o", program.to_str()?, source.to_str()?];
        run("musl-gcc", &arguments)
            .map_err(|why| {
                crate::not_run(&format!("musl's part: {why} (apt-get install musl-tools)"))
            })
            .ok()?;
        Some((dir, program))
    });
    made.as_ref().map(|(_, program)| program.as_path())
}

/// The same with musl.
pub fn musl(program: &Path, name: &str) -> (Vec<String>, Duration) {
    let began = Instant::now();
    let said = run(&program.to_string_lossy(), &[name]).unwrap_or_default();
    (said.lines().map(str::to_owned).collect(), began.elapsed())
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < LIMIT,
            "{what} does not come about:\n{}",
            fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// A network of this host, running.
pub struct Network {
    pub domain: String,
    subnet: u8,
    pub board: Board,
    keeper: Arc<Keeper>,
    serving: JoinHandle<()>,
    id: String,
}

impl Machine {
    /// Ends the host's name servers.
    pub fn free_port_53(&self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.silent.lock().unwrap().take());
        if let Some(serving) = self.serving.lock().unwrap().take() {
            serving.join().unwrap();
        }
    }

    pub fn resolv_conf(&self) -> String {
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    }

    /// Replaces the list of name servers as most programs do.
    pub fn rewrite(&self, text: &str) {
        fs::write("/etc/resolv.conf.new", text).unwrap();
        fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").unwrap();
    }

    fn places(&self) -> Places {
        let loaders = self.dir.path().join("lib");
        fs::create_dir_all(&loaders).unwrap();
        fs::write(loaders.join("ld-linux-x86-64.so.2"), "").unwrap();
        if self.musl {
            fs::write(loaders.join("ld-musl-x86_64.so.1"), "").unwrap();
        }
        Places {
            loaders: vec![loaders],
            ..Places::default()
        }
    }

    /// Starts what a daemon has for this: the resolver and the keeper. It has `10.SUBNET.0.1`.
    pub fn network(&self, name: &str, subnet: u8) -> Network {
        let device = format!("{name}0");
        let v4 = Ipv4Addr::new(10, subnet, 0, 1);
        if run(
            "ip",
            &[
                "link",
                "add",
                &device,
                "type",
                "veth",
                "peer",
                "name",
                &format!("{name}1"),
            ],
        )
        .is_ok()
        {
            run("ip", &["addr", "add", &format!("{v4}/16"), "dev", &device]).unwrap();
            for end in [device.clone(), format!("{name}1")] {
                run("ip", &["link", "set", &end, "up"]).unwrap();
            }
        }
        let domain = format!("{name}.p2p");
        let resolver =
            Resolver::new(&domain, format!("10.{subnet}.0.0/16").parse().unwrap()).unwrap();
        let id = format!("{name}id/{device}");
        let settings = Settings {
            places: self.places(),
            id: id.clone(),
            device,
            domain: domain.clone(),
            reverse: vec![format!("{subnet}.10.in-addr.arpa")],
            subnets: vec![([10, subnet, 0, 0].into(), 16)],
        };
        let board = Board::default();
        let forwarder = Arc::new(resolver.upstream().clone());
        let keeper = Arc::new(
            Keeper::start(settings, forwarder, board.clone(), Box::new(|_| Ok(()))).unwrap(),
        );
        let host = HostResolver {
            resolver,
            names: Arc::new(Members(subnet)),
            network: format!("{name}id"),
            own_name: format!("me.{domain}"),
            keeper: Some(keeper.clone()),
        };
        let serving = self
            .runtime
            .spawn(async move { host.run(v4, async {}).await });
        Network {
            domain,
            subnet,
            board,
            keeper,
            serving,
            id,
        }
    }
}

impl Network {
    pub fn name(&self, of: &str) -> String {
        format!("{of}.{}", self.domain)
    }

    pub fn address(&self, last: u8) -> String {
        format!("10.{}.0.{last}", self.subnet)
    }

    /// Whether a program with glibc finds the VM.
    pub fn is_found(&self) -> bool {
        glibc(&self.name("web.vm")).0 == [self.address(80)]
    }

    /// Ends it as a daemon ends.
    pub fn end(self) {
        self.keeper.end();
        self.serving.abort();
        while !self.serving.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it so that all is left as after a kill: the lines are in the file and nobody answers.
    pub fn kill(self) {
        let left = fs::read_to_string("/etc/resolv.conf").unwrap();
        assert!(left.contains(&format!("# p2pvm {}", self.id)), "{left}");
        self.end();
        fs::write("/etc/resolv.conf", left).unwrap();
    }

    /// What the next start, 'p2pvm down' and the guardian do.
    pub fn restore(id: &str) {
        file::take_out(Path::new("/etc/resolv.conf"), id).unwrap();
    }

    pub fn findings(&self) -> Vec<Finding> {
        self.board
            .all()
            .into_iter()
            .map(|(area, finding)| {
                assert_eq!(area, "names");
                finding
            })
            .collect()
    }

    /// Waits until the board says something with all these words.
    pub fn says(&self, words: &[&str]) {
        until(
            &format!("a finding with {words:?} among {:?}", self.findings()),
            || {
                self.findings().iter().any(|f| {
                    words
                        .iter()
                        .all(|word| f.found.contains(word) || f.advice.contains(word))
                })
            },
        );
    }
}
