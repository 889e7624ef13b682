//! The status screen, the doctor, the report and the service manager's messages, on real daemons.

mod common;

use common::{lab, network, public_sites, refused};
use p2pvm_api::{DoctorPage, VmStateView, VmView};
use p2pvm_host::Level;
use p2pvm_lab::{
    chain,
    lab::{Lab, LabError},
};
use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Generous: a screen follows within seconds.
const LIMIT: Duration = Duration::from_secs(40);

/// A terminal of 80x24 on a host, with a p2pvm command in it.
struct Screen<'a> {
    lab: &'a Lab,
    host: &'a str,
    socket: String,
}

impl<'a> Screen<'a> {
    /// None where this machine has no tmux.
    fn open(lab: &'a Lab, host: &'a str, words: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("NOT RUN: tmux is not installed");
            return None;
        }
        let screen = Self {
            lab,
            host,
            socket: format!("p2pvm-{}-{host}", std::process::id()),
        };
        let command = format!("env LANG=C.UTF-8 {} {words}", env!("CARGO_BIN_EXE_p2pvm"));
        screen.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            &command,
        ]);
        Some(screen)
    }

    fn tmux(&self, words: &[&str]) -> String {
        let argv: Vec<&str> = ["tmux", "-L", &self.socket]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let output = self.lab.testbed().exec(self.host, &argv).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn type_keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"][..], keys].concat());
    }

    /// Waits until everything wanted is on the screen.
    fn wait_for(&self, wanted: &[&str]) -> String {
        let mut last = String::new();
        let seen = self
            .lab
            .wait("the screen", LIMIT, Duration::from_millis(200), || {
                last = self.tmux(&["capture-pane", "-p"]);
                Ok(wanted
                    .iter()
                    .all(|part| last.contains(part))
                    .then(|| last.clone()))
            });
        seen.unwrap_or_else(|_: LabError| {
            panic!("{wanted:?} did not come onto the screen:\n{last}")
        })
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn the_screen_says_when_the_daemon_is_away_and_returns_by_itself() {
    let lab = lab("top", &public_sites(&["a", "b"], 20.0));
    network(&lab, &["a", "b"]);
    lab.ping("a", "b", 1, "100ms").unwrap();
    // A member takes its place on the ring in its first seconds.
    lab.wait("a whole screen", LIMIT, Duration::from_millis(300), || {
        let once = lab.p2pvm("a", &["top", "--once"])?;
        let wanted = [
            "a in lab",
            "health   ok",
            "Members: 1 of 1 connected",
            "direct ",
        ];
        Ok(wanted.iter().all(|part| once.contains(part)).then_some(()))
    })
    .unwrap();
    // While a member that died is waited for, this node is shown as it is.
    lab.kill_daemon("b").unwrap();
    lab.wait("b's death to be noticed", LIMIT, Duration::ZERO, || {
        let once = lab.p2pvm("a", &["top", "--once"])?;
        assert!(
            once.contains("a in lab") && once.contains("Members:"),
            "{once}"
        );
        assert!(
            ["starting", "joining", "down"]
                .iter()
                .all(|word| !once.contains(&format!("health   {word}"))),
            "{once}"
        );
        Ok(once
            .contains("none of the 1 known members can be reached")
            .then_some(()))
    })
    .unwrap();
    lab.start("b").unwrap();
    lab.wait("b to be back", LIMIT, Duration::from_millis(300), || {
        Ok(lab
            .p2pvm("a", &["top", "--once"])?
            .contains("Members: 1 of 1 connected")
            .then_some(()))
    })
    .unwrap();
    let Some(screen) = Screen::open(&lab, "a", "top") else {
        return;
    };
    let shown = screen.wait_for(&[
        "a in lab",
        "health   ok: 1 of 1 known members connected",
        "direct ",
        "q quit",
    ]);
    assert!(
        !shown.contains("r reboot"),
        "only a console stops the machine:\n{shown}"
    );
    lab.kill_daemon("a").unwrap();
    screen.wait_for(&["health   down", "p2pvm up --detach"]);
    lab.start("a").unwrap();
    screen.wait_for(&["health   ok", "b "]);
    screen.type_keys(&["l"]);
    screen.wait_for(&["Log of the daemon", "INFO"]);
    screen.type_keys(&["Escape"]);
    screen.wait_for(&["q quit"]);
    screen.type_keys(&["j"]);
    screen.type_keys(&["p2pvm1notaninvite", "Enter"]);
    screen.wait_for(&["this is no invite", "p2pvm1notaninvite_"]);
    screen.type_keys(&["Escape"]);
    screen.wait_for(&["q quit"]);
    screen.type_keys(&["q"]);
    lab.wait(
        "the screen to end",
        LIMIT,
        Duration::from_millis(100),
        || Ok(screen.tmux(&["list-sessions"]).is_empty().then_some(())),
    )
    .unwrap();
    drop(screen);
    lab.down().unwrap();
}

#[test]
fn a_console_shows_its_invite_and_joins_by_a_typed_one() {
    let lab = lab("tty", &public_sites(&["a", "b"], 20.0));
    lab.found("a", "lab").unwrap();
    lab.found("b", "own").unwrap();
    let Some(screen) = Screen::open(&lab, "b", "top --console") else {
        return;
    };
    let shown = screen.wait_for(&[
        "b in own",
        "health   alone",
        "Invite",
        "p2pvm1",
        "r reboot   p power off",
    ]);
    assert!(
        !shown.contains("q quit") && !shown.contains("s shell"),
        "{shown}"
    );
    screen.type_keys(&["i"]);
    screen.wait_for(&["QR code"]);
    screen.type_keys(&["Right"]);
    screen.wait_for(&["Part 1 of", "▄"]);
    screen.type_keys(&["Escape"]);
    screen.wait_for(&["health   alone"]);
    // In capitals, as a QR code's reader gives it.
    let invite = lab.p2pvm("a", &["invite", "--uses", "2", "--qr"]).unwrap();
    let (text, code) = invite.split_once('\n').unwrap();
    assert!(text.starts_with("p2pvm1") && code.contains('█'), "{invite}");
    screen.type_keys(&["j"]);
    screen.type_keys(&["-l", &text.to_ascii_uppercase()]);
    screen.type_keys(&["Enter"]);
    screen.wait_for(&["alone in its own network 'own'", "join 'lab'? (y/n)"]);
    screen.type_keys(&["y"]);
    screen.wait_for(&["b in lab", "health   ok"]);
    drop(screen);
    lab.down().unwrap();
}

#[test]
fn the_doctor_looks_without_a_daemon_and_fails_for_what_is_missing() {
    let lab = lab("doctor", &public_sites(&["a"], 5.0));
    let examine = |code: i32| {
        let (got, out, said) = lab.try_p2pvm("a", &["--json", "doctor"]).unwrap();
        assert_eq!(got, code, "{out} {said}");
        serde_json::from_str::<DoctorPage>(&out).unwrap()
    };
    let before = examine(0);
    let level = |page: &DoctorPage, name: &str| {
        let mut checks = page.checks.iter();
        let found = checks.find(|check| check.check == name);
        found.map(|check| check.level)
    };
    assert_eq!(
        (level(&before, "tun"), level(&before, "qemu")),
        (Some(Level::Ok), Some(Level::Ok)),
        "{before:?}"
    );
    assert_eq!(level(&before, "daemon"), Some(Level::Warning));
    lab.found("a", "lab").unwrap();
    let running = examine(0);
    assert_eq!(
        (level(&running, "daemon"), level(&running, "udp")),
        (Some(Level::Ok), Some(Level::Ok)),
        "{running:?}"
    );
    let text = lab.p2pvm("a", &["doctor"]).unwrap();
    assert!(
        text.lines()
            .any(|line| line.starts_with("qemu        ok       QEMU 1")),
        "{text}"
    );
    lab.p2pvm("a", &["down"]).unwrap();
    lab.configure("a", "no_such_setting = 1\n").unwrap();
    let broken = examine(1);
    assert_eq!(level(&broken, "settings"), Some(Level::Failed));
    assert!(!broken.ok);
    lab.down().unwrap();
}

/// Whether `hay` holds any 16 bytes that stand together in the secret, as they are or written as
/// hex.
fn holds(hay: &[u8], secret: &[u8]) -> bool {
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
            .into_bytes()
    };
    let lower: Vec<u8> = hay.to_ascii_lowercase();
    secret.windows(16).step_by(8).any(|part| {
        let hex = hex(part);
        hay.windows(16).any(|w| w == part) || lower.windows(hex.len()).any(|w| w == hex)
    })
}

