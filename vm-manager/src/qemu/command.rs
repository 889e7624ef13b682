//! QEMU's arguments. They decide what a guest *is*: two hosts must agree on them, or its state does
//! not fit.
//!
//! So the machine type carries its version, the processor is a named baseline and not the host's,
//! and nothing depends on what a host happens to have. `virtio` devices, as on any cloud, on fixed
//! slots.

use crate::hypervisor::{Accel, MachineSpec, Start};
use serde_json::json;
use std::os::fd::RawFd;

/// The versioned machine type: state saved by this QEMU loads in any later one.
const MACHINE: &str = "pc-q35-10.0";
/// x86-64-v2 with AES. Reason: every host of the last ten years has it and TCG can emulate it, so
/// that a guest may move between any two.
const CPU: &str = "Westmere";
/// How much translated code TCG keeps, MiB. Reason: QEMU's own default is an eighth of the host's
/// memory for each guest.
const TCG_CACHE_MIB: u32 = 96;
/// How many rows the receive queue of the network device has. Reason: the default of 256 drops
/// bursts of a fast sender.
const QUEUE: u32 = 1024;

/// What a guest does when the host's disk fails it: it stands still, and what failed is repeated
/// when it goes on. Reason: else the guest would take its disk for broken, though the host's is
/// only full.
const ON_ERROR: &str = "werror=stop,rerror=stop";

/// Names within the run directory, none of which QEMU opens itself.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";

/// The disk's name within QEMU.
pub(crate) const DISK_NODE: &str = "disk0";

/// Descriptors that QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InheritedFds {
    pub(crate) tap: RawFd,
    /// The VM's own disk, for reading and for writing: QEMU reopens it as its role changes, by
    /// access mode.
    pub(crate) disk: [RawFd; 2],
    /// The image below it.
    pub(crate) image: Option<(RawFd, &'static str)>,
    pub(crate) kvm: Option<RawFd>,
    /// Bound, for the monitor.
    pub(crate) monitor: RawFd,
    /// Bound, for the console.
    pub(crate) console: RawFd,
    /// What the console prints, opened for appending.
    pub(crate) console_log: RawFd,
}

/// The text in its arguments by which a guest's process is recognized.
pub(crate) fn tag(spec: &MachineSpec) -> String {
    spec.vm.to_string()
}

/// QEMU's command line as it grows.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    /// Adds `-key value`.
    fn add(&mut self, key: &str, value: impl Into<String>) {
        self.0.extend([format!("-{key}"), value.into()]);
    }

    /// Adds arguments as they are.
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(ToString::to_string));
    }
}

/// All arguments but the program.
pub(crate) fn arguments(
    spec: &MachineSpec,
    accel: Accel,
    start: &Start,
    fds: InheritedFds,
) -> Vec<String> {
    let mut args = Arguments::default();
    machine(&mut args, spec, accel, fds.kvm);
    control(&mut args, fds);
    disk(&mut args, fds);
    network(&mut args, spec, fds.tap);
    args.add("device", "virtio-rng-pci,id=rng0,addr=4");
    args.flags(&["-nodefaults", "-no-user-config"]);
    match start {
        Start::Boot => {}
        Start::Held => args.flags(&["-S"]),
        Start::Incoming | Start::Checkpoint(_) => args.flags(&["-S", "-incoming", "defer"]),
    }
    args.0
}

