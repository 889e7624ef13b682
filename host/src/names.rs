//! How this machine's programs look up names, and how they are pointed to our resolver.
//!
//! [`text`] and [`file`] change `/etc/resolv.conf` and leave no trace; [`scene`] tells which ways
//! to look up names are alive and used (systemd-resolved, the file, both); [`keeper`] keeps them
//! pointing to us while everything around changes, and proves it by asking as a program does.
//! [`loopback`] has our resolver's addresses; [`holders`] tells which socket holds a port.
//!
//! The address in the file is a loopback address of the network's own. If our resolver is gone, the
//! kernel refuses at once and a program asks the next server; with an address on a removed
//! interface the program would wait. And programs that copy the file for a container omit loopback
//! addresses.

pub mod file;
mod glibc;
pub mod holders;
pub mod keeper;
pub mod loopback;
pub mod nsswitch;
mod proof;
pub mod scene;
mod settings;
pub mod text;
pub mod watch;
pub mod wire;

pub use keeper::Keeper;
pub use settings::{Forwarder, NameSettings, Neighbour, Settings};

/// Why programs of this machine would not find a network's names even with a daemon, as far as
/// `/etc/nsswitch.conf` tells.
pub fn without_daemon() -> Option<crate::Finding> {
    let places = scene::Places::default();
    glibc::trouble(&scene::Scene::look(&places), &places.nsswitch)
}
