//! Keeps guests' interfaces as they were when their ports were attached: one that is down is set
//! up, one that was renamed or has lost its carrier gets it back, one that was deleted is made
//! again on the descriptor that its guest holds ([`crate::plane::io::tap_holder`]), and one that
//! was replaced under the same name is opened again. A change that cannot be repaired is logged
//! once.

use super::{
    care::{Care, mute_host_stack},
    port::Port,
};
use crate::lock;
use crate::plane::{core::Inner, interface::repairs::RepairLine};
use p2pvm_host::{device, links::Link};
use std::{
    io,
    time::{Duration, Instant},
};

/// How long an interface may be missing before that is a fault. Reason: a guest that ends takes its
/// interface with it.
const GRACE: Duration = Duration::from_secs(3);

impl Inner {
    /// Puts back what differs of guests' interfaces. Must be called in the plane's network
    /// namespace.
    pub fn mend_ports(&self, links: &[Link], now: Instant) {
        for port in self.tables.ports.load().iter() {
            let ifname = port.config.ifname.as_str();
            let mut care = lock(&port.care);
            let mut mended = Vec::new();
            let done = match links.iter().find(|link| link.name == ifname) {
                None => match links.iter().find(|link| link.index == care.index) {
                    Some(link) => {
                        mended.push(format!("it was renamed {}", link.name));
                        device::set_name(link.index, ifname)
                            .map_err(|error| format!("it was renamed {}, and {error}", link.name))
                    }
                    None => make_again(&care, ifname, &mut mended),
                },
                Some(link) => mend(port, &mut care, link, &mut mended)
                    .map_err(|error| format!("{}, and {error}", mended.join(", "))),
            };
            if done.is_ok() && mended.is_empty() {
                care.look(ifname, now);
            }
            // A guest that ends takes it along, a moment before the owner detaches the port.
            care.missing = if done.is_ok() {
                None
            } else {
                care.missing.or(Some(now))
            };
            let is_new = care
                .missing
                .is_some_and(|since| now.saturating_duration_since(since) < GRACE);
            let done = if is_new { Ok(()) } else { done };
            let fault = done
                .err()
                .map(|what| format!("a guest's interface {ifname} cannot be put back: {what}"));
            if care.missing.is_none() && care.log.worth(&mended, 1, now) != RepairLine::NoLine {
                tracing::warn!(
                    "put a guest's interface {ifname} back after another program changed it: {}",
                    mended.join(", ")
                );
            }
            if care.fault != fault {
                match &fault {
                    Some(fault) => tracing::warn!("{fault}"),
                    None => tracing::info!("a guest's interface {ifname} is as it should be again"),
                }
                care.fault = fault;
            }
        }
    }

    /// What cannot be put back of guests' interfaces, in words.
    pub fn port_faults(&self) -> Vec<String> {
        self.tables
            .ports
            .load()
            .iter()
            .filter_map(|port| lock(&port.care).fault.clone())
            .collect()
    }
}

/// Makes an interface again that was deleted or moved away. The kernel reports the new one, and the
/// rest is done then.
fn make_again(care: &Care, ifname: &str, mended: &mut Vec<String>) -> Result<(), String> {
    match care.holder.as_ref().map(|holder| holder.attach(ifname)) {
        Some(Ok(moved)) => {
            mended.push(
                if moved {
                    "it was moved into another network namespace"
                } else {
                    "it was deleted"
                }
                .into(),
            );
            Ok(())
        }
        Some(Err(error)) => Err(format!("it was deleted or moved away, and {error}")),
        None => Err("it is gone".to_owned()),
    }
}

fn mend(port: &Port, care: &mut Care, link: &Link, mended: &mut Vec<String>) -> io::Result<()> {
    if link.index != care.index {
        mended.push("it was replaced by a new one".into());
        mute_host_stack(&link.name);
        port.socket.bind(link.index)?;
        care.index = link.index;
    }
    if care.mtu != 0 && link.mtu != care.mtu {
        mended.push(format!("its MTU was {}", link.mtu));
        device::set_mtu(link.index, care.mtu)?;
    }
    if !link.up {
        mended.push("it was down".into());
        device::set_up(link.index)?;
    } else if !link.carrier {
        mended.push("it had no carrier".into());
        device::set_carrier(link.index)?;
    }
    Ok(())
}