/// The name, the board, the processor, the memory.
fn machine(args: &mut Arguments, spec: &MachineSpec, accel: Accel, kvm: Option<RawFd>) {
    let name: String = spec
        .name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(32)
        .collect();
    args.add(
        "name",
        format!("guest={name}-{},debug-threads=on", tag(spec)),
    );
    args.add("machine", format!("{MACHINE},vmport=off,graphics=off"));
    match (accel, kvm) {
        (Accel::Kvm, Some(fd)) => {
            args.add("add-fd", format!("fd={fd},set=3"));
            args.add("accel", "kvm,device=/dev/fdset/3");
        }
        (Accel::Kvm, None) => args.add("accel", "kvm"),
        (Accel::Tcg, _) => args.add("accel", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
    }
    args.add("cpu", CPU);
    args.add("smp", format!("cpus={}", spec.cpus.max(1)));
    args.add("m", format!("{}M", spec.memory_mib));
    args.add("display", "none");
    args.add("vga", "none");
}

/// What the daemon controls the guest by, and the guest's console.
fn control(args: &mut Arguments, fds: InheritedFds) {
    args.add("sandbox", crate::jail::SECCOMP);
    args.add(
        "chardev",
        format!("socket,id=qmp,fd={},server=on,wait=off", fds.monitor),
    );
    args.add("mon", "chardev=qmp,mode=control");
    // The log is appended to, so that the daemon may cut it while QEMU writes.
    args.add("add-fd", format!("fd={},set=4", fds.console_log));
    args.add(
        "chardev",
        format!(
            "socket,id=console,fd={},server=on,wait=off,logfile=/dev/fdset/4,logappend=on",
            fds.console
        ),
    );
    args.add("serial", "chardev:console");
}

fn disk(args: &mut Arguments, fds: InheritedFds) {
    for fd in fds.disk {
        args.add("add-fd", format!("fd={fd},set=1"));
    }
    let mut disk = json!({
        "node-name": DISK_NODE, "driver": "qcow2", "discard": "unmap", "detect-zeroes": "unmap",
        "file": { "driver": "file", "filename": "/dev/fdset/1", "discard": "unmap" },
        "backing": null,
    });
    if let Some((fd, format)) = fds.image {
        args.add("add-fd", format!("fd={fd},set=2"));
        disk["backing"] = json!({
            "driver": format, "read-only": true,
            "file": { "driver": "file", "filename": "/dev/fdset/2", "read-only": true },
        });
    }
    args.add("blockdev", disk.to_string());
    args.add(
        "device",
        format!("virtio-blk-pci,drive={DISK_NODE},id=vda,bootindex=1,addr=2,{ON_ERROR}"),
    );
}

fn network(args: &mut Arguments, spec: &MachineSpec, tap: RawFd) {
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mtu = spec.mtu;
    args.add("netdev", format!("tap,id=net0,fd={tap},vhost=off"));
    args.add(
        "device",
        format!(
            "virtio-net-pci,netdev=net0,id=eth0,mac={mac},host_mtu={mtu},\
                rx_queue_size={QUEUE},tx_queue_size=256,romfile=,addr=3"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::VmId;

    fn spec(name: &str) -> MachineSpec {
        MachineSpec {
            vm: VmId([1; 32]),
            name: name.into(),
            cpus: 1,
            memory_mib: 128,
            disk: "/d".into(),
            mac: [2, 0, 0, 0, 0, 255],
            tap: "t".into(),
            mtu: 1340,
            run_dir: "/r".into(),
        }
    }

    const FDS: InheritedFds = InheritedFds {
        tap: 5,
        disk: [6, 7],
        image: Some((8, "qcow2")),
        kvm: None,
        monitor: 9,
        console: 10,
        console_log: 11,
    };

    #[test]
    fn a_vm_name_cannot_smuggle_an_option_in() {
        let args = arguments(&spec("web,process=x -S"), Accel::Tcg, &Start::Boot, FDS).join(" ");
        assert!(
            args.contains(&format!(
                "-name guest=webprocessx-S-{},debug-threads=on ",
                VmId([1; 32])
            )),
            "{args}"
        );
        assert!(args.contains("mac=02:00:00:00:00:ff,host_mtu=1340"));
    }

    #[test]
    fn source_and_target_of_a_move_are_the_same_machine() {
        let here = arguments(&spec("web"), Accel::Tcg, &Start::Boot, FDS);
        let there = arguments(&spec("web"), Accel::Tcg, &Start::Incoming, FDS);
        assert_eq!(there[..here.len()], here[..]);
        assert_eq!(there[here.len()..], ["-S", "-incoming", "defer"]);
        let held = arguments(&spec("web"), Accel::Tcg, &Start::Held, FDS);
        assert_eq!(held[here.len()..], ["-S"]);
    }
}
