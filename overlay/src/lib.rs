//! Membership, and the delivery of bytes to members: identity, NAT traversal, encrypted links, the
//! IP packet plane and the libp2p control host. Knows neither VMs' content nor DHT records.

pub mod connect;
#[cfg(feature = "control")]
pub mod control;
/// The control plane's messages without libp2p, for the fuzzer, which would otherwise build all of
/// it.
#[cfg(fuzzing)]
#[path = "control/wire.rs"]
#[allow(missing_docs, dead_code)]
pub mod control_wire;
pub mod coordinates;
pub mod fabric;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
#[cfg(test)]
mod golden_tests;
pub mod id;
pub mod identity;
pub mod link;
pub mod lookup;
pub mod membership;
pub mod network_time;
pub mod notices;
pub mod plane;
pub mod portmap;
pub mod ring;
pub mod ring_driver;
pub mod ring_net;
pub mod seats;
pub mod stun;
pub mod underlay;

pub mod durable;
pub use p2pvm_host::{apart::keep_apart, chain, lock, read_lock, reserve, write_lock};

pub use fabric::{BoxStream, Fabric, FabricError, Serve};
pub use id::{Epoch, MemberId, NetworkId, RingAddr, UnixTime, VmId};
