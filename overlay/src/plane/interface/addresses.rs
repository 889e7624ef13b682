//! The TUN's addresses and the routes that come with them, and its mark.

use super::{
    mend::Findings,
    network::{has_other_interface, is_v6_off, other_address, outgoing_interface},
    proof::ProofFailure,
    wanted::WantedDevice,
};
use crate::lock;
use crate::plane::{core::Inner, error::Error};
use p2pvm_host::device;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

impl Inner {
    /// Puts back addresses, and the routes that come with them. `there`: the addresses it has.
    pub fn mend_addresses(
        &self,
        wanted: &mut WantedDevice,
        index: u32,
        there: &[(IpAddr, u8)],
        findings: &mut Findings,
    ) {
        for (address, prefix) in wanted.addresses.clone() {
            if address.is_ipv6() && self.is_without_v6(wanted) {
                continue;
            }
            if !there.contains(&(address, prefix)) {
                let added = self.add_address(&address, prefix);
                if !findings.note(|| format!("its address {address} was gone"), added) {
                    continue;
                }
            }
            let Some(other) = other_address(&address, prefix) else {
                continue;
            };
            let leads_here = || device::way_to(&other).is_ok_and(|by| by == Some(index));
            if leads_here() {
                continue;
            }
            let network = device::network(&address, prefix);
            match device::add_connected_route(index, &address, prefix) {
                Ok(()) => findings
                    .mended
                    .push(format!("its route to {network}/{prefix} was gone")),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // The route leads to another interface that has no address in the network:
                    // another program replaced it.
                    if address.is_ipv4()
                        && !leads_here()
                        && !has_other_interface(index, &network, prefix)
                    {
                        match device::put_connected_route_first(index, &address, prefix) {
                            // Ours is there: a rule or another table takes precedence.
                            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                            first => {
                                findings.note(
                                    || {
                                        format!(
                                            "its route to {network}/{prefix} was \
                                    replaced by another"
                                        )
                                    },
                                    first,
                                );
                            }
                        }
                    }
                }
                Err(error) => findings.faults.push(format!(
                    "its route to {network}/{prefix} is gone, and {}",
                    p2pvm_host::chain(&error)
                )),
            }
            if !leads_here() {
                let (device, through) = (wanted.name.clone(), outgoing_interface(&other));
                findings.elsewhere.push(ProofFailure::Elsewhere {
                    device,
                    addr: other,
                    through,
                });
            }
        }
    }

    fn add_address(&self, address: &IpAddr, prefix: u8) -> io::Result<()> {
        let tun = self.tun()?;
        let added = match address {
            IpAddr::V4(v4) => tun.add_address_v4(*v4, prefix),
            IpAddr::V6(v6) => tun.add_address_v6(*v6, prefix),
        };
        added.or_else(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    /// Whether this machine's IPv6 is switched off; logs it when that changes.
    fn is_without_v6(&self, wanted: &mut WantedDevice) -> bool {
        let off = is_v6_off(&wanted.name);
        if off != wanted.without_v6 {
            wanted.without_v6 = off;
            let device = wanted.name.as_str();
            if off {
                tracing::info!(
                    "IPv6 is switched off on this machine: {device} has its IPv4 address alone"
                );
            } else {
                tracing::info!("IPv6 is switched on: {device} gets its IPv6 address");
            }
        }
        off
    }

    /// Sets the addresses that the device has to have, and adds them. Must be called in the plane's
    /// network namespace.
    pub fn set_host_addresses(
        &self,
        v4: Option<(Ipv4Addr, u8)>,
        v6: Option<(Ipv6Addr, u8)>,
    ) -> Result<(), Error> {
        let new: Vec<(IpAddr, u8)> = v4
            .map(|(a, p)| (a.into(), p))
            .into_iter()
            .chain(v6.map(|(a, p)| (a.into(), p)))
            .collect();
        let mut wanted = lock(&self.device_wanted);
        let old = std::mem::replace(&mut wanted.addresses, new.clone());
        for (addr, _) in old.iter().filter(|a| !new.contains(a)) {
            let _ = self.tun().and_then(|tun| tun.remove_address(*addr));
        }
        self.tables.hosts.store(Arc::new(new.clone()));
        self.underlay.set_device(&wanted.name, &new);
        let mut failed = None;
        for (addr, prefix) in new.iter().filter(|a| !old.contains(a)) {
            if addr.is_ipv6() && self.is_without_v6(&mut wanted) {
                continue;
            }
            if let Err(cause) = self.add_address(addr, *prefix) {
                // IPv4 alone is enough; the next look tries again and logs what is wrong.
                if addr.is_ipv4() || v4.is_none() {
                    failed = Some(Error::Address {
                        device: wanted.name.clone(),
                        addr: *addr,
                        cause,
                    });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What cannot be put back of the device and of guests' interfaces, in words.
    pub fn device_faults(&self) -> Vec<String> {
        let wanted = lock(&self.device_wanted);
        let device = wanted
            .faults
            .iter()
            .map(|fault| format!("the interface {} cannot be put back: {fault}", wanted.name));
        device.chain(self.port_faults()).collect()
    }

    /// Destinations in the network whose packets other programs' rules or routes lead past the
    /// device.
    pub fn ways_elsewhere(&self) -> Vec<ProofFailure> {
        lock(&self.device_wanted).elsewhere.clone()
    }

    /// Writes into the device's mark which member's address another network of this machine holds.
    pub fn set_misses(&self, misses: Option<IpAddr>) {
        let before = std::mem::replace(&mut lock(&self.device_wanted).mark.misses, misses);
        if before != misses {
            self.ask_host(None);
        }
    }

    /// Writes the control plane's port into the device's mark.
    pub fn set_control_port(&self, port: u16) {
        lock(&self.device_wanted).mark.control_port = port;
        self.ask_host(None);
    }
}
