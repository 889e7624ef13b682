//! The doctor's rules: they turn each observation into a level and a sentence that names a remedy.

use super::probes::{Cgroups, Clock, Disk, Kvm, Programs, Udp};
use p2pvm_api::{Check, Failure, FindingView, NetCheckView, Status};
use p2pvm_daemon::{layout::Layout, lock};

use p2pvm_host::{
    Finding,
    Level::{self, Failed, Ok as Fine, Warning},
    tun::TunTrouble,
};

/// The least MTU, bytes. Reason: QUIC's packets of 1200 bytes with their headers (RFC 9000 §14)
/// need the least MTU of IPv6.
const MTU_NEEDED: u32 = 1280;
/// How many free inodes a start needs.
const FILES_NEEDED: u64 = 1000;
/// The first QEMU whose migration p2pvm can control.
const QEMU_MAJOR: u32 = 10;
/// The least free disk space, bytes. Reason: below it even a node's tables may not fit.
const DISK_NEEDED: u64 = 512 << 20;
/// The free disk space, bytes, that an image, a disk on it and a snapshot's chunks need.
const DISK_WANTED: u64 = 8 << 30;
/// The memory, MiB, that the daemon and one small guest need.
const MEMORY_WANTED_MIB: u64 = 512;

fn check(check: &str, level: Level, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        check: check.to_owned(),
        level,
        found: found.into(),
        advice: advice.into(),
    }
}

pub(super) fn root(is_root: bool) -> Check {
    if is_root {
        return check("root", Fine, "this is root", "");
    }
    check(
        "root",
        Warning,
        "this is not root",
        "run 'sudo p2pvm doctor': the daemon runs as root, and some checks need root",
    )
}

/// `read`: a table with its previous name, or why the settings cannot be read.
pub(super) fn settings(read: Result<Option<&str>, &Failure>) -> Check {
    match read {
        Ok(None) => check("settings", Fine, "the settings are readable", ""),
        Ok(Some(renamed)) => check(
            "settings",
            Warning,
            renamed,
            "rename the table; a later version may reject the previous name",
        ),
        Err(failure) => check(
            "settings",
            Failed,
            failure.message.clone(),
            "correct or remove that line; the daemon does not start with it",
        ),
    }
}

pub(super) fn kvm(found: &Kvm) -> Check {
    const ENABLE: &str = "enable VT-x or AMD-V in the firmware's setup, then 'modprobe kvm_intel' \
        or 'modprobe kvm_amd'";
    match found {
        Kvm::Works => check("kvm", Fine, "a probe guest ran on KVM", ""),
        Kvm::Missing => check(
            "kvm",
            Warning,
            "there is no /dev/kvm: guests run translated, ten to thirty times slower",
            ENABLE,
        ),
        Kvm::Broken => check(
            "kvm",
            Warning,
            "/dev/kvm is there, but a probe guest does not run on it, or there was nothing to \
                probe with: guests run translated",
            "in a VM: give it nested virtualization with EPT or NPT; else name a kernel to probe \
                with (probe_kernel in node.toml)",
        ),
        Kvm::Forced(accel) => check(
            "kvm",
            Fine,
            format!("node.toml forces {accel}: nothing was probed"),
            "",
        ),
        Kvm::Unknown(why) => check(
            "kvm",
            Warning,
            format!("not probed: {why}"),
            "guests cannot be started until this is fixed",
        ),
    }
}

pub(super) fn tun(tried: Result<(), TunTrouble>) -> Check {
    match tried {
        Ok(()) => check("tun", Fine, "this process can make a TUN interface", ""),
        Err(trouble) => check("tun", Failed, trouble.to_string(), trouble.remedy()),
    }
}

pub(super) fn nft(found: &Result<(), String>) -> Check {
    const FOR: &str = "'p2pvm route offer' needs it; the rest works without";
    match found {
        Ok(()) => check("nft", Fine, "nft is installed and may be used", ""),
        Err(why) if why.contains("not installed") => check(
            "nft",
            Warning,
            why.clone(),
            format!("apt-get install nftables: {FOR}"),
        ),
        Err(why) => check(
            "nft",
            Warning,
            format!("nft cannot be used: {why}"),
            format!("run as root with CAP_NET_ADMIN: {FOR}"),
        ),
    }
}

