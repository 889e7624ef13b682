//! Hosts that are whole Debian systems, booted with their own systemd, whose networks and names are
//! seen to by NetworkManager or by systemd-networkd and systemd-resolved, and on which p2pvm runs
//! as the package's unit. `make test-slow` runs it.

mod common;
mod hosts;

use hosts::Stage;
use p2pvm_lab::{
    chain,
    host_state::{Difference, HostState},
    hosts::{BootedHost, probe::within},
};
use std::{fs, time::Duration};

/// Until all works again after what a manager did.
const BACK: Duration = Duration::from_secs(20);
/// Until what a killed daemon left changed is undone.
const UNDONE: Duration = Duration::from_secs(6);
/// Services that have nothing to do in a container, or would see to the network as well.
const QUIET: &str = "systemctl -q mask systemd-networkd-wait-online docker.service docker.socket \
    containerd firewalld ufw \
                     libvirtd.service libvirtd.socket virtlogd.socket systemd-logind getty.target \
                     console-getty udev \
                     systemd-udevd systemd-udevd-control.socket systemd-udevd-kernel.socket p2pvm \
                     2>/dev/null || true
                     rm -f /etc/hostname /etc/machine-id; echo 127.0.0.1 localhost >/etc/hosts; ";

/// What each word of a manager's administrator does to p2pvm: all is back soon, and after `down`
/// all is as it was.
fn beside(test: &str, prepare: impl Fn(&str, &str, &str) -> String, disturbances: &[&str]) {
    let Some((stage, _machine)) = Stage::boot(test, |address, gateway, server| {
        format!("{QUIET}{}", prepare(address, gateway, server))
    }) else {
        return;
    };
    let names = || within(BACK, || stage.finds_other_names());
    // A restart of NetworkManager sets how each interface makes up its link-local address
    // (`addr_gen_mode`), its "networking off" does so for `lo`, with `use_tempaddr`, and none of
    // both comes back. A second time they change nothing: what differs later is p2pvm's.
    let all = || {
        disturbances.iter().for_each(|words| {
            drop(
                stage
                    .lab
                    .testbed()
                    .run("b", &["sh", "-euc", words])
                    .unwrap(),
            )
        });
        assert!(names().is_some(), "without p2pvm\n{}", stage.report());
        stage.lasting_state()
    };
    let first = all();
    let before = all();
    let changed = first.difference(&before);
    assert!(
        changed.is_empty(),
        "{test} changes the host without p2pvm:\n{changed}"
    );
    stage.up();
    stage.offer();
    assert_eq!(
        stage.broken(BACK),
        Vec::<String>::new(),
        "{test}\n{}",
        stage.report()
    );
    for words in disturbances {
        stage
            .lab
            .testbed()
            .run("b", &["sh", "-euc", words])
            .unwrap();
        assert_eq!(
            stage.broken(BACK),
            Vec::<String>::new(),
            "{test}: {words}\n{}",
            stage.report()
        );
    }
    stage.lab.kill_daemon("b").unwrap();
    assert!(
        within(Duration::from_secs(6), || stage.finds_other_names()).is_some(),
        "{test}: names after a kill\n{}",
        stage.report()
    );
    stage.up();
    assert_eq!(
        stage.broken(BACK),
        Vec::<String>::new(),
        "{test} after a kill\n{}",
        stage.report()
    );
    stage.withdraw();
    stage.down();
    assert!(
        names().is_some(),
        "{test}: names after p2pvm\n{}",
        stage.report()
    );
    let left = before.difference(&stage.lasting_state());
    assert!(
        left.is_empty(),
        "{test}: p2pvm leaves the host changed:\n{left}"
    );
}

#[test]
fn networkmanager_may_restart_reconnect_and_rewrite_names_beside_p2pvm() {
    let prepare = |address: &str, gateway: &str, server: &str| {
        format!(
            "systemctl -q mask systemd-networkd systemd-networkd.socket systemd-resolved; \
                systemctl -q enable NetworkManager
             sed -i 's/resolve \\[!UNAVAIL=return\\] //' /etc/nsswitch.conf; rm -f \
             /etc/resolv.conf; echo >/etc/resolv.conf
             printf '[main]\\ndns=default\\nrc-manager=file\\n[keyfile]\\nunmanaged-devices=interface-name:lan0\\n' >/etc/NetworkManager/conf.d/test.conf
             printf '[connection]\\nid=eth0\\ntype=ethernet\\ninterface-name=eth0\\n[ipv4]\\nmethod=manual\\naddress1={address}/24,{gateway}\\n\
             dns={server};\\n[ipv6]\\nmethod=disabled\\n' \
             >/etc/NetworkManager/system-connections/eth0.nmconnection
             chmod 600 /etc/NetworkManager/system-connections/eth0.nmconnection"
        )
    };
    let words = [
        "nmcli connection up eth0",
        "systemctl restart NetworkManager",
        "nmcli general reload dns-full",
        "nmcli networking off; sleep 2; nmcli networking on",
    ];
    beside("nm", prepare, &words);
}

