//! The doctor's rules about what guests need: KVM, QEMU with its tools, control groups, a guardian.

use super::check;
use crate::doctor::probes::{Cgroups, Kvm, Programs};
use p2pvm_api::Check;
use p2pvm_host::Level::{Failed, Ok as Fine, Warning};
use p2pvm_vm_manager::guardian::Outlook;

/// The first QEMU whose migration p2pvm can control.
const QEMU_MAJOR: u32 = 10;
pub(crate) fn kvm(found: &Kvm) -> Check {
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

pub(crate) fn qemu(found: &Programs) -> Check {
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

pub(crate) fn cgroups(found: &Cgroups) -> Check {
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

/// How well a guest whose lease has ended can be frozen. The daemon must be root for it.
pub(crate) fn guardian(found: &Outlook) -> Check {
    let who = match found.running {
        Some(pid) => format!("the guest guardian runs (process {pid})"),
        None => "no guest is guarded now".to_owned(),
    };
    if !found.freezer {
        return check(
            "guardian",
            Warning,
            format!("{who}; a guest may be frozen 0.1 s late: there is no version 2 control group"),
            "mount one: 'mount -t cgroup2 none /sys/fs/cgroup/unified'; VMs that start then use it",
        );
    }
    if !found.real_time {
        return check(
            "guardian",
            Warning,
            format!("{who}; a guest may be frozen 0.5 s late: real-time scheduling is refused"),
            "under systemd 'RestrictRealtime=no' and 'LimitRTPRIO=99'; in a container the \
                capability SYS_NICE. A guardian that runs keeps what it has",
        );
    }
    let found = format!("{who}; a guest's freeze is not late");
    check("guardian", Fine, found, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(version: Option<(u32, u32)>, missing: &[&'static str]) -> Programs {
        Programs {
            version,
            missing: missing.to_vec(),
        }
    }

    #[test]
    fn what_makes_a_freeze_late_is_a_warning_with_advice() {
        let best = Outlook {
            running: Some(7),
            real_time: true,
            freezer: true,
        };
        assert_eq!(guardian(&best).level, Fine);
        for late in [
            Outlook {
                real_time: false,
                ..best
            },
            Outlook {
                freezer: false,
                running: None,
                ..best
            },
        ] {
            let check = guardian(&late);
            assert!(check.level == Warning && !check.advice.is_empty());
            assert!(check.found.contains("late"), "{check:?}");
        }
    }

    #[test]
    fn without_qemu_its_tools_or_its_version_the_check_fails() {
        for check in [
            qemu(&programs(None, &[])),
            qemu(&programs(Some((7, 2)), &[])),
            qemu(&programs(Some((10, 0)), &["qemu-img"])),
        ] {
            assert!(
                check.level == Failed && !check.advice.is_empty() && !check.found.is_empty(),
                "{check:?}"
            );
        }
        assert_eq!(qemu(&programs(Some((10, 0)), &[])).level, Fine);
    }

    #[test]
    fn what_only_slows_guests_or_unbounds_them_is_a_warning() {
        for check in [
            kvm(&Kvm::Missing),
            kvm(&Kvm::Broken),
            kvm(&Kvm::Unknown("no QEMU".into())),
            cgroups(&Cgroups::None),
            cgroups(&Cgroups::Closed(
                "/sys/fs/cgroup: Read-only file system".into(),
            )),
        ] {
            assert!(
                check.level == Warning && !check.advice.is_empty(),
                "{check:?}"
            );
        }
        assert_eq!(kvm(&Kvm::Works).level, Fine);
        let fine = cgroups(&Cgroups::Unified);
        assert!(fine.level == Fine && fine.advice.is_empty(), "{fine:?}");
    }
}
