//! Real guests for the tests: QEMU under TCG, the small guest image, a frame-level client for the
//! guest's port.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use p2pvm_overlay::{BoxStream, VmId};
use p2pvm_vm_manager::{
    hypervisor::{Accel, Hypervisor, Machine, MachineSpec, RunState, Start},
    qemu::Qemu,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const READY: &str = "p2pvm guest ready";
/// How long a guest may take for what it does in a second or three: the tests share two cores with
/// other things.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The image, or a line that says what is not run and why.
pub fn image(test: &str) -> Option<PathBuf> {
    let missing = |why: &str| {
        println!("NOT RUN: {test}: {why}");
        eprintln!("NOT RUN: {test}: {why}");
        None
    };
    if Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_err()
        || Command::new("qemu-img").arg("--version").output().is_err()
    {
        return missing("QEMU is not installed");
    }
    if !nix::unistd::geteuid().is_root() {
        return missing("a guest's TAP needs root");
    }
    if let Some(path) = std::env::var_os("P2PVM_TEST_IMAGE") {
        return Some(path.into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-image/build.sh");
    let output = Command::new(script).output().ok()?;
    match output.status.success() {
        true => Some(String::from_utf8_lossy(&output.stdout).trim().into()),
        false => missing(&format!(
            "no guest image: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// A host: a driver with a directory of its own.
pub struct Host {
    pub qemu: Qemu,
    pub dir: tempfile::TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            qemu: Qemu::new(dir.path(), Some(Accel::Tcg), None),
            dir,
        }
    }

    /// The VM as it would run here, on a TAP of its own.
    pub async fn spec(&self, vm: u8, image: &Path) -> MachineSpec {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let disk = self.dir.path().join(format!("{vm}.qcow2"));
        if !disk.exists() {
            self.qemu.create_disk(image, &disk, None).await.unwrap();
        }
        MachineSpec {
            vm: VmId([vm; 32]),
            name: format!("test{vm}"),
            cpus: 1,
            memory_mib: 128,
            disk,
            mac: [2, 0, 0, 0, 0, vm],
            tap: format!("q{}.{n}", std::process::id()),
            mtu: 1340,
            run_dir: self.dir.path().join(format!("run{vm}")),
        }
    }

    /// A guest that has come up.
    pub async fn boot(&self, vm: u8, image: &Path) -> Guest {
        let machine = self
            .qemu
            .launch(&self.spec(vm, image).await, Start::Boot)
            .await
            .unwrap();
        let mut guest = Guest::of(machine).await;
        guest.until(READY).await;
        guest
    }

    /// Takes up the guest that an earlier daemon has let go of.
    pub async fn adopt(&self, spec: &MachineSpec) -> Guest {
        for _ in 0..100 {
            // The old connection must be gone first: a monitor serves one client.
            if let Some(machine) = self.qemu.adopt(spec).await.unwrap() {
                return Guest::of(machine).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} is gone", spec.name);
    }
}

/// A guest with its console. It does not outlive the test.
pub struct Guest {
    lives_on: bool,
    pub machine: Arc<dyn Machine>,
    console: Console,
}

impl Guest {
    pub async fn of(machine: Arc<dyn Machine>) -> Self {
        let console = Console::of(machine.console().await.unwrap());
        Self {
            lives_on: false,
            machine,
            console,
        }
    }

    /// Lets go of a guest as a dying daemon does: the connections close, the process lives.
    pub fn forget(mut self) {
        self.lives_on = true;
    }

    /// Reads the console up to `text` and returns what came before it.
    pub async fn until(&mut self, text: &str) -> String {
        self.console.until(text).await
    }

    /// Runs a command in the guest's shell and returns its output.
    pub async fn run(&mut self, command: &str) -> String {
        self.console.run(command).await
    }
}

/// A guest's serial console, with a shell behind it.
pub struct Console {
    stream: BoxStream,
    heard: String,
}

impl Console {
    pub fn of(stream: BoxStream) -> Self {
        Self {
            stream,
            heard: String::new(),
        }
    }

    /// Reads the console up to `text` and returns what came before it.
    pub async fn until(&mut self, text: &str) -> String {
        let read = async {
            let mut buffer = [0; 4096];
            loop {
                if let Some(at) = self.heard.find(text) {
                    let rest = self.heard.split_off(at + text.len());
                    let mut before = std::mem::replace(&mut self.heard, rest);
                    before.truncate(at);
                    return before;
                }
                let n = self.stream.read(&mut buffer).await.unwrap();
                assert!(n > 0, "the console ended; heard: {}", self.heard);
                self.heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(before) => before,
            Err(_) => panic!("'{text}' did not come; heard: {}", self.heard),
        }
    }

    /// Runs a command in the guest's shell and returns its output.
    pub async fn run(&mut self, command: &str) -> String {
        // Never the same twice, since a new reader is shown what an older one has read; quoted
        // apart in the command, so that its echo is not taken for its end.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let line = format!("echo be''gin{n}; {command}; echo e''nd{n}\n");
        self.stream.write_all(line.as_bytes()).await.unwrap();
        self.until(&format!("begin{n}\r\n")).await;
        self.until(&format!("end{n}\r\n"))
            .await
            .trim()
            .replace('\r', "")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.lives_on {
            return;
        }
        // By the pid file, since nothing can be awaited here; the driver, on another thread, then
        // clears up.
        let pid = std::fs::read_to_string(self.machine.spec().run_dir.join("qemu.pid"));
        if let Some(pid) = pid.ok().and_then(|text| text.trim().parse().ok()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        for _ in 0..200 {
            if *self.machine.watch().borrow() == RunState::Stopped {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
