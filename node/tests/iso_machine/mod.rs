//! The appliance's ISO in machines that QEMU makes: firmware, medium, network, disk. What a machine
//! shows on its serial port is what a person would see, and the keys go in there. `make test-iso`
//! runs these tests; without an ISO (`P2PVM_TEST_ISO`) each says that it was not run.

#![allow(dead_code, reason = "each test binary uses its own part")]

mod serial;

use crate::common::{lab, measured::Measurement, network, public_sites};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use p2pvm_lab::{chain, figures::Figure, lab::Lab};
use p2pvm_overlay::membership::Invite;
use serial::Serial;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A boot takes one to two minutes where QEMU has to translate every instruction; others may use
/// the machine as well.
pub const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// What UEFI firmware Debian's `ovmf` brings.
pub const OVMF: [&str; 2] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
];
/// The aim for a machine without guests, MiB.
pub const MEMORY: &str = "768";
/// What the status screen shows when the machine is a member with an address.
pub const MEMBER: &str = " address  10.";

pub fn iso() -> Option<PathBuf> {
    let given = std::env::var_os("P2PVM_TEST_ISO")
        .map(PathBuf::from)
        .filter(|path| path.exists());
    if given.is_none() {
        println!(
            "NOT RUN: no ISO of the appliance: 'make test-iso' builds one and runs this \
                (P2PVM_TEST_ISO names one)"
        );
    }
    given
}

/// Begins a test's measurement for docs/appliance.md.
pub fn measurement() -> Measurement {
    Measurement::begin("appliance", "make test-iso FIGURES=docs/figures")
}

pub enum Firmware {
    Bios,
    Uefi,
}

/// A machine that is switched off when dropped.
pub struct Machine {
    qemu: Child,
    pub serial: Serial,
    began: Instant,
}

