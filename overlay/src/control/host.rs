//! The libp2p swarm: transports, and the behaviours behind the gate, with all periodic traffic of
//! libp2p off or reduced. The remaining idle traffic is QUIC's keepalive.

use super::{
    door::Door,
    gate::Gated,
    lookup::Lookup,
    marked::MarkedTransport,
    outside::OutsideTransport,
    streams::{RawStream, Streams},
};
use crate::{identity::Identity, underlay::Underlay};
use libp2p::{
    PeerId, Swarm, SwarmBuilder, Transport, autonat,
    core::{ConnectedPoint, muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dcutr, identify, identity,
    multiaddr::Protocol,
    noise, quic, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use std::{io, num::NonZeroU8, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// How long before a silent QUIC connection is probed, in milliseconds; each node has its own
/// interval in this range. Reason: a probe from one end delays the other's. With unlike intervals
/// one end asks and the other answers, two packets of about 70 bytes; with equal ones both ask at
/// the same moment, four packets each time. A NAT keeps a mapping for 30 s and more (RFC 4787
/// §4.3).
const QUIC_KEEPALIVE_MS: std::ops::Range<u64> = 3500..5000;
/// How long a QUIC peer is silent before it counts as dead. Reason: at least two probes may be
/// lost.
const QUIC_DEAD_AFTER_MS: u32 = 11_000;
/// How long before libp2p's identify asks again. Reason: it asks at the beginning, and changes are
/// pushed.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How long a circuit may last. Reason: it may carry a whole migration if no direct connection is
/// possible.
const CIRCUIT_LASTS: Duration = Duration::from_secs(24 * 3600);

/// The behaviour behind the gate.
#[derive(NetworkBehaviour)]
pub struct InnerBehaviour {
    pub streams: Streams,
    pub identify: identify::Behaviour,
    pub relay: relay::Behaviour,
    pub relay_client: relay::client::Behaviour,
    pub dcutr: dcutr::Behaviour,
    pub autonat_client: Toggle<autonat::v2::client::Behaviour>,
    pub autonat_server: autonat::v2::server::Behaviour,
}

/// The whole behaviour of a control host.
pub type Host = Gated<InnerBehaviour>;

/// An error of one of libp2p's crates.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The libp2p form of a node's identity.
pub fn keypair(identity: &Identity) -> Result<identity::Keypair, identity::DecodingError> {
    let mut seed = *identity.keys().seed();
    identity::Keypair::ed25519_from_bytes(&mut seed)
}

fn relay_config() -> relay::Config {
    relay::Config {
        max_reservations: 512,
        max_circuits: 512,
        max_circuits_per_peer: 64,
        max_circuit_duration: CIRCUIT_LASTS,
        max_circuit_bytes: 0,
        // Only members get this far, and all members of one site have one address.
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    }
}

fn inside(
    key: &identity::Keypair,
    relay_client: relay::client::Behaviour,
    incoming: mpsc::Sender<(PeerId, RawStream)>,
) -> InnerBehaviour {
    let me = key.public().to_peer_id();
    let identify = identify::Config::new("/p2pvm/1".into(), key.public())
        .with_agent_version(concat!("p2pvm/", env!("CARGO_PKG_VERSION")).into())
        .with_interval(IDENTIFY_INTERVAL)
        .with_cache_size(0);
    // Always on: which member to ask follows from contacts. In libp2p-relay 0.22 a change of the
    // status, which follows the external addresses otherwise, panics the task of every relayed
    // connection.
    let mut relay = relay::Behaviour::new(me, relay_config());
    relay.set_status(Some(relay::Status::Enable));
    InnerBehaviour {
        streams: Streams::new(incoming),
        identify: identify::Behaviour::new(identify),
        relay,
        relay_client,
        dcutr: dcutr::Behaviour::new(me),
        autonat_client: Toggle::from(Some(autonat::v2::client::Behaviour::default())),
        autonat_server: autonat::v2::server::Behaviour::default(),
    }
}

/// This node's own interval between probes, the same at each start.
fn keepalive(me: PeerId) -> Duration {
    let hash = blake3::derive_key("p2pvm 2026 interval between probes", &me.to_bytes());
    let spread = QUIC_KEEPALIVE_MS.end - QUIC_KEEPALIVE_MS.start;
    let part = u64::from(u16::from_be_bytes([hash[0], hash[1]]));
    Duration::from_millis(QUIC_KEEPALIVE_MS.start + spread * part / u64::from(u16::MAX))
}

/// A separate connection to each remote peer.
pub type Connection = (PeerId, StreamMuxerBox);

/// Fails a dial that reached another peer than the address names. The swarm checks that too, but
/// only for the first connection made: if two homes number their machines alike, a stranger that
/// answers at one address ends the whole dial, including the address that would have reached the
/// peer.
fn only_whom_it_names(
    connection: Connection,
    end: ConnectedPoint,
) -> std::future::Ready<io::Result<Connection>> {
    let wrong = match &end {
        ConnectedPoint::Dialer { address, .. } => {
            matches!(address.iter().last(), Some(Protocol::P2p(named)) if named != connection.0)
        }
        ConnectedPoint::Listener { .. } => false,
    };
    std::future::ready(if wrong {
        Err(io::Error::other(format!("{} answered", connection.0)))
    } else {
        Ok(connection)
    })
}

fn over_tcp(key: &identity::Keypair) -> Result<Boxed<Connection>, noise::Error> {
    let transport = MarkedTransport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux::Config::default());
    Ok(transport
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .and_then(only_whom_it_names)
        .boxed())
}

fn over_quic(key: &identity::Keypair) -> Boxed<Connection> {
    let mut config = quic::Config::new(key);
    config.keep_alive_interval = keepalive(key.public().to_peer_id());
    config.max_idle_timeout = QUIC_DEAD_AFTER_MS;
    let transport = quic::tokio::Transport::new(config);
    transport
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .and_then(only_whom_it_names)
        .boxed()
}

/// Builds the swarm of a node behind `door`, which stays out of the tunnels that `underlay` knows.
/// Streams that others open go to `incoming`.
///
/// # Errors
/// The transports' error.
pub fn build(
    key: identity::Keypair,
    door: Arc<Door>,
    incoming: mpsc::Sender<(PeerId, RawStream)>,
    underlay: &Underlay,
) -> Result<Swarm<Host>, Cause> {
    let tcp = OutsideTransport::new(over_tcp(&key)?, underlay.clone());
    let quic = OutsideTransport::new(over_quic(&key), underlay.clone()).unmarked();
    let builder = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|_| Lookup::before(tcp.boxed(), quic.boxed()))?
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay_client| {
            Gated::new(inside(key, relay_client, incoming), door)
        })?;
    let swarm = builder.with_swarm_config(|config| {
        config
            // The driver closes superfluous connections.
            .with_idle_connection_timeout(Duration::from_secs(365 * 86_400))
            // The first data goes along with the protocol's name: one round trip less for every
            // stream.
            .with_substream_upgrade_protocol_override(Version::V1Lazy)
            .with_dial_concurrency_factor(NonZeroU8::new(16).expect("16 is not zero"))
            .with_smart_dial()
    });
    Ok(swarm.build())
}
