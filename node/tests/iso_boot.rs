//! The appliance's ISO in real machines (QEMU): firmware, medium, network, disk. What each machine shows on its serial port is
//! what a person would see, and the keys go in there. `make test-iso` runs it; without an ISO (`P2PVM_TEST_ISO`) every test says that it was not run.

mod common;
mod iso_serial;

use common::{image, lab, network, public_sites};
use iso_serial::Serial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use p2pvm_overlay::{UnixTime, membership::Invite};
use p2pvm_tests::lab::Lab;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A boot takes one to two minutes where QEMU has to translate every instruction; others may use the machine as well.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// What UEFI firmware Debian's `ovmf` brings.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];
/// The aim for a machine without guests, MiB.
const MEMORY: &str = "768";
/// What the status screen shows when the machine is a member with an address.
const MEMBER: &str = " address  10.";

fn iso() -> Option<PathBuf> {
    let given = std::env::var_os("P2PVM_TEST_ISO").map(PathBuf::from).filter(|path| path.exists());
    if given.is_none() {
        println!("NOT RUN: no ISO of the appliance: 'make test-iso' builds one and runs this (P2PVM_TEST_ISO names one)");
    }
    given
}

enum Firmware {
    Bios,
    Uefi,
}

/// A machine that is switched off when dropped.
struct Machine {
    qemu: Child,
    serial: Serial,
    began: Instant,
}

