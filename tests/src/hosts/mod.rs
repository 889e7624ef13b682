//! Other programs on a host: the real ones, from Debian, each started and stopped on an emulated host of its own.
//!
//! A host that takes part gets a root file system of its own over one Debian tree ([`tree`]); a [`Program`] is a shell script
//! that runs there with `start` or `stop`. [`Behind`] is a machine or container behind a host, [`probe`] what is asked of
//! the packets, [`flow`] what goes on between two hosts all the time and says how long it stood still.

pub mod behind;
pub mod booted;
pub mod flow;
pub mod probe;
pub mod slow_disk;
pub mod tree;

pub use behind::Behind;
pub use booted::{Booted, NotBooted};
pub use flow::Flow;
pub use slow_disk::SlowDisk;

use crate::{Error, lab::Lab};
use std::path::Path;

/// A program that also sees to a host's network or names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    script: &'static str,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $($(#[$doc])* pub const $constant: Program = Program { name: $name, script: include_str!(concat!($name, ".sh")) };)*
        /// All programs.
        pub const PROGRAMS: &[Program] = &[$($constant),*];
    };
}

programs! {
    /// Docker's daemon: policy drop for forwarding, `DOCKER-USER`, address translation.
    DOCKER = "docker";
    /// firewalld with its default zone: packets of unknown interfaces are refused, forwarded ones as well.
    FIREWALLD = "firewalld";
    /// ufw, enabled with its defaults: comes in nothing that was not asked for, and nothing is forwarded.
    UFW = "ufw";
    /// libvirt's daemon with its default network: a bridge, address translation, dnsmasq.
    LIBVIRT = "libvirt";
    /// A firewall of iptables' older kind: drops what comes in and what is forwarded.
    IPTABLES_LEGACY = "iptables-legacy";
    /// The same by iptables-nft.
    IPTABLES_NFT = "iptables-nft";
    /// The chains of kube-proxy and a bridge CNI plug-in, with policy drop for forwarding.
    KUBERNETES = "kubernetes";
    /// systemd-resolved with its stub, as Debian sets it up.
    RESOLVED = "resolved";
    /// openresolv, whose `resolvconf` writes `/etc/resolv.conf`.
    OPENRESOLV = "openresolv";
    /// What a DHCP client does without a manager of names: it writes `/etc/resolv.conf` anew every few seconds.
    DHCP_REWRITES = "dhcp-rewrites";
}

impl Program {
    /// The program of that name.
    pub fn named(name: &str) -> Option<Self> {
        PROGRAMS.iter().copied().find(|program| program.name == name)
    }

    /// Starts it on a host that has its own root, and waits until it has done its part.
    ///
    /// # Errors
    /// With what the script said, if it fails.
    pub fn start(self, lab: &Lab, host: &str) -> Result<(), Error> {
        self.tell(lab, host, "start")
    }

    /// Stops it as its administrator would; what it leaves behind then stays.
    ///
    /// # Errors
    /// With what the script said, if it fails.
    pub fn stop(self, lab: &Lab, host: &str) -> Result<(), Error> {
        self.tell(lab, host, "stop")
    }

    fn tell(self, lab: &Lab, host: &str, word: &str) -> Result<(), Error> {
        lab.testbed().run(host, &["sh", "-euc", self.script, self.name, word]).map(drop)
    }
}

/// Gives hosts of a lab the Debian tree as their root, each with a plain `/etc/resolv.conf` that names `server`.
///
/// # Errors
/// If the root cannot be mounted.
pub fn settle(lab: &mut Lab, hosts: &[&str], tree: &Path, binds: &[&Path], server: &str) -> Result<(), Error> {
    for host in hosts {
        lab.give_root(host, tree, binds)?;
        let plain = format!(
            "rm -f /etc/resolv.conf && echo 'nameserver {server}' >/etc/resolv.conf && \
             echo '127.0.0.1 localhost' >/etc/hosts && rm -f /etc/hostname && echo {host} >/etc/hostname"
        );
        lab.testbed().run(host, &["sh", "-euc", &plain])?;
    }
    Ok(())
}
