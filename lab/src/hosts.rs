//! Other programs on a host: the real ones, from Debian, each started and stopped on an emulated
//! host of its own.
//!
//! A host that takes part gets a root file system of its own over one Debian tree ([`tree`]); a
//! [`Program`] is a shell script that runs there with `start` or `stop`. [`InnerMachine`] is a
//! machine or container behind a host, [`probe`] checks whether packets arrive, [`flow`] is
//! continuous traffic between two hosts and measures its interruptions.

pub mod behind;
pub mod booted;
pub mod flow;
pub mod probe;
pub mod slow_disk;
pub mod tree;

pub use behind::InnerMachine;
pub use booted::{BootError, BootedHost};
pub use flow::Flow;
pub use slow_disk::SlowDisk;

use crate::{Error, lab::Lab};
use std::path::Path;

/// A program that also manages a host's network or names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    script: &'static str,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal in $script:literal;)*) => {
        $(
            $(#[$doc])* pub const $constant: Program = Program {
                name: $name, script: include_str!($script)
            };
        )*
        /// All programs.
        pub const PROGRAMS: &[Program] = &[$($constant),*];
    };
}

programs! {
    /// Docker's daemon: policy drop for forwarding, `DOCKER-USER`, address translation.
    DOCKER = "docker" in "hosts/docker.sh";
    /// firewalld with its default zone: packets of unknown interfaces are refused, forwarded ones
    /// as well.
    FIREWALLD = "firewalld" in "hosts/firewalld.sh";
    /// ufw, enabled with its defaults: drops unsolicited incoming packets and all forwarded ones.
    UFW = "ufw" in "hosts/ufw.sh";
    /// libvirt's daemon with its default network: a bridge, address translation, dnsmasq.
    LIBVIRT = "libvirt" in "hosts/libvirt.sh";
    /// A firewall of legacy iptables, IPv4 and IPv6: drops incoming and forwarded packets.
    IPTABLES_LEGACY = "iptables-legacy" in "hosts/iptables.sh";
    /// The same firewall by iptables-nft.
    IPTABLES_NFT = "iptables-nft" in "hosts/iptables.sh";
    /// The same firewall by nft, in a table that no other program manages.
    NFTABLES = "nftables" in "hosts/nftables.sh";
    /// Podman's netavark with podman's default network: a bridge, address translation, a table of
    /// its own.
    NETAVARK = "netavark" in "hosts/netavark.sh";
    /// The chains of kube-proxy and a bridge CNI plug-in, with policy drop for forwarding.
    KUBERNETES = "kubernetes" in "hosts/kubernetes.sh";
    /// systemd-resolved with its stub, as Debian sets it up.
    RESOLVED = "resolved" in "hosts/resolved.sh";
    /// openresolv, whose `resolvconf` writes `/etc/resolv.conf`.
    OPENRESOLV = "openresolv" in "hosts/openresolv.sh";
    /// A DHCP client without a manager of names: it rewrites `/etc/resolv.conf` every few seconds.
    DHCP_REWRITES = "dhcp-rewrites" in "hosts/dhcp-rewrites.sh";
}

impl Program {
    /// The program of that name.
    pub fn named(name: &str) -> Option<Self> {
        PROGRAMS
            .iter()
            .copied()
            .find(|program| program.name == name)
    }

    /// Starts it on a host that has its own root, and waits until it is set up.
    ///
    /// # Errors
    /// With the output of the script, if it fails.
    pub fn start(self, lab: &Lab, host: &str) -> Result<(), Error> {
        self.tell(lab, host, "start")
    }

    /// Stops it as its administrator would; what it leaves behind then stays.
    ///
    /// # Errors
    /// With the output of the script, if it fails.
    pub fn stop(self, lab: &Lab, host: &str) -> Result<(), Error> {
        self.tell(lab, host, "stop")
    }

    fn tell(self, lab: &Lab, host: &str, word: &str) -> Result<(), Error> {
        lab.testbed()
            .run(host, &["sh", "-euc", self.script, self.name, word])
            .map(drop)
    }
}

/// Gives hosts of a lab the Debian tree as their root, each with a plain `/etc/resolv.conf` that
/// names `server`.
///
/// # Errors
/// If the root cannot be mounted.
pub fn settle(
    lab: &mut Lab,
    hosts: &[&str],
    tree: &Path,
    binds: &[&Path],
    server: &str,
) -> Result<(), Error> {
    for host in hosts {
        lab.give_root(host, tree, binds)?;
        let plain = format!(
            "rm -f /etc/resolv.conf && echo 'nameserver {server}' >/etc/resolv.conf && \
             echo '127.0.0.1 localhost' >/etc/hosts && rm -f /etc/hostname && echo {host} \
             >/etc/hostname"
        );
        lab.testbed().run(host, &["sh", "-euc", &plain])?;
    }
    Ok(())
}
