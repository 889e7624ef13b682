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
/// x86-64-v2 with AES: what every host of the last ten years has and TCG can emulate. A guest may
/// then move between any two.
const CPU: &str = "Westmere";
/// Translated code kept by TCG, MiB. QEMU's own default is an eighth of the host's memory for each
/// guest.
const TCG_CACHE_MIB: u32 = 96;
/// Rows that a queue pair of the network device holds; the default of 256 drops bursts of a fast
/// sender.
const QUEUE: u32 = 1024;

/// What a guest's disk does when the host's fails it: the guest stands still, and what failed is
/// done again when it goes on. Else a guest would be told that its disk is broken, though the
/// host's is only full.
const ON_ERROR: &str = "werror=stop,rerror=stop";

/// Names within the run directory. QEMU stands in it, so that no path is longer than a socket
/// address may be.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";

/// The disk's name within QEMU.
pub(crate) const DISK_NODE: &str = "disk0";

/// Descriptors that QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) tap: RawFd,
    /// The VM's own disk, for reading and for writing: QEMU reopens it as its role changes, by
    /// access mode.
    pub(crate) disk: [RawFd; 2],
    /// The image below it.
    pub(crate) image: Option<(RawFd, &'static str)>,
    pub(crate) kvm: Option<RawFd>,
}

/// By what a guest's process is recognized.
pub(crate) fn tag(spec: &MachineSpec) -> String {
    spec.vm.to_string()
}

/// All arguments but the program.
pub(crate) fn arguments(
    spec: &MachineSpec,
    accel: Accel,
    start: &Start,
    fds: Inherited,
) -> Vec<String> {
    let name: String = spec
        .name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(32)
        .collect();
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut args: Vec<String> = Vec::new();
    let mut arg = |key: &str, value: String| args.extend([format!("-{key}"), value]);
    arg(
        "name",
        format!("guest={name}-{},debug-threads=on", tag(spec)),
    );
    arg("machine", format!("{MACHINE},vmport=off,graphics=off"));
    match (accel, fds.kvm) {
        (Accel::Kvm, Some(fd)) => {
            arg("add-fd", format!("fd={fd},set=3"));
            arg("accel", "kvm,device=/dev/fdset/3".into());
        }
        (Accel::Kvm, None) => arg("accel", "kvm".into()),
        (Accel::Tcg, _) => arg("accel", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
    }
    arg("cpu", CPU.into());
    arg("smp", format!("cpus={}", spec.cpus.max(1)));
    arg("m", format!("{}M", spec.memory_mib));
    arg("display", "none".into());
    arg("vga", "none".into());
    arg("pidfile", super::process::PID_FILE.into());
    arg("sandbox", crate::jail::SECCOMP.into());
    arg(
        "chardev",
        format!("socket,id=qmp,path={QMP_SOCKET},server=on,wait=off"),
    );
    arg("mon", "chardev=qmp,mode=control".into());
    // The log is appended to, so that the daemon may cut it while QEMU writes.
    arg(
        "chardev",
        format!(
            "socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on"
        ),
    );
    arg("serial", "chardev:console".into());
    for fd in fds.disk {
        arg("add-fd", format!("fd={fd},set=1"));
    }
    let mut disk = json!({
        "node-name": DISK_NODE, "driver": "qcow2", "discard": "unmap", "detect-zeroes": "unmap",
        "file": { "driver": "file", "filename": "/dev/fdset/1", "discard": "unmap" },
        "backing": null,
    });
    if let Some((fd, format)) = fds.image {
        arg("add-fd", format!("fd={fd},set=2"));
        disk["backing"] = json!({
            "driver": format, "read-only": true,
            "file": { "driver": "file", "filename": "/dev/fdset/2", "read-only": true },
        });
    }
    arg("blockdev", disk.to_string());
    arg(
        "device",
        format!("virtio-blk-pci,drive={DISK_NODE},id=vda,bootindex=1,addr=2,{ON_ERROR}"),
    );
    arg("netdev", format!("tap,id=net0,fd={},vhost=off", fds.tap));
    let mtu = spec.mtu;
    arg(
        "device",
        format!(
            "virtio-net-pci,netdev=net0,id=eth0,mac={mac},host_mtu={mtu},rx_queue_size={QUEUE},tx_queue_size=256,romfile=,addr=3"
        ),
    );
    arg("device", "virtio-rng-pci,id=rng0,addr=4".into());
    args.extend(["-nodefaults".into(), "-no-user-config".into()]);
    if *start != Start::Boot {
        args.extend(["-S".into(), "-incoming".into(), "defer".into()]);
    }
    args
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

    const FDS: Inherited = Inherited {
        tap: 5,
        disk: [6, 7],
        image: Some((8, "qcow2")),
        kvm: None,
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
    }
}