#[test]
fn a_report_has_what_a_developer_needs_but_no_key_or_invite() {
    let lab = lab("report", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let invite = lab.invite("a", 3).unwrap();
    let dir = lab.dir("a").unwrap();
    // Where an invite may have got to.
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(dir.join("daemon.log"))
        .unwrap();
    std::io::Write::write_all(
        &mut log,
        format!(
            "somebody pasted {invite} and {}\n",
            invite.to_ascii_uppercase()
        )
        .as_bytes(),
    )
    .unwrap();
    let settings = fs::read_to_string(dir.join("node.toml")).unwrap();
    fs::write(
        dir.join("node.toml"),
        format!("{settings}# joined with {invite}\n"),
    )
    .unwrap();

    let out = dir.join("report.tar.gz");
    let said = lab
        .p2pvm("a", &["bugreport", "--out", out.to_str().unwrap()])
        .unwrap();
    assert!(said.contains("report.tar.gz"), "{said}");
    refused(&lab, "a", &["bugreport", "--out", out.to_str().unwrap()], 1);
    let list = Command::new("tar")
        .args(["tzf", out.to_str().unwrap()])
        .output()
        .unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for file in [
        "README",
        "versions.txt",
        "doctor.json",
        "node.toml",
        "daemon.log",
        "status.json",
        "peers.json",
        "metrics.json",
    ] {
        assert!(list.contains(&format!("/{file}\n")), "{file}: {list}");
    }
    let all = Command::new("tar")
        .args(["xzOf", out.to_str().unwrap()])
        .output()
        .unwrap()
        .stdout;
    let text = String::from_utf8_lossy(&all).to_ascii_lowercase();
    assert!(
        text.contains("somebody pasted <invite cut out> and <invite cut out>")
            && text.contains("\"network\": \"lab\""),
        "{text}"
    );
    // An invite begins with the network's id, which is no secret; the rest admits any holder.
    let secret = &invite[64..];
    assert!(
        (0..secret.len() - 24).all(|at| !text.contains(&secret[at..at + 24])),
        "a part of an invite is in the report"
    );
    for secret in ["identity", "root.key"] {
        let secret_bytes = fs::read(dir.join(secret)).unwrap();
        assert!(
            secret_bytes.len() >= 32 && !holds(&all, &secret_bytes),
            "{secret} is in the report"
        );
    }
    assert!(
        holds(b"x0123456789abcdefx", b"0123456789abcdef"),
        "the search itself finds what is there"
    );
    lab.down().unwrap();
}

/// What arrives at the socket until `done` says so.
fn hear(ear: &UnixDatagram, limit: Duration, done: impl Fn(&str) -> bool) -> Option<String> {
    let (until, mut buffer) = (Instant::now() + limit, [0; 4096]);
    ear.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    while Instant::now() < until {
        if let Ok(n) = ear.recv(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if done(&said) {
                return Some(said);
            }
        }
    }
    None
}

#[test]
fn the_service_manager_hears_of_readiness_life_and_end() {
    let lab = lab("notify", &public_sites(&["a"], 5.0));
    lab.p2pvm("a", &["init", "--network", "lab"]).unwrap();
    let path = lab.dir("a").unwrap().join("notify");
    let ear = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .arg("up")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "1000000");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut daemon = lab.testbed().spawn("a", &mut command).unwrap();
    let first = hear(&ear, LIMIT, |said| said.contains("READY=1")).expect("READY=1");
    assert!(first.contains("STATUS=a in lab"), "{first}");
    assert!(lab.status("a").is_ok(), "ready means that the API answers");
    hear(&ear, LIMIT, |said| {
        said.contains("WATCHDOG=1") && !said.contains("READY")
    })
    .expect("WATCHDOG=1");
    let signal = |signal| nix_kill(daemon.id(), signal);
    signal("STOP");
    // What was said before it stood still is read away.
    while hear(&ear, Duration::from_millis(300), |_| true).is_some() {}
    assert!(
        hear(&ear, Duration::from_secs(3), |said| said
            .contains("WATCHDOG"))
        .is_none(),
        "a daemon that stands still feeds no watchdog"
    );
    signal("CONT");
    hear(&ear, LIMIT, |said| said.contains("WATCHDOG=1")).expect("it goes on");
    signal("TERM");
    hear(&ear, LIMIT, |said| said == "STOPPING=1").expect("STOPPING=1");
    assert!(daemon.wait().unwrap().success());
    lab.down().unwrap();
}