/// The network by systemd-networkd, names by systemd-resolved.
fn by_networkd(address: &str, gateway: &str, server: &str) -> String {
    format!(
        "systemctl -q mask NetworkManager; systemctl -q enable systemd-networkd systemd-resolved
         ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
         printf '[Match]\\nName=eth0\\n[Network]\\nAddress={address}/24\\nGateway={gateway}\\nDNS={server}\\nDNSSEC=no\\nLinkLocalAddressing=no\\n\
         IPv6AcceptRA=no\\n' >/etc/systemd/network/eth0.network"
    )
}

#[test]
fn networkd_and_resolved_may_restart_beside_p2pvm() {
    let words = [
        "systemctl restart systemd-networkd",
        "systemctl restart systemd-resolved",
        "networkctl reconfigure eth0",
        "systemctl stop systemd-resolved; sleep 3; systemctl start systemd-resolved",
        "resolvectl flush-caches; resolvectl revert eth0; networkctl reload; systemctl restart \
            systemd-networkd",
    ];
    beside("networkd", by_networkd, &words);
}

/// A host on which systemd runs p2pvm by the package's unit, with nothing changed but where the
/// state directory is.
struct Service {
    stage: Stage,
    before: HostState,
    _machine: BootedHost,
}

impl Service {
    fn install(test: &str) -> Option<Self> {
        let (stage, machine) = Stage::boot(test, |address, gateway, server| {
            format!(
                "{QUIET}systemctl -q unmask p2pvm\n{}",
                by_networkd(address, gateway, server)
            )
        })?;
        let (root, dir) = (
            stage.lab.testbed().files("b").unwrap(),
            stage.lab.dir("b").unwrap(),
        );
        let dir = dir.display();
        for (file, text) in [
            (
                "usr/lib/systemd/system/p2pvm.service",
                include_str!("../../packaging/p2pvm.service").to_owned(),
            ),
            (
                "usr/lib/tmpfiles.d/p2pvm.conf",
                include_str!("../../packaging/tmpfiles.conf").to_owned(),
            ),
            (
                "etc/systemd/system/p2pvm.service.d/where.conf",
                format!(
                    "[Unit]\nConditionPathExists=\nConditionPathExists={dir}/certificate\n\
                        [Service]\nEnvironment=P2PVM_DIR={dir}\n"
                ),
            ),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), text).unwrap();
        }
        let link = format!(
            "ln -s {} /usr/bin/p2pvm; systemd-tmpfiles --create p2pvm.conf; systemctl \
                daemon-reload",
            env!("CARGO_BIN_EXE_p2pvm")
        );
        stage
            .lab
            .testbed()
            .run("b", &["sh", "-euc", &link])
            .unwrap();
        assert!(
            within(BACK, || stage.finds_other_names()).is_some(),
            "without p2pvm\n{}",
            stage.report()
        );
        let before = stage.lasting_state();
        Some(Self {
            stage,
            before,
            _machine: machine,
        })
    }

    fn shell(&self, words: &str) -> String {
        self.stage
            .lab
            .testbed()
            .run("b", &["sh", "-euc", words])
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), self.report()))
            .trim()
            .to_owned()
    }

    /// A setting of the unit's in place of the package's, or the package's again.
    fn set(&self, line: &str) {
        let file = "/run/systemd/system/p2pvm.service.d/test.conf";
        let unset = format!(
            "rm -f {file}; systemctl daemon-reload; systemctl reset-failed p2pvm 2>/dev/null || \
                true"
        );
        self.shell(&unset);
        if !line.is_empty() {
            self.shell(&format!(
                "mkdir -p /run/systemd/system/p2pvm.service.d; printf '[Service]\\n{line}\\n' \
                    >{file}; systemctl daemon-reload"
            ));
        }
    }

    fn property(&self, name: &str) -> String {
        self.shell(&format!("systemctl show --value --property {name} p2pvm"))
    }

    fn start(&self) {
        self.shell("systemctl reset-failed p2pvm 2>/dev/null || true; systemctl start p2pvm");
    }

    /// Everything works within the limit.
    fn works(&self, when: &str) {
        assert_eq!(
            self.stage.broken(BACK),
            Vec::<String>::new(),
            "{when}\n{}",
            self.report()
        );
    }

    fn changed(&self) -> Difference {
        self.before.difference(&self.stage.lasting_state())
    }

    /// The host is as it was before p2pvm came, and nothing of p2pvm runs.
    fn is_as_before(&self, when: &str) {
        let mut left = self.changed();
        let undone = within(UNDONE, || {
            left = self.changed();
            left.is_empty()
        });
        assert!(
            undone.is_some(),
            "{when} the host is left changed:\n{left}\n{}",
            self.report()
        );
        let found = within(UNDONE, || self.stage.finds_other_names());
        assert!(
            found.is_some(),
            "{when} other names are not found\n{}",
            self.report()
        );
        let runs = || {
            self.shell(
                "for pid in /proc/[0-9]*; do readlink $pid/exe || true; done | grep -c \
                '/p2pvm$' || true",
            )
        };
        assert!(
            within(UNDONE, || runs() == "0").is_some(),
            "{when} something of p2pvm runs\n{}",
            self.shell("ps -ef")
        );
    }

    fn report(&self) -> String {
        let journal = self.stage.lab.testbed().exec(
            "b",
            &[
                "journalctl",
                "--no-pager",
                "--unit",
                "p2pvm",
                "--lines",
                "40",
                "--output",
                "cat",
            ],
        );
        let journal = journal
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        format!("--- the unit's journal\n{journal}\n{}", self.stage.report())
    }
}