pub(super) fn sysctl(found: &Result<(), String>) -> Check {
    match found {
        Ok(()) => check("sysctl", Fine, "/proc/sys can be written", ""),
        Err(why) => check(
            "sysctl",
            Warning,
            format!("the kernel's network settings cannot be written: {why}"),
            "a LAN cannot be offered with 'p2pvm route offer' from here; in a container mount \
                /proc/sys writable, or switch forwarding \
             on outside: 'sysctl net.ipv4.ip_forward=1'",
        ),
    }
}

pub(super) fn cgroups(found: &Cgroups) -> Check {
    match found {
        Cgroups::Unified => check("cgroups", Fine, "version 2, writable", ""),
        Cgroups::Legacy => check("cgroups", Fine, "version 1, writable", ""),
        Cgroups::Closed(why) => check(
            "cgroups",
            Warning,
            format!("not writable: {why}"),
            "guests run without limits on memory and processor time; under systemd \
                'Delegate=yes', in a container a writable /sys/fs/cgroup",
        ),
        Cgroups::None => check(
            "cgroups",
            Warning,
            "no control groups are mounted",
            "guests run without limits on memory and processor time",
        ),
    }
}

pub(super) fn ipv6(has: bool, off_on: Option<&str>) -> Check {
    if let Some(device) = off_on {
        return check(
            "ipv6",
            Warning,
            format!("off on {device} alone: members' IPv6 addresses are not reached from here"),
            format!(
                "'sysctl -w net.ipv6.conf.default.disable_ipv6=0 \
                    net.ipv6.conf.{device}.disable_ipv6=0', or switch it off for all"
            ),
        );
    }
    let found = if has {
        "on"
    } else {
        "off on this machine: p2pvm works with IPv4 alone"
    };
    check("ipv6", Fine, found, "")
}

pub(super) fn mtu(uplinks: &[(String, u32)]) -> Check {
    let said = uplinks
        .iter()
        .map(|(name, mtu)| format!("{name} {mtu}"))
        .collect::<Vec<_>>()
        .join(", ");
    match uplinks.iter().map(|(_, mtu)| *mtu).min() {
        None => check(
            "mtu",
            Warning,
            "there is no default route",
            "connect this machine to a network with a router; members of one LAN reach each other \
                without",
        ),
        Some(least) if least < MTU_NEEDED => check(
            "mtu",
            Failed,
            format!("{said} bytes: less than the {MTU_NEEDED} that QUIC needs"),
            "raise it: 'ip link set dev NAME mtu 1500', or, for a VPN's interface, in that VPN's \
                settings",
        ),
        Some(_) => check("mtu", Fine, format!("{said} bytes"), ""),
    }
}

pub(super) fn name_servers(found: &Result<Vec<String>, String>) -> Check {
    const ADD: &str =
        "name one in /etc/resolv.conf ('nameserver 9.9.9.9'), or let the network's manager do it";
    match found {
        Ok(servers) if servers.is_empty() => check(
            "names",
            Warning,
            "/etc/resolv.conf names no name server",
            ADD,
        ),
        Ok(servers) => check(
            "names",
            Fine,
            format!("asked of {}", servers.join(", ")),
            "",
        ),
        Err(why) => check("names", Warning, why.clone(), ADD),
    }
}

/// Whether this host's guests answer, if the daemon has no finding about them.
pub(super) fn guests(status: &Status) -> Option<Check> {
    let told = status.findings.iter().any(|found| found.area == "guests");
    let found = || {
        format!(
            "{} of {} running here answer their host",
            status.answering_vms, status.running_vms
        )
    };
    (status.running_vms > 0 && !told).then(|| check("guests", Fine, found(), ""))
}

/// The finding that programs do not find a network's names, if no daemon runs that would report it.
pub(super) fn of_machine(found: Finding) -> Check {
    check("names", Warning, found.found, found.advice)
}