impl Machine {
    /// Switches a machine on with `arguments` beside the usual; on a lab's host if one is given.
    pub fn on(
        dir: &Path,
        name: &str,
        firmware: Firmware,
        arguments: &[String],
        at: Option<(&Lab, &str)>,
    ) -> Self {
        let port = dir.join(format!("{name}.serial"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "Westmere",
            "-m",
            MEMORY,
            "-smp",
            "1",
        ]);
        command.args(["-nodefaults", "-vga", "std", "-display", "none"]);
        command.args([
            "-chardev",
            &format!("socket,id=port,path={},server=on,wait=on", port.display()),
            "-serial",
            "chardev:port",
        ]);
        command.args([
            "-netdev",
            "user,id=lan",
            "-device",
            "virtio-net-pci,netdev=lan",
        ]);
        if let Firmware::Uefi = firmware {
            let variables = dir.join(format!("{name}.vars"));
            fs::copy(OVMF[1], &variables).expect("OVMF's variables: apt-get install ovmf");
            command.args([
                "-drive",
                &format!("if=pflash,format=raw,readonly=on,file={}", OVMF[0]),
            ]);
            command.args([
                "-drive",
                &format!("if=pflash,format=raw,file={}", variables.display()),
            ]);
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let qemu = match at {
            Some((lab, host)) => lab
                .testbed()
                .spawn(host, &mut command)
                .expect("starting QEMU on a host"),
            None => command
                .spawn()
                .expect("starting QEMU: apt-get install qemu-system-x86"),
        };
        Self {
            qemu,
            serial: Serial::connect(&port),
            began: Instant::now(),
        }
    }

    /// Waits until the serial port showed `what`; gives the line and how long the machine has been
    /// on.
    pub fn wait(&mut self, what: &str) -> (String, Duration) {
        self.wait_line(what, |line| line.contains(what))
    }

    pub fn wait_line(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> (String, Duration) {
        while self.began.elapsed() < BOOT_LIMIT {
            if let Some(line) = self.serial.find(&is_it) {
                return (line, self.began.elapsed());
            }
            if let Some(status) = self.qemu.try_wait().expect("watching QEMU") {
                panic!(
                    "QEMU ended ({status}) before '{what}': {}",
                    self.serial.all()
                );
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        panic!(
            "'{what}' was not shown within {} s: {}",
            BOOT_LIMIT.as_secs(),
            self.serial.all()
        );
    }

    /// The invite that the screen shows, which takes several of its rows, once it is there whole.
    pub fn invite(&mut self) -> Invite {
        self.wait(" p2pvm1");
        loop {
            let screen = self.serial.screen();
            let rows = screen
                .lines()
                .map(str::trim)
                .skip_while(|row| !row.starts_with("p2pvm1"));
            let shown: String = rows
                .take_while(|row| !row.is_empty() && row.chars().all(|c| c.is_ascii_alphanumeric()))
                .collect();
            match Invite::parse(&shown) {
                Ok(invite) => return invite,
                Err(e) => assert!(self.began.elapsed() < BOOT_LIMIT, "{e:?}: {shown}"),
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    pub fn off(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself; waiting reaps it either way.
        let _ = kill(Pid::from_raw(self.qemu.id() as i32), Signal::SIGKILL);
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn cd(iso: &Path) -> Vec<String> {
    vec![
        "-drive".into(),
        format!("media=cdrom,format=raw,readonly=on,file={}", iso.display()),
    ]
}

pub fn stick(iso: &Path) -> Vec<String> {
    let drive = format!(
        "if=none,id=stick,format=raw,readonly=on,file={}",
        iso.display()
    );
    [
        "-device",
        "qemu-xhci",
        "-drive",
        &drive,
        "-device",
        "usb-storage,drive=stick",
    ]
    .map(str::to_owned)
    .into()
}

/// The kernel and initramfs of the ISO, for machines that are given a command line.
pub fn kernel(iso: &Path, dir: &Path) -> [String; 2] {
    let files = [("/boot/vmlinuz", "vmlinuz"), ("/boot/initrd", "initrd")];
    files.map(|(inside, name)| {
        let to = dir.join(name);
        let output = Command::new("xorriso")
            .args(["-osirrox", "on", "-indev"])
            .arg(iso)
            .args(["-extract", inside])
            .arg(&to)
            .output()
            .expect("running xorriso: apt-get install xorriso");
        assert!(to.exists(), "{}", String::from_utf8_lossy(&output.stderr));
        to.to_string_lossy().into_owned()
    })
}

/// The medium, and the kernel with `words` on its command line, as PXE or a hypervisor gives them.
pub fn with_command_line(iso: &Path, dir: &Path, words: &str) -> Vec<String> {
    let [vmlinuz, initrd] = kernel(iso, dir);
    let line = format!("console=ttyS0,115200 quiet {words}");
    let kernel = ["-kernel", &vmlinuz, "-initrd", &initrd, "-append", &line].map(str::to_owned);
    [cd(iso), kernel.into()].concat()
}

/// The sizes of the ISO, and of the initramfs and the kernel that [`kernel`] took out of it.
pub fn sizes(iso: &Path, dir: &Path) -> [Figure; 3] {
    let bytes = |path: &Path| fs::metadata(path).expect("it was made before").len() as f64;
    let part = |file: &str| bytes(&dir.join(file)) / 1e6;
    let mib = bytes(iso) / f64::from(1u32 << 20);
    [
        Figure::new("iso-size", "size of the ISO", "MiB", [mib]),
        Figure::new(
            "initramfs-size",
            "size of its initramfs",
            "MB",
            [part("initrd")],
        ),
        Figure::new("kernel-size", "size of its kernel", "MB", [part("vmlinuz")]),
    ]
}

/// Memory in use and memory in all, as the shell of a machine shows them.
pub fn memory(machine: &mut Machine) -> [Figure; 2] {
    machine
        .serial
        .type_keys("grep -E '^Mem(Total|Available):' /proc/meminfo\r");
    let mut mib = |field: &str| {
        let (line, _) = machine.wait_line(field, |line| {
            line.starts_with(field) && line.ends_with(" kB")
        });
        let kib = line.split_whitespace().nth(1).map(str::parse::<f64>);
        let Some(Ok(kib)) = kib else {
            panic!("no amount: {line}")
        };
        kib / 1024.0
    };
    let (total, available) = (mib("MemTotal:"), mib("MemAvailable:"));
    let used = "memory in use: total less available";
    [
        Figure::new("memory", used, "MiB", [total - available]),
        Figure::new("memory-total", "memory in all", "MiB", [total]),
    ]
}

/// A plain host `a`; on `b` and `c` appliances run behind QEMU's own NAT.
pub fn plain_host(test: &str) -> Lab {
    let lab = lab(test, &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a"]);
    lab
}

/// A machine that is a member and answers over a path of its own.
pub struct Reached {
    /// From power on to the screen of a member.
    pub member: Duration,
    /// From there to the last of three pings over a direct path.
    pub direct: Duration,
    /// Of these pings.
    pub rtts_ms: Vec<f64>,
}

/// Waits until the machine is a member, answers over the overlay, and does so over a path of its
/// own.
pub fn is_pinged(lab: &Lab, machine: &mut Machine, name: &str) -> Reached {
    let (_, member) = machine.wait(MEMBER);
    println!("{name}: member {} s after power on", member.as_secs());
    let (began, mut first) = (Instant::now(), None);
    let pinged = lab
        .wait(
            "the appliance to answer over a direct path",
            Duration::from_secs(120),
            Duration::from_secs(1),
            || {
                let Ok(pinged) = lab.ping("a", name, 3, "1s") else {
                    return Ok(None);
                };
                first.get_or_insert_with(|| (began.elapsed(), pinged.path.clone()));
                Ok(Some(pinged).filter(|pinged| pinged.path.starts_with("direct")))
            },
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}; first {first:?}\n{}\n{}",
                chain(&e),
                lab.log_tail("a", 60),
                machine.serial.all()
            )
        });
    let direct = began.elapsed();
    println!(
        "{name}: best {:.1} ms, {} after {} s; first {first:?}",
        pinged.best_ms(),
        pinged.path,
        direct.as_secs()
    );
    Reached {
        member,
        direct,
        rtts_ms: pinged.rtts_ms,
    }
}
