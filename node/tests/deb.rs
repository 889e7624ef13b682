//! The Debian package: built by the script that `make deb` runs, installed on a clean Debian tree
//! that is then booted with its own systemd in a container, and upgraded there beneath a running
//! VM. `make test-deb` runs it.
//!
//! Needs root, cargo-deb, mmdebstrap with a mirror, and systemd-nspawn; says `NOT RUN` where one is
//! missing. The tree is made once and kept below `target/`; each run works on a copy.

mod common;

use p2pvm_api::VmView;
use p2pvm_lab::hosts::tree;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Of Debian 13 on any build host: its QEMU is the one whose machine types p2pvm names, its libc is
/// new enough for a p2pvm built on 12 or 13.
const PACKAGES: &str =
    "systemd-sysv,dbus,kmod,iproute2,iputils-ping,nftables,qemu-system-x86,qemu-utils";
/// A container boots within seconds, a translated guest within some more; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);
/// Files of a membership, which an upgrade has to leave as they are.
const MEMBERSHIP: [&str; 4] = ["identity", "root.key", "certificate", "network"];
/// Seconds, for a guest to answer one ping in.
const ANSWER: &str = "2";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Runs it and gives what it printed; fails with all it said.
fn run(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(
        status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&stderr)
    );
    text
}

/// The package of that version around the program that the tests run.
fn build(version: &str, out: &Path) -> PathBuf {
    let words = [
        "--profile",
        "debug",
        "--version",
        version,
        "--out",
        out.to_str().unwrap(),
    ];
    run(Command::new(root().join("scripts/deb.sh"))
        .args(words)
        .env("P2PVM_BIN", env!("CARGO_BIN_EXE_p2pvm")));
    let mut found = fs::read_dir(out).unwrap().map(|e| e.unwrap().path());
    found
        .find(|path| path.to_string_lossy().contains(version))
        .expect("a package of that version")
}

/// The tree as an archive; made where it is not there yet. An error says why none can be made here.
fn kept_tree() -> Result<PathBuf, String> {
    let kept = root().join(format!("target/debian/tree-{}.tar", tree::SUITE));
    if kept.exists() {
        return Ok(kept);
    }
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    let languages = "--dpkgopt=path-exclude=/usr/share/locale/*".to_owned();
    tree::make_debian(PACKAGES, &[languages], &kept)?;
    Ok(kept)
}

/// A Debian that has been booted in a container of its own; it is switched off when this goes.
struct Machine {
    tree: PathBuf,
    container: Child,
    init: String,
}

