//! A machine or container behind a host, in a namespace of its own.

use super::probe::ProbeSource;
use crate::{Error, lab::Lab, namespace, plan::namespace_prefix};

/// A machine on a LAN of a host, or a container on a bridge of it.
pub struct InnerMachine {
    namespace: String,
    cable: String,
    host: String,
    /// Its address.
    pub address: String,
}

impl InnerMachine {
    /// A machine with the address `NET.9` on a network `NET.0/24` of its own behind a host, whose
    /// interface there is `cable` with the address `NET.1`. `gateway`: whether the host is its
    /// default route.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn lan(
        lab: &Lab,
        host: &str,
        cable: &str,
        net: &str,
        gateway: bool,
    ) -> Result<Self, Error> {
        let behind = Self::cabled(lab, host, cable, format!("{net}.9"))?;
        let own = lab.testbed().host(host)?.namespace.clone();
        namespace::run(
            "ip",
            &[
                "-n",
                &own,
                "addr",
                "add",
                &format!("{net}.1/24"),
                "dev",
                cable,
            ],
            "",
        )?;
        behind.address(24, gateway.then(|| format!("{net}.1")).as_deref())?;
        Ok(behind)
    }

    /// A container on a bridge that another program made on a host: Docker's, libvirt's.
    ///
    /// # Errors
    /// If there is no such bridge.
    pub fn bridged(
        lab: &Lab,
        host: &str,
        bridge: &str,
        address: &str,
        bits: u8,
        gateway: &str,
    ) -> Result<Self, Error> {
        let cable = format!("c{}", address.rsplit('.').next().unwrap_or_default());
        let behind = Self::cabled(lab, host, &cable, address.to_owned())?;
        let own = lab.testbed().host(host)?.namespace.clone();
        namespace::run(
            "ip",
            &["-n", &own, "link", "set", &cable, "master", bridge],
            "",
        )?;
        behind.address(bits, Some(gateway))?;
        Ok(behind)
    }

    fn cabled(lab: &Lab, host: &str, cable: &str, address: String) -> Result<Self, Error> {
        let own = lab.testbed().host(host)?.namespace.clone();
        // Named after this testbed, so that it is removed with it.
        let namespace = format!(
            "{}b.{host}.{cable}",
            namespace_prefix(&lab.testbed().plan().name)
        );
        namespace::create(&namespace)?;
        let pair = [
            "link", "add", "name", cable, "netns", &own, "type", "veth", "peer", "name", "eth0",
            "netns", &namespace,
        ];
        namespace::run("ip", &pair, "")?;
        // Otherwise the kernel would add a link-local address some time later.
        namespace::run(
            "ip",
            &[
                "-n",
                &own,
                "link",
                "set",
                cable,
                "addrgenmode",
                "none",
                "up",
            ],
            "",
        )?;
        Ok(Self {
            namespace,
            cable: cable.into(),
            host: own,
            address,
        })
    }

    fn address(&self, bits: u8, gateway: Option<&str>) -> Result<(), Error> {
        let mut batch = format!(
            "addr add {}/{bits} dev eth0\nlink set eth0 up\n",
            self.address
        );
        if let Some(gateway) = gateway {
            batch.push_str(&format!("route add default via {gateway}\n"));
        }
        namespace::run("ip", &["-n", &self.namespace, "-batch", "-"], &batch)
    }

    /// Reconnects its cable to a bridge that was recreated.
    ///
    /// # Errors
    /// If there is no such bridge.
    pub fn plug(&self, bridge: &str) -> Result<(), Error> {
        namespace::run(
            "ip",
            &[
                "-n",
                &self.host,
                "link",
                "set",
                &self.cable,
                "master",
                bridge,
            ],
            "",
        )
    }

    /// The namespace, as the source of a probe.
    pub fn from(&self) -> ProbeSource {
        ProbeSource(self.namespace.clone())
    }
}

impl Drop for InnerMachine {
    fn drop(&mut self) {
        // An error is ignored: the testbed removes it at its end.
        let _ = namespace::delete(&self.namespace);
    }
}
