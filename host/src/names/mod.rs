//! How this machine's programs look up names, and how they are led to a resolver of ours.
//!
//! [`text`] and [`file`] change `/etc/resolv.conf` and leave no trace; [`scene`] tells which of the
//! ways to look up names is alive and used (systemd-resolved, the file, both); [`keeper`] keeps
//! them leading to us while everything around changes, and proves it by asking as a program does.
//! [`loopback`] is where our resolver listens; [`holders`] tells who has taken a port.
//!
//! The address in the file is a loopback address of the network's own. When our resolver is gone
//! for whatever reason the kernel refuses at once and a program asks the next server; an address on
//! an interface that went would leave it waiting. And programs that copy the file for a container
//! leave loopback addresses out.

pub mod file;
pub mod holders;
pub mod keeper;
pub mod loopback;
pub mod nsswitch;
mod proof;
pub mod scene;
pub mod text;
pub mod watch;
pub mod wire;

pub use keeper::{Forwarder, Keeper, Neighbour, Settings, Wanted};

/// Why programs of this machine would not find a network's names, whoever runs, as far as
/// `/etc/nsswitch.conf` tells.
pub fn without_daemon() -> Option<crate::Finding> {
    let places = scene::Places::default();
    nsswitch::trouble(&scene::Scene::look(&places), &places.nsswitch)
}
