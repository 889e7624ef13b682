//! What one guest's interface has to be like, and what became of keeping it so.

use crate::plane::{interface::repairs::RepairLog, io::tap_holder::TapHolder};
use p2pvm_host::{apart::keep_apart, links::links};
use std::time::{Duration, Instant};

/// How often the process that holds the interface is looked up, or its settings read.
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// Keeps the host's own stack from hearing and answering the guest.
pub(crate) fn mute_host_stack(ifname: &str) {
    if let Err(error) = keep_apart(ifname) {
        tracing::debug!(
            ifname,
            error = %p2pvm_host::chain(&error),
            "the kernel has no filter for a guest's interface"
        );
    }
}

#[derive(Default)]
pub(crate) struct Care {
    pub index: u32,
    pub mtu: u32,
    pub log: RepairLog,
    /// The process that holds its descriptor.
    pub holder: Option<TapHolder>,
    looked: Option<Instant>,
    pub missing: Option<Instant>,
    pub fault: Option<String>,
}

impl Care {
    /// The interface as it is now, which is how it is kept.
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

    /// Remembers which process holds the interface's descriptor, and the interface's settings.
    pub fn look(&mut self, ifname: &str, now: Instant) {
        if self
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY)
        {
            return;
        }
        self.looked = Some(now);
        // Another program may have set it back, as systemd-udevd does with an interface that comes.
        mute_host_stack(ifname);
        match &mut self.holder {
            Some(holder) => holder.look(),
            None => self.holder = TapHolder::find(ifname),
        }
    }
}