/// This program's checks and the running daemon's findings. A finding replaces a good check of the
/// same area, so that "names ok" does not stand beside "names failed".
pub(super) fn together(mut checks: Vec<Check>, findings: &[FindingView]) -> Vec<Check> {
    let is_troubled = |check: &Check| {
        findings
            .iter()
            .any(|found| found.area == check.check && found.level > Fine)
    };
    checks.retain(|check| check.level > Fine || !is_troubled(check));
    checks.extend(findings.iter().map(finding));
    checks
}

/// A finding of the running daemon as a check.
fn finding(found: &FindingView) -> Check {
    check(
        &found.area,
        found.level,
        found.found.clone(),
        found.advice.clone(),
    )
}

pub(super) fn qemu(found: &Programs) -> Check {
    const INSTALL: &str = "apt-get install qemu-system-x86 qemu-utils (on Debian 12: -t \
        bookworm-backports); without it this node cannot run VMs";
    match (&found.version, found.missing.is_empty()) {
        (None, _) => check(
            "qemu",
            Failed,
            "qemu-system-x86_64 is not there or does not run",
            INSTALL,
        ),
        (Some(version), _) if version.0 < QEMU_MAJOR => check(
            "qemu",
            Failed,
            format!(
                "QEMU {}.{} is older than {QEMU_MAJOR}",
                version.0, version.1
            ),
            INSTALL,
        ),
        (Some(_), false) => check(
            "qemu",
            Failed,
            format!("not there: {}", found.missing.join(", ")),
            INSTALL,
        ),
        (Some(version), true) => check(
            "qemu",
            Fine,
            format!("QEMU {}.{} with its tools", version.0, version.1),
            "",
        ),
    }
}

pub(super) fn clock(found: &Clock) -> Check {
    const SET: &str = "'timedatectl set-ntp true', or set the clock; certificates and invites \
        have a validity period";
    match (found.before_network, found.synchronized) {
        (Some(seconds), _) => check(
            "clock",
            Failed,
            format!("the clock is {seconds} s before the founding of this node's network"),
            SET,
        ),
        (None, Some(true)) => check("clock", Fine, format!("synchronized, {}", found.now), ""),
        (None, Some(false)) => check(
            "clock",
            Warning,
            format!("not synchronized, {}", found.now),
            SET,
        ),
        (None, None) => check(
            "clock",
            Warning,
            format!(
                "{}; no program here says whether it is synchronized",
                found.now
            ),
            SET,
        ),
    }
}

pub(super) fn disk(found: &Result<Disk, String>) -> Check {
    let free = |d: &Disk| {
        format!(
            "{} free at {}",
            indicatif::HumanBytes(d.free_bytes),
            d.path.display()
        )
    };
    match found {
        Err(why) => check(
            "disk",
            Failed,
            why.clone(),
            "make the directory, or name another one with --dir",
        ),
        Ok(d) if d.read_only => check(
            "disk",
            Failed,
            format!("{} is mounted read-only", d.path.display()),
            "mount it writable ('mount -o remount,rw'; 'dmesg' says whether the file system has \
                errors), or use --dir",
        ),
        Ok(d) if d.free_files.is_some_and(|free| free < FILES_NEEDED) => check(
            "disk",
            Failed,
            format!(
                "{} has room for {} more files only (inodes)",
                d.path.display(),
                d.free_files.unwrap_or(0)
            ),
            "remove small files there ('df -i' shows them), or use --dir on another file system",
        ),
        Ok(d) if d.free_bytes < DISK_NEEDED => check(
            "disk",
            Failed,
            free(d),
            "make room: chunks, images and disks of VMs are stored there",
        ),
        Ok(d) if d.in_ram => check(
            "disk",
            Warning,
            format!("{}, in RAM", free(d)),
            "identity and VMs are lost at power-off: put the state directory on a disk",
        ),
        Ok(d) if d.free_bytes < DISK_WANTED => check(
            "disk",
            Warning,
            free(d),
            "little for images and snapshots: make room, or use --dir",
        ),
        Ok(d) => check("disk", Fine, free(d), ""),
    }
}

pub(super) fn memory(available_mib: u64) -> Check {
    let found = format!("{available_mib} MiB available");
    if available_mib < MEMORY_WANTED_MIB {
        return check(
            "memory",
            Warning,
            found,
            "enough for the overlay, too little for most guests",
        );
    }
    check("memory", Fine, found, "")
}