/// The main process alone, as a crash or the kernel's out-of-memory killer does.
const KILL_DAEMON: &str = "kill -9 $(systemctl show --value --property MainPID p2pvm)";
/// Everything in the unit, the guardian as well.
const KILL_UNIT: &str = "systemctl kill --signal=KILL p2pvm";

#[test]
fn whatever_of_the_unit_is_killed_the_host_is_put_back_exactly() {
    let Some(service) = Service::install("killed") else {
        return;
    };
    let kill = |what: &str, set: &str, when: &str| {
        service.set(set);
        service.start();
        service.works(when);
        assert!(!service.changed().is_empty(), "there is something to undo");
        service.shell(what);
        let ended = || matches!(&*service.property("ActiveState"), "failed" | "inactive");
        assert!(
            within(BACK, ended).is_some(),
            "{when}\n{}",
            service.report()
        );
    };
    service.start();
    service.stage.offer();
    service.works("at the first start");
    service.shell("systemctl stop p2pvm");
    service.is_as_before("after a stop");

    // The guardian undoes it alone, then ExecStopPost alone.
    kill(
        KILL_DAEMON,
        "Restart=no\\nExecStopPost=",
        "with a guardian alone",
    );
    service.is_as_before("after a kill of the daemon");
    kill(KILL_UNIT, "Restart=no", "with ExecStopPost");
    service.is_as_before("after a kill of the unit");
    // With neither it stays, until the next start and its end.
    kill(
        KILL_UNIT,
        "Restart=no\\nExecStopPost=",
        "with nobody to undo",
    );
    std::thread::sleep(Duration::from_secs(2));
    assert!(!service.changed().is_empty(), "nobody was there to undo it");
    service.set("");
    service.start();
    service.works("after a kill that nobody undid");
    service.shell("systemctl stop p2pvm");
    service.is_as_before("after the next start and a stop");
}

#[test]
fn the_unit_restarts_by_itself_after_kills_and_all_works_again() {
    let Some(service) = Service::install("unit") else {
        return;
    };
    service.start();
    service.stage.offer();
    service.works("at the first start");
    service.shell("systemctl restart p2pvm");
    service.works("after a restart");
    for (what, kills) in [(KILL_DAEMON, "1"), (KILL_UNIT, "2")] {
        service.shell(what);
        // Counted when it is started again: until then the unit may still be called active.
        let again = || {
            service.property("NRestarts") == kills && service.property("ActiveState") == "active"
        };
        assert!(
            within(BACK, again).is_some(),
            "{what}\n{}",
            service.report()
        );
        service.works(what);
    }
    service.shell("systemctl restart p2pvm");
    service.works("after kills and a restart");
    service.stage.withdraw();
    service.shell("systemctl stop p2pvm");
    service.is_as_before("after all that");
}
