//! What becomes of a VM whose host is lost: one of its heirs starts it, unasked.
//!
//! The *heirs* of a protected VM are the members that hold its newest recovery point: a replica of
//! its disk, or else a durable snapshot. The host tells them ([`tell`]); each keeps what it needs
//! for that in a file ([`inheritance`]) and watches the host ([`watch`]). When the host has been
//! silent for long enough, and the VM's voters say that its lease has run out, they grant the first
//! heir the next epoch, and it starts the VM as a restore does ([`take`]).
//!
//! No heir judges time or decides alone: the voters do ([`p2pvm_dht::votes::lease`]). An heir whose
//! owner does not offer the room, or that the voters do not give the VM's key, is no heir.

mod heard;
mod inheritance;
mod take;
mod tell;
mod told;
mod watch;

pub use crate::recovery::{heirs_of, recovery_point};
pub(crate) use inheritance::Inheritances;
pub use inheritance::Untaken;
#[cfg(fuzzing)]
pub use inheritance::parse as parse_inheritance;
pub(crate) use told::ToldHeirs;
