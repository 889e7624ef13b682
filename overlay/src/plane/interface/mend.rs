//! Keeps the TUN as it has to be: if another program deletes it, sets it down, renames it, changes
//! its MTU, or removes its addresses or their routes, it is put back within some seconds. What is
//! wanted is in [`super::wanted`]; what is there is read from the kernel whenever it reports a
//! change, and every few seconds ([`super::watch`]).
//!
//! One log line says what was put back, one what cannot be. A change that is made again and again
//! is put back more slowly and no longer logged; another change is logged all the same. IPv6 is
//! optional: while it is switched off the IPv6 address is left out, and added when it comes back.

use super::{proof::ProofFailure, wanted::WantedDevice};
use crate::lock;
use crate::plane::{
    core::Inner,
    io::{device, moved_device},
};
use p2pvm_host::{
    device as host,
    links::{Link, Mark, links, set_alias},
};
use std::{io, time::Instant};

/// What one look found and did.
#[derive(Default)]
pub(crate) struct Findings {
    pub mended: Vec<String>,
    pub faults: Vec<String>,
    pub elsewhere: Vec<ProofFailure>,
}

impl Findings {
    /// Notes what became of a repair; false if anything could not be repaired so far.
    pub fn note(&mut self, what: impl FnOnce() -> String, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => self.mended.push(what()),
            Err(error) => self.faults.push(format!("{}, and {error}", what())),
        }
        self.faults.is_empty()
    }
}

impl Inner {
    /// Compares the device with what it has to be, puts back what differs, and returns what that
    /// was, in words. Must be called in the plane's network namespace.
    pub fn mend_device(&self, now: Instant) -> Vec<String> {
        let mut wanted = lock(&self.device_wanted);
        if wanted.closed || wanted.is_slowed(now) {
            return Vec::new();
        }
        let mut findings = Findings::default();
        self.mend_all(&mut wanted, &mut findings);
        wanted.log_repairs(&findings.mended, findings.faults, now);
        wanted.log_elsewhere(findings.elsewhere);
        findings.mended
    }

    fn mend_all(&self, wanted: &mut WantedDevice, findings: &mut Findings) {
        let Some(anew) = self.attach_again(wanted, findings) else {
            return;
        };
        let (Ok(name), Ok(all)) = (self.tun().and_then(|tun| tun.name()), links()) else {
            return;
        };
        // It may be renamed at this moment: the next look finds it.
        let Some(link) = all.iter().find(|link| link.name == name) else {
            return;
        };
        if anew {
            self.mend_link(wanted, link, &mut Findings::default(), true);
            // What a new device lacks needs no log line.
            let mut rest = Findings::default();
            self.mend_addresses(wanted, link.index, &[], &mut rest);
            findings.faults.append(&mut rest.faults);
            findings.elsewhere.append(&mut rest.elsewhere);
        } else {
            self.mend_link(wanted, link, findings, false);
            self.mend_addresses(wanted, link.index, &link.addresses, findings);
        }
    }

    /// Makes a new device if it was deleted or moved into another network namespace, and returns
    /// whether that was needed. `None`: it cannot be made.
    fn attach_again(&self, wanted: &WantedDevice, findings: &mut Findings) -> Option<bool> {
        let here = |name: &String| links().map(|links| links.iter().any(|link| link.name == *name));
        let tun = self.tun().ok()?;
        let what = match tun.name().map(|name| here(&name)) {
            Ok(Ok(true)) => return Some(false),
            Ok(Err(_)) => return None,
            Err(_) => "it was deleted",
            Ok(Ok(false)) => {
                let what = "it was moved into another network namespace";
                match moved_device::delete_elsewhere(tun) {
                    Ok(true) => what,
                    Ok(false) => return None,
                    Err(error) => {
                        findings.note(|| what.into(), Err(error));
                        return None;
                    }
                }
            }
        };
        findings
            .note(
                || what.into(),
                device::attach(tun, &wanted.name, self.joins_datagrams),
            )
            .then_some(true)
    }

    /// Puts back name, MTU, mark and carrier, and sets the device up.
    fn mend_link(&self, wanted: &WantedDevice, link: &Link, findings: &mut Findings, anew: bool) {
        let index = link.index;
        if link.name != wanted.name {
            findings.note(
                || format!("it was renamed {}", link.name),
                host::set_name(index, &wanted.name),
            );
        }
        if link.mtu != u32::from(wanted.mtu) {
            findings.note(
                || format!("its MTU was {}", link.mtu),
                host::set_mtu(index, wanted.mtu.into()),
            );
        }
        let mark = link.mark();
        let is_ours = |mark: &Mark| {
            mark.network == wanted.mark.network && mark.link_port == wanted.mark.link_port
        };
        if mark
            .as_ref()
            .is_some_and(|mark| *mark != wanted.mark && is_ours(mark))
        {
            // The wanted mark has changed; no other program has removed it: no log line.
            let _ = set_alias(index, &wanted.mark.to_string());
        } else if mark.as_ref() != Some(&wanted.mark) {
            findings.note(
                || "its mark was gone".into(),
                set_alias(index, &wanted.mark.to_string()),
            );
        }
        if anew {
            let _ = device::limit_packets(index, wanted.largest);
        }
        if !link.up {
            findings.note(|| "it was down".into(), host::set_up(index));
        } else if !link.carrier {
            findings.note(
                || "it had no carrier".into(),
                self.tun().and_then(device::set_carrier),
            );
        }
    }
}
