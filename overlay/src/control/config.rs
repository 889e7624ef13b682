//! The configuration of a control host.

use crate::{
    identity::{Identity, KeyPair},
    membership::{Admission, Certificate, NetworkConfig, Trust},
    underlay::Underlay,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// How many members a network has before not every member keeps a connection to every other, unless
/// configured otherwise.
pub const FULL_MESH: usize = 24;
/// How long an unneeded connection of a large network stays open, unless configured otherwise.
const UNUSED_AFTER: Duration = Duration::from_secs(60);

/// The configuration of a control host.
pub struct ControlConfig {
    /// This node's keys.
    pub identity: Arc<Identity>,
    /// The certificate that it shows.
    pub certificate: Certificate,
    /// The network of the certificate.
    pub network: NetworkConfig,
    /// The authorities and revocations by which it judges others. [`Trust::load`] it from a file in
    /// `state_dir` so that revocations survive.
    pub trust: Arc<Trust>,
    /// The port for QUIC (UDP) and TCP; 0 takes any.
    pub listen_port: u16,
    /// The addresses to listen on: all by default; none for a node that only dials.
    pub listen_on: Vec<IpAddr>,
    /// Multiaddresses, without `/p2p/`, of a port forwarding to this node.
    pub public_addresses: Vec<String>,
    /// Whether to ask the router for a port mapping, if this node has no public IPv4 address.
    pub map_port: bool,
    /// The directory of the peer cache (`peers.json`).
    pub state_dir: PathBuf,
    /// Multiaddresses of members to dial first; the peer cache is used as well.
    pub bootstrap: Vec<String>,
    /// The network's root key, on the machine that has it. A delegate issues with its identity.
    pub issuer_key: Option<KeyPair>,
    /// Counts the uses of invites.
    pub admission: Arc<dyn Admission>,
    /// How many members a network has before not every member keeps a connection to every other
    /// ([`FULL_MESH`]).
    pub full_mesh: usize,
    /// How long a connection in a network beyond the full mesh may be unneeded and unused before
    /// the end that made it closes it.
    pub unused_after: Duration,
    /// The addresses behind tunnels of this machine: they are not published, dialled or answered
    /// ([`crate::plane::Plane::underlay`]).
    pub underlay: Underlay,
}

impl ControlConfig {
    /// A configuration that listens everywhere on any port and knows no member.
    pub fn new(
        identity: Arc<Identity>,
        certificate: Certificate,
        network: NetworkConfig,
        trust: Arc<Trust>,
        state_dir: PathBuf,
        admission: Arc<dyn Admission>,
    ) -> Self {
        Self {
            identity,
            certificate,
            network,
            trust,
            listen_port: 0,
            listen_on: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            public_addresses: Vec::new(),
            map_port: false,
            state_dir,
            bootstrap: Vec::new(),
            issuer_key: None,
            admission,
            full_mesh: FULL_MESH,
            unused_after: UNUSED_AFTER,
            underlay: Underlay::default(),
        }
    }
}