impl Machine {
    /// Switches a machine on with `arguments` beside the usual; on a lab's host if one is given.
    fn on(dir: &Path, name: &str, firmware: Firmware, arguments: &[&str], at: Option<(&Lab, &str)>) -> Self {
        let port = dir.join(format!("{name}.serial"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Westmere", "-m", MEMORY, "-smp", "1"]);
        command.args(["-nodefaults", "-vga", "std", "-display", "none"]);
        command.args(["-chardev", &format!("socket,id=port,path={},server=on,wait=on", port.display()), "-serial", "chardev:port"]);
        command.args(["-netdev", "user,id=lan", "-device", "virtio-net-pci,netdev=lan"]);
        if let Firmware::Uefi = firmware {
            let variables = dir.join(format!("{name}.vars"));
            fs::copy(OVMF[1], &variables).expect("OVMF's variables: apt-get install ovmf");
            command.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={}", OVMF[0])]);
            command.args(["-drive", &format!("if=pflash,format=raw,file={}", variables.display())]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let qemu = match at {
            Some((lab, host)) => lab.testbed().spawn(host, &mut command).expect("starting QEMU on a host"),
            None => command.spawn().expect("starting QEMU: apt-get install qemu-system-x86"),
        };
        Self { qemu, serial: Serial::connect(&port), began: Instant::now() }
    }

    /// Waits until the serial port showed `what`; gives the line and how long the machine has been on.
    fn wait(&mut self, what: &str) -> (String, Duration) {
        self.wait_line(what, |line| line.contains(what))
    }

    fn wait_line(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> (String, Duration) {
        while self.began.elapsed() < BOOT_LIMIT {
            if let Some(line) = self.serial.find(&is_it) {
                return (line, self.began.elapsed());
            }
            if let Some(status) = self.qemu.try_wait().expect("watching QEMU") {
                panic!("QEMU ended ({status}) before '{what}': {}", self.serial.all());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        panic!("'{what}' was not shown within {} s: {}", BOOT_LIMIT.as_secs(), self.serial.all());
    }

    /// The invite that the screen shows, which takes several of its rows.
    fn invite(&mut self) -> String {
        self.wait(" p2pvm1");
        let screen = self.serial.screen();
        let rows = screen.lines().map(str::trim).skip_while(|row| !row.starts_with("p2pvm1"));
        rows.take_while(|row| !row.is_empty() && row.chars().all(|c| c.is_ascii_alphanumeric())).collect()
    }

    fn off(mut self) {
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

fn boots(name: &str, firmware: Firmware, medium: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let arguments: Vec<&str> = medium.iter().map(String::as_str).collect();
    let mut machine = Machine::on(dir.path(), name, firmware, &arguments, None);
    machine.wait("founded a network of its own");
    let (line, after) = machine.wait(MEMBER);
    println!("{name}: member {} s after power on: {line}", after.as_secs());
    machine.wait("in MEMORY");
    machine.wait("forgotten at power-off");
    machine.wait("health   alone");
    let invite = machine.invite();
    Invite::parse(&invite).and_then(|invite| invite.check(UnixTime::now())).unwrap_or_else(|e| panic!("{e:?}: {invite}"));
}

fn cd(iso: &Path) -> Vec<String> {
    vec!["-drive".into(), format!("media=cdrom,format=raw,readonly=on,file={}", iso.display())]
}

fn stick(iso: &Path) -> Vec<String> {
    let drive = format!("if=none,id=stick,format=raw,readonly=on,file={}", iso.display());
    ["-device", "qemu-xhci", "-drive", &drive, "-device", "usb-storage,drive=stick"].map(str::to_owned).into()
}

#[test]
fn a_bios_machine_boots_from_cd_into_a_member_with_no_question_asked() {
    let Some(iso) = iso() else { return };
    boots("bios-cd", Firmware::Bios, &cd(&iso));
}

#[test]
fn a_bios_machine_boots_from_a_usb_stick() {
    let Some(iso) = iso() else { return };
    boots("bios-usb", Firmware::Bios, &stick(&iso));
}

#[test]
fn a_uefi_machine_boots_from_cd() {
    let Some(iso) = iso() else { return };
    boots("uefi-cd", Firmware::Uefi, &cd(&iso));
}

#[test]
fn a_uefi_machine_boots_from_a_usb_stick() {
    let Some(iso) = iso() else { return };
    boots("uefi-usb", Firmware::Uefi, &stick(&iso));
}

/// A plain host `a`, and `b`, on which the appliance runs behind QEMU's own NAT.
fn plain_host(test: &str) -> Lab {
    let lab = lab(test, &public_sites(&["a", "b"], 10.0));
    network(&lab, &["a"]);
    lab
}

fn is_pinged(lab: &Lab, machine: &mut Machine, name: &str) {
    let (line, after) = machine.wait(MEMBER);
    println!("{name}: member {} s after power on: {line}", after.as_secs());
    let pinged = lab
        .wait("the appliance to answer over the overlay", Duration::from_secs(60), Duration::from_secs(1), || {
            Ok(lab.ping("a", name, 3, "1s").ok())
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", lab.log_tail("a", 30), machine.serial.all()));
    println!("{name}: pinged, best {:.1} ms, {}", pinged.best_ms(), pinged.path);
}

#[test]
fn a_customized_iso_joins_a_plain_host_over_the_wide_area_and_is_pinged() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-customized");
    let made = dir.path().join("lab.iso");
    let invite = lab.invite("a", 2).unwrap();
    let (iso, made_text) = (iso.to_string_lossy(), made.to_string_lossy());
    lab.p2pvm("a", &["image", "customize", &iso, "--join", &invite, "-o", &made_text]).unwrap();
    let medium = [cd(&made), vec!["-smbios".into(), "type=1,serial=4711".into()]].concat();
    let arguments: Vec<&str> = medium.iter().map(String::as_str).collect();
    let mut machine = Machine::on(dir.path(), "customized", Firmware::Bios, &arguments, Some((&lab, "b")));
    let (line, _) = machine.wait("admitted as ");
    let name = line.split("admitted as ").nth(1).unwrap().trim().to_owned();
    is_pinged(&lab, &mut machine, &name);
    drop(machine);
    lab.down().unwrap();
}

/// The kernel and initramfs of the ISO, for machines that are given a command line.
fn kernel(iso: &Path, dir: &Path) -> [String; 2] {
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

#[test]
fn a_machine_installs_unattended_by_command_line_joins_and_then_boots_from_its_disk_as_the_same_member() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-install");
    let invite = lab.invite("a", 1).unwrap();
    let disk = dir.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    let [vmlinuz, initrd] = kernel(&iso, dir.path());
    let line = format!("console=ttyS0,115200 quiet p2pvm.install=/dev/vda p2pvm.name=attic p2pvm.join={invite}");
    let drive = format!("if=virtio,format=raw,file={}", disk.display());
    let medium = [cd(&iso), vec!["-drive".into(), drive.clone()]].concat();
    let mut arguments: Vec<&str> = medium.iter().map(String::as_str).collect();
    arguments.extend(["-kernel", &vmlinuz, "-initrd", &initrd, "-append", &line]);
    let mut machine = Machine::on(dir.path(), "install", Firmware::Bios, &arguments, Some((&lab, "b")));
    machine.wait("boots by itself from now on");
    machine.wait("joining by p2pvm.join=");
    is_pinged(&lab, &mut machine, "attic");
    machine.off();

    // From the disk alone, under the other firmware, the invite long used up.
    let mut machine = Machine::on(dir.path(), "installed", Firmware::Uefi, &["-drive", &drive], Some((&lab, "b")));
    machine.wait("identity and VMs are on /dev/vda3");
    machine.wait("this machine is a member already");
    is_pinged(&lab, &mut machine, "attic");
    drop(machine);
    lab.down().unwrap();
}

#[test]
fn a_bad_invite_is_refused_on_the_console_with_the_reason_and_a_typed_one_leads_into_the_network() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-refused");
    let [vmlinuz, initrd] = kernel(&iso, dir.path());
    let medium = cd(&iso);
    let mut arguments: Vec<&str> = medium.iter().map(String::as_str).collect();
    let line = "console=ttyS0,115200 quiet p2pvm.name=attic p2pvm.join=p2pvm1nonsense";
    arguments.extend(["-kernel", &vmlinuz, "-initrd", &initrd, "-append", line]);
    let mut machine = Machine::on(dir.path(), "refused", Firmware::Bios, &arguments, Some((&lab, "b")));
    machine.wait("Refused: p2pvm.join= on the kernel command line: this is no invite");
    machine.wait("paste another invite");
    assert!(!machine.serial.all().contains("founded a network"), "it must not found a network instead");
    machine.serial.type_keys("p2pvm1worse\r");
    machine.wait_line("the reason on a line of its own", |line| line.starts_with("this is no invite"));
    let invite = lab.invite("a", 1).unwrap();
    machine.serial.type_keys(&format!("{invite}\r"));
    machine.wait("admitted as attic");
    is_pinged(&lab, &mut machine, "attic");
    drop(machine);
    lab.down().unwrap();
}

/// A guest within an appliance within QEMU is translated twice.
const GUEST_LIMIT: Duration = Duration::from_secs(300);
/// With 64M the guest image resets before its kernel's first word, over and over again, on any host.
const GUEST_MEMORY: &str = "128M";
/// For a machine that has a guest as well.
const MEMORY_WITH_GUEST: &str = "1024";
/// The guest image that every appliance has.
const GUEST_IMAGE: &str = "/usr/lib/p2pvm/guest.qcow2";

/// Switches an appliance on that is told its network and name on the kernel command line.
fn joining(lab: &Lab, dir: &Path, iso: &Path, (name, at): (&str, &str), invite: &str) -> Machine {
    let at_kernel = dir.join(name);
    fs::create_dir(&at_kernel).unwrap();
    let [vmlinuz, initrd] = kernel(iso, &at_kernel);
    let line = format!("console=ttyS0,115200 quiet p2pvm.name={name} p2pvm.join={invite}");
    let medium = cd(iso);
    let mut arguments: Vec<&str> = medium.iter().map(String::as_str).collect();
    arguments.extend(["-m", MEMORY_WITH_GUEST, "-kernel", &vmlinuz, "-initrd", &initrd, "-append", &line]);
    Machine::on(dir, name, Firmware::Bios, &arguments, Some((lab, at)))
}

fn moved(lab: &Lab, to: &str) {
    let began = Instant::now();
    let done = lab.json("a", &["vm", "migrate", "web", "--to", to]).unwrap_or_else(|e| panic!("{e}\n{}", lab.log_tail("a", 60)));
    assert_eq!(done["host"], to, "{done}");
    println!("web: on {to} after {:.1} s, down {} ms", began.elapsed().as_secs_f64(), done["downtime_ms"]);
}

#[test]
fn two_appliances_join_and_a_guest_moves_from_a_plain_host_into_each_and_back_while_a_client_counts() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = lab("iso-guest", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a"]);
    let invite = lab.invite("a", 2).unwrap();
    let mut attic = joining(&lab, dir.path(), &iso, ("attic", "b"), &invite);
    let mut cellar = joining(&lab, dir.path(), &iso, ("cellar", "c"), &invite);
    is_pinged(&lab, &mut attic, "attic");
    is_pinged(&lab, &mut cellar, "cellar");
    assert_ne!(attic.wait(MEMBER).0, cellar.wait(MEMBER).0, "each has an address of its own");

    // Made and started there from outside, out of what the appliance has. It boots, but QEMU within QEMU takes many minutes for that.
    let words = ["vm", "create", "slow", "--on", "attic", "--image", GUEST_IMAGE, "--memory", GUEST_MEMORY, "--start"];
    let slow = lab.json("a", &words).unwrap_or_else(|e| panic!("{e}\n{}", attic.serial.all()));
    assert_eq!((slow["host"].as_str(), slow["state"].as_str()), (Some("attic"), Some("running")), "{slow}");
    lab.p2pvm("a", &["vm", "delete", "slow", "--force"]).unwrap();

    // So the guest that is moved has booted on the plain host.
    let words = ["vm", "create", "web", "--image", image(), "--memory", GUEST_MEMORY, "--start"];
    let made = lab.json("a", &words).unwrap_or_else(|e| panic!("{e}\n{}", lab.log_tail("a", 60)));
    let address = made["address"].as_str().unwrap().to_owned();
    lab.wait_for_guest("a", &address, GUEST_LIMIT).unwrap_or_else(|e| panic!("{e}\n{}", lab.log_tail("a", 60)));

    let client = lab.client("a", &address, 100).unwrap();
    for to in ["attic", "a", "cellar", "a"] {
        std::thread::sleep(Duration::from_secs(5));
        moved(&lab, to);
    }
    std::thread::sleep(Duration::from_secs(5));
    let seen = client.finish().unwrap();
    println!("web: {seen:?}");
    assert_eq!((seen.lost, seen.doubled, seen.counter_gaps, &seen.ended), (0, 0, 0, &None), "{seen:?}");
    assert!(seen.replies > 50, "{seen:?}");
    drop((attic, cellar));
    lab.down().unwrap();
}
