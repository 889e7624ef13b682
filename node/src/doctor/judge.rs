//! The doctor's rules: they turn each observation into a level and a sentence that names a remedy.
//! `guests` has those about what QEMU needs, `network` those about what packets need.

mod guests;
mod network;

pub(super) use guests::{cgroups, guardian, kvm, qemu};
pub(super) use network::{ipv6, mtu, name_servers, nft, sysctl, tun, udp};

use super::probes::{Clock, Disk};
use p2pvm_api::{Check, Failure, FindingView, Status};
use p2pvm_daemon::{layout::Layout, lock};
use p2pvm_host::{
    Finding,
    Level::{self, Failed, Ok as Fine, Warning},
};

/// How many free inodes a start needs.
const FILES_NEEDED: u64 = 1000;
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

    #[test]
    fn what_the_daemon_found_wrong_is_not_called_well_beside_it() {
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

    fn room() -> Disk {
        Disk {
            path: "/x".into(),
            free_bytes: 1 << 40,
            in_ram: false,
            read_only: false,
            free_files: Some(1 << 20),
        }
    }

    #[test]
    fn what_makes_something_impossible_fails_and_says_what_to_do() {
        let failed = [
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
            disk(&Err("no /x".into())),
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
        let warned = [
            root(false),
            settings(Ok(Some("node.toml: [policy] is now called [placement]"))),
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
        ];
        for check in warned {
            assert!(
                check.level == Warning && !check.advice.is_empty(),
                "{check:?}"
            );
        }
        assert_eq!(disk(&Ok(room())).level, Fine);
        let uncounted = Disk {
            free_files: None,
            ..room()
        };
        assert_eq!(disk(&Ok(uncounted)).level, Fine);
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