impl Machine {
    #[allow(clippy::zombie_processes, reason = "dropping the machine waits for it")]
    fn boot(tree: &Path) -> Self {
        let mut command = Command::new("systemd-nspawn");
        command.args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--console=pipe",
            "--capability=all",
        ]);
        command
            .arg(format!("--machine=p2pvm-deb-{}", std::process::id()))
            .arg("--bind=/dev/net/tun")
            .arg("--directory")
            .arg(tree);
        // Where the host still has version 1 of the control groups, the container gets version 2
        // all the same.
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut container = command.spawn().unwrap();
        let began = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", container.id());
        loop {
            let init = fs::read_to_string(&children)
                .unwrap_or_default()
                .trim()
                .to_owned();
            let up = |init: &str| {
                Self::enter(init)
                    .args(["systemctl", "is-system-running"])
                    .output()
                    .map(|o| o.stdout)
            };
            if !init.is_empty()
                && up(&init)
                    .is_ok_and(|said| said.starts_with(b"running") || said.starts_with(b"degraded"))
            {
                return Self {
                    tree: tree.to_owned(),
                    container,
                    init,
                };
            }
            if began.elapsed() > LIMIT {
                let _ = container.kill().and_then(|()| container.wait());
                panic!("the container does not come up");
            }
            sleep(Duration::from_millis(300));
        }
    }

    fn enter(init: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", init, "--all", "--"])
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a command in it.
    fn run(&self, words: &[&str]) -> String {
        run(Self::enter(&self.init).args(words))
    }

    /// The same until it succeeds and prints what is wanted.
    fn until(&self, words: &[&str], wanted: &str) -> String {
        let began = Instant::now();
        loop {
            let output = Self::enter(&self.init).args(words).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && said.contains(wanted) {
                return said;
            }
            assert!(
                began.elapsed() < LIMIT,
                "{words:?}: {said}{}\n{}",
                String::from_utf8_lossy(&output.stderr),
                self.log()
            );
            sleep(Duration::from_millis(500));
        }
    }

    fn log(&self) -> String {
        self.run(&[
            "journalctl",
            "--no-pager",
            "--unit",
            "p2pvm",
            "--lines",
            "30",
        ])
    }

    fn install(&self, package: &Path) {
        let name = package.file_name().unwrap().to_str().unwrap();
        fs::copy(package, self.tree.join("root").join(name)).unwrap();
        self.run(&[
            "dpkg",
            "--force-confdef",
            "--install",
            &format!("/root/{name}"),
        ]);
    }

    fn state(&self) -> Vec<Vec<u8>> {
        MEMBERSHIP
            .iter()
            .map(|name| fs::read(self.tree.join("var/lib/p2pvm").join(name)).unwrap())
            .collect()
    }

    /// The process ids of the daemon and of its only VM, as the machine counts them.
    fn processes(&self) -> (String, String) {
        let daemon = self.run(&[
            "systemctl",
            "show",
            "--value",
            "--property",
            "MainPID",
            "p2pvm",
        ]);
        let vms = self.run(&[
            "sh",
            "-c",
            "cat /var/lib/p2pvm/vms/*/*.pid /var/lib/p2pvm/vms/*/*/*.pid 2>/dev/null || true",
        ]);
        (daemon.trim().to_owned(), vms.trim().to_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // "Power off", as systemd(1) has it; what does not follow is killed with everything in it.
        let _ = Command::new("kill")
            .args(["-s", "RTMIN+4", &self.init])
            .status();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            if let Ok(Some(_)) = self.container.try_wait() {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

/// The package's files are there, and systemd can read its units.
fn has_its_files(machine: &Machine) {
    for file in [
        "usr/lib/systemd/system/p2pvm.service",
        "usr/lib/systemd/system/p2pvm-guests.service",
        "usr/lib/tmpfiles.d/p2pvm.conf",
        "usr/share/bash-completion/completions/p2pvm",
        "usr/share/zsh/vendor-completions/_p2pvm",
        "usr/share/fish/vendor_completions.d/p2pvm.fish",
        "usr/share/man/man1/p2pvm.1.gz",
        "usr/share/man/man1/p2pvm-vm-migrate.1.gz",
        "usr/share/p2pvm/grafana/p2pvm.json",
        "usr/share/p2pvm/prometheus/p2pvm.rules.yml",
        "etc/p2pvm/node.toml",
    ] {
        assert!(machine.tree.join(file).exists(), "{file} is not installed");
    }
    for unit in ["p2pvm.service", "p2pvm-guests.service"] {
        machine.run(&["systemd-analyze", "verify", "--man=no", unit]);
    }
}

/// What a shutdown of the machine does with its VM, and its next start.
fn shuts_down(machine: &Machine, vm: &str, ping: &[&str]) {
    let guests = "p2pvm-guests.service";
    machine.until(&["systemctl", "is-active", guests], "active");
    machine.run(&["systemctl", "restart", "p2pvm"]);
    machine.until(&["p2pvm", "vm", "list"], "running");
    assert_eq!(machine.processes().1, vm, "a restart leaves guests running");
    // Units stop in the order in which they do at a shutdown: the daemon still runs.
    machine.run(&["systemctl", "stop", guests, "p2pvm.service"]);
    let is_there = format!("test -d /proc/{vm} && echo there || echo gone");
    let is_there = machine.run(&["sh", "-c", &is_there]);
    assert_eq!(is_there.trim(), "gone", "{}", machine.log());
    machine.run(&["systemctl", "start", "p2pvm"]);
    machine.until(&["p2pvm", "vm", "list"], "running");
    machine.until(ping, "1 received");
    machine.run(&["systemctl", "is-active", guests]);
}

#[test]
fn a_package_installs_on_clean_debian_and_upgrades_under_a_running_vm() {
    for program in [
        "cargo-deb",
        "mmdebstrap",
        "systemd-nspawn",
        "systemd-analyze",
    ] {
        if !has(program) {
            println!("NOT RUN: {program} is not installed here");
            return;
        }
    }
    let kept = match kept_tree() {
        Ok(kept) => kept,
        Err(why) => {
            println!("NOT RUN: no Debian tree can be made here: {why}");
            return;
        }
    };
    let dir = tempfile::tempdir_in(root().join("target")).unwrap();
    let (first, second) = (
        build("0.1.0~test1", dir.path()),
        build("0.1.0~test2", dir.path()),
    );
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    run(Command::new("tar")
        .args(["--numeric-owner", "-C"])
        .arg(&tree)
        .arg("-xf")
        .arg(&kept));
    fs::copy(common::image(), tree.join("root/guest.qcow2")).unwrap();

    let machine = Machine::boot(&tree);
    machine.install(&first);
    assert!(machine.run(&["p2pvm", "--version"]).starts_with("p2pvm "));
    assert!(
        machine
            .run(&["p2pvm", "top", "--once"])
            .contains("health   outside")
    );
    assert!(
        machine
            .run(&["sh", "-c", "systemctl is-active p2pvm || true"])
            .contains("inactive"),
        "installing starts nothing"
    );
    has_its_files(&machine);
    assert_eq!(
        fs::metadata(tree.join("var/lib/p2pvm"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o711
    );

    // A member with settings of its own and a VM, run by systemd.
    let settings = tree.join("etc/p2pvm/node.toml");
    fs::write(
        &settings,
        fs::read_to_string(&settings)
            .unwrap()
            .replace("#upnp = true", "upnp = false"),
    )
    .unwrap();
    machine.run(&[
        "p2pvm",
        "init",
        "--network",
        "lab",
        "--name",
        "host",
        "--subnet",
        "10.99.0.0/16",
        "--force",
    ]);
    machine.run(&["p2pvm", "up", "--detach"]);
    assert_eq!(
        machine.run(&["systemctl", "is-active", "p2pvm"]).trim(),
        "active"
    );
    assert_eq!(
        machine.run(&["systemctl", "is-enabled", "p2pvm"]).trim(),
        "enabled",
        "it starts at boot"
    );
    let made = machine.run(&[
        "p2pvm",
        "--json",
        "vm",
        "create",
        "web",
        "--image",
        "/root/guest.qcow2",
        "--memory",
        "128M",
        "--start",
    ]);
    let made: VmView = serde_json::from_str(&made).unwrap();
    let ping = ["ping", "-c", "1", "-W", ANSWER, &made.address];
    machine.until(&ping, "1 received");
    machine.run(&["p2pvm", "vm", "snapshot", "web", "--name", "before"]);
    let (before, (daemon, vm)) = (machine.state(), machine.processes());
    assert!(
        !daemon.is_empty() && vm.parse::<u32>().is_ok(),
        "a daemon and one VM: {daemon} {vm}"
    );

    machine.install(&second);
    assert!(
        machine
            .run(&["dpkg-query", "-W", "-f", "${Version}", "p2pvm"])
            .contains("test2")
    );
    machine.until(&["p2pvm", "vm", "list"], "running");
    machine.until(&ping, "1 received");
    let after = machine.processes();
    assert_ne!(after.0, daemon, "the new program runs");
    assert_eq!(after.1, vm, "the VM's process runs on\n{}", machine.log());
    assert!(machine.log().contains("guest taken up again"));
    assert_eq!(machine.state(), before);
    assert!(
        machine
            .run(&["p2pvm", "vm", "show", "web"])
            .contains("before"),
        "snapshots stay"
    );
    assert!(
        fs::read_to_string(&settings)
            .unwrap()
            .contains("\nupnp = false"),
        "an administrator's settings stay"
    );

    shuts_down(&machine, &vm, &ping);
    machine.run(&["p2pvm", "vm", "stop", "web"]);
    machine.run(&["dpkg", "--remove", "p2pvm"]);
    assert_eq!(machine.state(), before, "removal keeps the state");
    assert!(
        machine
            .run(&["sh", "-c", "systemctl is-active p2pvm || true"])
            .contains("inactive")
    );
    machine.run(&["dpkg", "--purge", "p2pvm"]);
    assert!(!tree.join("var/lib/p2pvm").exists(), "purging forgets it");
}
