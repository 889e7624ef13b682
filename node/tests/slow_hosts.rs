//! Hosts that are whole Debian systems, booted with their own systemd, whose networks and names are seen to by NetworkManager or by
//! systemd-networkd and systemd-resolved. `make test-slow` runs it.

mod common;
mod hosts;

use hosts::Stage;
use p2pvm_tests::hosts::probe::within;
use std::time::Duration;

/// Until all works again after what a manager did.
const BACK: Duration = Duration::from_secs(20);
/// Services that have nothing to do in a container, or would see to the network as well.
const QUIET: &str = "systemctl -q mask systemd-networkd-wait-online docker.service docker.socket containerd firewalld ufw \
                     libvirtd.service libvirtd.socket virtlogd.socket systemd-logind getty.target console-getty udev \
                     systemd-udevd systemd-udevd-control.socket systemd-udevd-kernel.socket p2pvm 2>/dev/null || true
                     rm -f /etc/hostname /etc/machine-id; echo 127.0.0.1 localhost >/etc/hosts; ";

/// What each word of a manager's administrator does to p2pvm: all is back soon, and after `down` all is as it was.
fn beside(test: &str, prepare: impl Fn(&str, &str, &str) -> String, disturbances: &[&str]) {
    let Some((stage, _machine)) = Stage::boot(test, |address, gateway, server| format!("{QUIET}{}", prepare(address, gateway, server)))
    else {
        return;
    };
    let names = || within(BACK, || stage.finds_other_names());
    // What they change by themselves, they have changed by then.
    for words in disturbances {
        stage.lab.testbed().run("b", &["sh", "-euc", words]).unwrap();
    }
    assert!(names().is_some(), "without p2pvm\n{}", stage.report());
    let before = stage.lasting_state();
    stage.up();
    stage.offer();
    assert_eq!(stage.broken(BACK), Vec::<String>::new(), "{test}\n{}", stage.report());
    for words in disturbances {
        stage.lab.testbed().run("b", &["sh", "-euc", words]).unwrap();
        assert_eq!(stage.broken(BACK), Vec::<String>::new(), "{test}: {words}\n{}", stage.report());
    }
    stage.lab.kill_daemon("b").unwrap();
    assert!(within(Duration::from_secs(6), || stage.finds_other_names()).is_some(), "{test}: names after a kill\n{}", stage.report());
    stage.up();
    assert_eq!(stage.broken(BACK), Vec::<String>::new(), "{test} after a kill\n{}", stage.report());
    stage.withdraw();
    stage.down();
    assert!(names().is_some(), "{test}: names after p2pvm\n{}", stage.report());
    let left = before.difference(&stage.lasting_state());
    assert!(left.is_empty(), "{test}: p2pvm leaves the host changed:\n{left}");
}

#[test]
fn networkmanager_may_restart_reconnect_and_rewrite_names_beside_p2pvm() {
    let prepare = |address: &str, gateway: &str, server: &str| {
        format!(
            "systemctl -q mask systemd-networkd systemd-networkd.socket systemd-resolved; systemctl -q enable NetworkManager
             sed -i 's/resolve \\[!UNAVAIL=return\\] //' /etc/nsswitch.conf; rm -f /etc/resolv.conf; echo >/etc/resolv.conf
             printf '[main]\\ndns=default\\nrc-manager=file\\n[keyfile]\\nunmanaged-devices=interface-name:lan0\\n' >/etc/NetworkManager/conf.d/test.conf
             printf '[connection]\\nid=eth0\\ntype=ethernet\\ninterface-name=eth0\\n[ipv4]\\nmethod=manual\\naddress1={address}/24,{gateway}\\n\
             dns={server};\\n[ipv6]\\nmethod=disabled\\n' >/etc/NetworkManager/system-connections/eth0.nmconnection
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

#[test]
fn networkd_and_resolved_may_restart_beside_p2pvm() {
    let prepare = |address: &str, gateway: &str, server: &str| {
        format!(
            "systemctl -q mask NetworkManager; systemctl -q enable systemd-networkd systemd-resolved
             ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
             printf '[Match]\\nName=eth0\\n[Network]\\nAddress={address}/24\\nGateway={gateway}\\nDNS={server}\\nDNSSEC=no\\nLinkLocalAddressing=no\\n\
             IPv6AcceptRA=no\\n' >/etc/systemd/network/eth0.network"
        )
    };
    let words = [
        "systemctl restart systemd-networkd",
        "systemctl restart systemd-resolved",
        "networkctl reconfigure eth0",
        "systemctl stop systemd-resolved; sleep 3; systemctl start systemd-resolved",
        "resolvectl flush-caches; resolvectl revert eth0; networkctl reload; systemctl restart systemd-networkd",
    ];
    beside("networkd", prepare, &words);
}