fn nix_kill(pid: u32, signal: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{signal}"), &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// The capabilities that the unit leaves the daemon, as setpriv writes them.
fn bounding_set() -> String {
    let unit = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/p2pvm.service"),
    )
    .unwrap();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let names: Vec<String> = line
        .split(' ')
        .map(|cap| format!("+{}", cap.trim_start_matches("CAP_").to_ascii_lowercase()))
        .collect();
    format!("-all,{}", names.join(","))
}

#[test]
fn with_the_units_capabilities_guests_run_and_outlive_a_daemons_upgrade() {
    let lab = lab("caps", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let start = || {
        let set = bounding_set();
        let words = [
            "setpriv",
            "--bounding-set",
            &set,
            "--",
            env!("CARGO_BIN_EXE_p2pvm"),
            "up",
        ];
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(lab.dir("b").unwrap().join("daemon.log")).unwrap());
        lab.testbed().spawn("b", &mut command).unwrap()
    };
    lab.p2pvm("b", &["down"]).unwrap();
    let mut daemon = start();
    let up = || {
        lab.wait("b to be up", LIMIT, Duration::from_millis(200), || {
            let (code, out, _) = lab.try_p2pvm("b", &["--json", "status"])?;
            Ok((code == 0 && out.contains("\"connected\": 1")).then_some(()))
        })
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 40)))
    };
    up();
    let made: Result<VmView, _> = lab.json(
        "b",
        &[
            "vm",
            "create",
            "web",
            "--image",
            common::image(),
            "--cpus",
            "1",
            "--memory",
            "128M",
            "--start",
        ],
    );
    let made = made.unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let address = made.address;
    lab.wait_for_guest("a", &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let vms = lab.dir("b").unwrap().join("vms");
    let before = qemu(&vms);
    assert_eq!(before.len(), 1, "one QEMU runs");
    // As systemd restarts it after the package is replaced: SIGTERM to the daemon alone, then the
    // new program.
    nix_kill(daemon.id(), "TERM");
    assert!(daemon.wait().unwrap().success());
    let mut daemon = start();
    up();
    let answers = lab.wait_for_guest("a", &address, Duration::from_secs(10));
    answers.unwrap_or_else(|e| {
        panic!(
            "the guest under the new daemon: {}\n{}",
            chain(&e),
            lab.log_tail("b", 60)
        )
    });
    let vm = lab.vm("b", "web").unwrap();
    assert_eq!((&vm.state, vm.epoch), (&VmStateView::Running, 1), "{vm:?}");
    assert_eq!(qemu(&vms), before, "the same process runs on");
    // As at a shutdown of the machine, and its next start.
    lab.p2pvm("b", &["vm", "stop", "--for-shutdown"]).unwrap();
    let vm = lab.vm("b", "web").unwrap();
    assert_eq!(vm.state, VmStateView::Stopped, "{vm:?}");
    nix_kill(daemon.id(), "TERM");
    daemon.wait().unwrap();
    daemon = start();
    up();
    let answers = lab.wait_for_guest("a", &address, Duration::from_secs(90));
    answers.unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    nix_kill(daemon.id(), "TERM");
    daemon.wait().unwrap();
    lab.down().unwrap();
}

/// The process ids of the guests whose files are below a directory.
fn qemu(vms: &Path) -> Vec<String> {
    let is_pid = |file: &std::path::PathBuf| file.extension().is_some_and(|e| e == "pid");
    let files = walk(vms).into_iter().filter(is_pid);
    files
        .map(|file| fs::read_to_string(file).unwrap_or_default())
        .map(|pid| pid.trim().to_owned())
        .collect()
}

/// All files below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
