//! Keeps guests' interfaces as they were when their ports were attached: one that is set down is
//! set up again, one that was renamed or has lost its carrier gets it back, one that was deleted is
//! made anew on the descriptor that its guest holds ([`super::tap_holder`]), and one that was made
//! anew under the same name is opened anew. One that is gone for good is said once.

use super::{
    Inner,
    core::lock,
    mend::{Said, Worth},
    port::mute_host_stack,
    tap_holder::Holder,
};
use p2pvm_host::{
    device,
    links::{Link, links},
};
use std::time::{Duration, Instant};

/// Who holds the interface is looked up, or what the guest's driver has made of it is read, this
/// often.
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// A guest that ends takes its interface with it: only one that is missing for longer is a fault.
const GRACE: Duration = Duration::from_secs(3);

/// What one port's interface is to be, and what became of keeping it so.
#[derive(Default)]
pub(crate) struct Care {
    index: u32,
    mtu: u32,
    /// A program that makes the same change again and again is named once in a while.
    said: Said,
    /// Who holds its descriptor, and when that was last looked at.
    holder: Option<Holder>,
    looked: Option<Instant>,
    missing: Option<Instant>,
    fault: Option<String>,
}

impl Care {
    /// What the interface is like now.
    pub fn of(ifname: &str) -> Self {
        let link = links()
            .ok()
            .and_then(|links| links.into_iter().find(|link| link.name == ifname));
        link.map_or_else(Self::default, |link| Self {
            index: link.index,
            mtu: link.mtu,
            ..Self::default()
        })
    }
}

impl Care {
    /// Keeps in mind who holds the interface's descriptor, and what it is like.
    fn look(&mut self, ifname: &str, now: Instant) {
        if self
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY)
        {
            return;
        }
        self.looked = Some(now);
        match &mut self.holder {
            Some(holder) => holder.look(),
            None => self.holder = Holder::find(ifname),
        }
    }
}

impl Inner {
    /// Puts back what differs of guests' interfaces. Must be called in the plane's network
    /// namespace.
    pub fn mend_ports(&self, links: &[Link], now: Instant) {
        for port in self.ports.load().iter() {
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
                    None => anew(&care, ifname, &mut mended),
                },
                Some(link) => mend(port, &mut care, link, &mut mended)
                    .map_err(|error| format!("{}, and {error}", mended.join(", "))),
            };
            if done.is_ok() && mended.is_empty() {
                care.look(ifname, now);
            }
            // It goes with its guest, a moment before the owner detaches the port.
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
            if care.missing.is_none() && care.said.worth(&mended, 1, now) != Worth::Nothing {
                tracing::warn!(
                    "a guest's interface {ifname} is put back, something changed it: {}",
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

    /// What cannot be put back of guests' interfaces.
    pub fn port_faults(&self) -> Vec<String> {
        self.ports
            .load()
            .iter()
            .filter_map(|port| lock(&port.care).fault.clone())
            .collect()
    }
}

/// Makes an interface that was deleted or moved away anew; the kernel tells of the new one, and the
/// rest is done then.
fn anew(care: &Care, ifname: &str, mended: &mut Vec<String>) -> Result<(), String> {
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

fn mend(
    port: &super::port::Port,
    care: &mut Care,
    link: &Link,
    mended: &mut Vec<String>,
) -> std::io::Result<()> {
    if link.index != care.index {
        mended.push("it was made anew".into());
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
