//! What this host's owner offers to the VMs of other members: settings, when it is open, and its
//! end. What is admitted is decided in `p2pvm_vm_manager::offer`.

mod gate;
mod hours;
pub(crate) mod http;
mod idle;
mod kept;
mod load;
pub(crate) mod service;
pub mod settings;
mod show;

pub(crate) use kept::KeptOffer;