pub(super) fn udp(found: &Udp, net: Option<&NetCheckView>) -> Check {
    if found.addresses == 0 {
        return check(
            "udp",
            Failed,
            "this machine has no address on a network",
            "connect it: cable, Wi-Fi, DHCP",
        );
    }
    if let Some(why) = &found.busy {
        return check(
            "udp",
            Failed,
            why.clone(),
            "or set the port to 0 in node.toml: the daemon then takes any free one",
        );
    }
    let Some(net) = net else {
        let found = format!("the ports are free, {} addresses", found.addresses);
        return check(
            "udp",
            Fine,
            found,
            "start the daemon to see whether UDP reaches other members: 'p2pvm up --detach'",
        );
    };
    let nat = net.nat.as_deref().unwrap_or("unknown");
    let linked: Vec<_> = net
        .members
        .iter()
        .filter_map(|m| m.path.as_deref())
        .collect();
    let direct = linked
        .iter()
        .filter(|path| path.starts_with("direct"))
        .count();
    let said = format!(
        "NAT: {nat}; {} members connected, {} linked, {direct} directly",
        net.members.len(),
        linked.len()
    );
    if !linked.is_empty() && linked.iter().all(|path| path.starts_with("stream")) {
        return check(
            "udp",
            Warning,
            said,
            "packets go over TCP: a firewall here or there drops UDP; allow it outwards",
        );
    }
    check("udp", Fine, said, "")
}

pub(super) fn membership(layout: &Layout, status: Option<&Status>) -> Check {
    match status {
        Some(s) => {
            let wanting = s.address_wanting.as_ref().map_or_else(
                || "no address yet".to_owned(),
                |why| format!("no address yet: {why}"),
            );
            let address = s.address.as_deref().unwrap_or(&wanting);
            let level = if s.address.is_some() { Fine } else { Warning };
            check(
                "daemon",
                level,
                format!(
                    "{} in {}, {address}, version {}",
                    s.name, s.network, s.version
                ),
                "",
            )
        }
        None if layout.is_member() => {
            if let Some((found, advice)) = lock::silence(layout) {
                return check("daemon", Failed, found, advice);
            }
            check(
                "daemon",
                Warning,
                "no daemon answers here",
                "start it: 'p2pvm up --detach' or 'systemctl start p2pvm'",
            )
        }
        None => check(
            "daemon",
            Warning,
            "this machine is in no network",
            "'p2pvm init --network NAME' or 'p2pvm join INVITE'",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::ReachableView;

    #[test]
    fn what_the_daemon_found_wrong_is_not_said_to_be_well_beside_it() {
        let looked = || {
            vec![
                check("names", Fine, "asked of 192.0.2.1", ""),
                check("mtu", Warning, "small", "do a"),
                check("tun", Fine, "there", ""),
            ]
        };
        let found = |area: &str, level| FindingView {
            area: area.into(),
            level,
            found: "found".into(),
            advice: String::new(),
        };
        let told = |findings: &[FindingView]| {
            together(looked(), findings)
                .into_iter()
                .map(|c| (c.check, c.level))
                .collect::<Vec<_>>()
        };
        let all = |names: &[(&str, Level)]| {
            names
                .iter()
                .map(|(name, level)| ((*name).to_owned(), *level))
                .collect::<Vec<_>>()
        };
        let wrong = [found("names", Failed), found("mtu", Failed)];
        assert_eq!(
            told(&wrong),
            all(&[
                ("mtu", Warning),
                ("tun", Fine),
                ("names", Failed),
                ("mtu", Failed)
            ])
        );
        assert_eq!(
            told(&[found("tun", Fine)]).len(),
            4,
            "a note contradicts nothing"
        );
    }

    #[test]
    fn what_makes_something_impossible_fails_and_says_what_to_do() {
        let programs = |version, missing: &[&'static str]| Programs {
            version,
            missing: missing.to_vec(),
        };
        let room = || Disk {
            path: "/x".into(),
            free_bytes: 1 << 40,
            in_ram: false,
            read_only: false,
            free_files: None,
        };
        let no_tun = TunTrouble {
            step: p2pvm_host::tun::Step::Missing,
            errno: None,
            place: Default::default(),
        };
        let failed = [
            tun(Err(no_tun)),
            qemu(&programs(None, &[])),
            qemu(&programs(Some((7, 2)), &[])),
            qemu(&programs(Some((10, 0)), &["qemu-img"])),
            clock(&Clock {
                before_network: Some(9),
                synchronized: Some(true),
                now: String::new(),
            }),
            disk(&Ok(Disk {
                free_bytes: 1 << 20,
                ..room()
            })),
            disk(&Ok(Disk {
                read_only: true,
                ..room()
            })),
            disk(&Ok(Disk {
                free_files: Some(3),
                ..room()
            })),
            mtu(&[("eth0".into(), 1500), ("wg0".into(), 1200)]),
            disk(&Err("no /x".into())),
            udp(
                &Udp {
                    addresses: 0,
                    busy: None,
                },
                None,
            ),
            udp(
                &Udp {
                    addresses: 1,
                    busy: Some("UDP port 4002 cannot be bound".into()),
                },
                None,
            ),
            settings(Err(&Failure::usage("node.toml: unknown key"))),
        ];
        for check in failed {
            assert!(
                check.level == Failed && !check.advice.is_empty() && !check.found.is_empty(),
                "{check:?}"
            );
        }
    }

    #[test]
    fn what_only_works_less_well_is_a_warning() {
        let net = NetCheckView {
            members: vec![ReachableView {
                name: "b".into(),
                nat: None,
                may_be_direct: None,
                path: Some("stream".into()),
                rtt_ms: None,
            }],
            ..NetCheckView::default()
        };
        let room = || Disk {
            path: "/x".into(),
            free_bytes: 1 << 40,
            in_ram: false,
            read_only: false,
            free_files: Some(1 << 20),
        };
        let warned = [
            root(false),
            settings(Ok(Some("node.toml: [policy] is now called [placement]"))),
            kvm(&Kvm::Missing),
            kvm(&Kvm::Broken),
            kvm(&Kvm::Unknown("no QEMU".into())),
            clock(&Clock {
                before_network: None,
                synchronized: Some(false),
                now: String::new(),
            }),
            disk(&Ok(Disk {
                in_ram: true,
                ..room()
            })),
            memory(100),
            nft(&Err("nft is not installed".into())),
            nft(&Err("Operation not permitted (you must be root)".into())),
            sysctl(&Err(
                "/proc/sys/net/ipv4/ip_forward: Read-only file system (os error 30)".into(),
            )),
            cgroups(&Cgroups::None),
            cgroups(&Cgroups::Closed(
                "/sys/fs/cgroup: Read-only file system".into(),
            )),
            mtu(&[]),
            name_servers(&Ok(vec![])),
            name_servers(&Err("/etc/resolv.conf: No such file".into())),
            udp(
                &Udp {
                    addresses: 1,
                    busy: None,
                },
                Some(&net),
            ),
        ];
        for check in warned {
            assert!(
                check.level == Warning && !check.advice.is_empty(),
                "{check:?}"
            );
        }
        assert_eq!(kvm(&Kvm::Works).level, Fine);
        assert_eq!(
            qemu(&Programs {
                version: Some((10, 0)),
                missing: vec![]
            })
            .level,
            Fine
        );
        assert_eq!(disk(&Ok(room())).level, Fine);
        for fine in [
            ipv6(false, None),
            ipv6(true, None),
            mtu(&[("eth0".into(), 1280)]),
            cgroups(&Cgroups::Unified),
            nft(&Ok(())),
            sysctl(&Ok(())),
        ] {
            assert!(fine.level == Fine && fine.advice.is_empty(), "{fine:?}");
        }
    }

    #[test]
    fn what_the_daemon_found_is_a_check_with_its_cause_and_remedy() {
        let found = FindingView {
            area: "path".into(),
            level: Failed,
            found: "p2pvm0 is down".into(),
            advice: "up with it".into(),
        };
        let check = finding(&found);
        assert_eq!((check.check.as_str(), check.level), ("path", Failed));
        assert_eq!((check.found, check.advice), (found.found, found.advice));
    }
}
