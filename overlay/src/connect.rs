//! Makes a link to a member when its first packet or ping needs one, and keeps it on the best path.
//!
//! One call over the control plane carries both sides' addresses and the whole handshake. After one
//! round trip the session stands, and both sides send sealed probes to all addresses at once
//! (simultaneous open; ICE's idea, RFC 8445, with the handshake folded in). If no direct path
//! answers in time, a member that both can reach relays the sealed datagrams; if UDP does not get
//! through at all, they go over a stream of the control plane. A direct path is then tried again:
//! less and less often, but at least every half minute while the link is used, and at once if
//! something has changed.
//!
//! To a member without a control connection the same exchange goes over the ring (`over_ring`),
//! which is then the first path: the first packet leaves after one round trip over the ring, while
//! the other paths are still being tried.
//!
//! `state` decides, without IO; the other files are its driver.

mod dial;
mod escape;
mod examine;
#[cfg(test)]
mod golden_tests;
mod mapping;
pub mod message;
mod mobility;
mod nat;
mod netcheck;
mod options;
mod over_ring;
mod relays;
mod shared;
mod silence;
mod state;
mod stream;
mod turns;

pub use message::{Candidate, CandidateKind, NatKind};
pub use netcheck::{MemberReach, NetCheck};
pub use options::ConnectOptions;
pub use over_ring::Credentials;
pub(crate) use state::nat::is_private;
pub use state::punches::{Punch, Punches};

use crate::{
    coordinates::Coordinate,
    fabric::Fabric,
    id::MemberId,
    membership::Certificate,
    plane::{Error, Path, Plane},
    ring::Position,
    ring_net::RingNet,
};
use over_ring::RingAccess;
use shared::Shared;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;

/// The fabric service of connectors.
pub const SERVICE: &str = "link";
/// The fabric service whose streams carry datagrams where UDP does not.
pub const STREAM_SERVICE: &str = "link-stream";
/// How long a router may take to remove a mapping. A router that does not answer keeps it until it
/// expires.
const CLOSE_LIMIT: Duration = Duration::from_millis(1500);

/// Makes and keeps links; dropping it stops that (links that stand live on).
pub struct Connector {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Connector {
    /// Serves other members' connectors and makes the links that the plane asks for. Must be called
    /// within a tokio runtime.
    pub fn start(plane: Plane, fabric: Arc<dyn Fabric>, options: ConnectOptions) -> Arc<Self> {
        Self::begin(plane, fabric, options, None)
    }

    /// As [`Connector::start`], and meets members over the ring too, with these credentials.
    pub fn start_with_ring(
        plane: Plane,
        fabric: Arc<dyn Fabric>,
        options: ConnectOptions,
        ring: Arc<RingNet>,
        credentials: Credentials,
    ) -> Arc<Self> {
        Self::begin(
            plane,
            fabric,
            options,
            Some(RingAccess::new(ring, credentials)),
        )
    }

    fn begin(
        plane: Plane,
        fabric: Arc<dyn Fabric>,
        options: ConnectOptions,
        ring: Option<RingAccess>,
    ) -> Arc<Self> {
        plane.set_relay(options.relay);
        let shared = Arc::new(Shared::new(plane, fabric, options, ring));
        shared.serve();
        let mut tasks = JoinSet::new();
        tasks.spawn(dial::wishes(shared.clone()));
        tasks.spawn(dial::tend(shared.clone()));
        tasks.spawn(mobility::follow(shared.clone()));
        tasks.spawn(silence::heed(shared.clone()));
        tasks.spawn(stream::accept(shared.clone()));
        if options.stun {
            tasks.spawn(mobility::watch_mapping(shared.clone()));
            tasks.spawn(nat::learn(shared.clone()));
        }
        if options.upnp {
            tasks.spawn(mapping::keep(shared.clone()));
        }
        Arc::new(Self {
            shared,
            _tasks: tasks,
        })
    }

    /// Waits until there is a path to the member, making one if need be.
    ///
    /// # Errors
    /// [`Error::Fabric`] if the control plane does not reach the member, [`Error::NoPath`] if
    /// nothing else does.
    pub async fn ensure(&self, member: MemberId) -> Result<Path, Error> {
        dial::ensure(&self.shared, member, dial::Reach::Any).await
    }

    /// As [`Connector::ensure`], for a path that does not itself rest on the ring. `via` is the
    /// neighbour through which the member is called over the ring if nothing else leads to it.
    ///
    /// # Errors
    /// As [`Connector::ensure`].
    pub async fn ensure_edge(
        &self,
        member: MemberId,
        via: Option<Position>,
    ) -> Result<Path, Error> {
        self.shared.plane.set_edge(member, true);
        let made = dial::ensure_by(&self.shared, member, dial::Reach::Edge, via).await;
        if made.is_err() {
            self.shared.plane.set_edge(member, false);
        }
        made
    }

    /// Whether the member answers over the ring.
    pub async fn alive_over_ring(&self, member: MemberId) -> bool {
        match &self.shared.ring {
            Some(ring) => ring.alive(member).await,
            None => false,
        }
    }

    /// The certificate of a member that was met over the ring.
    pub fn certificate(&self, member: MemberId) -> Option<Certificate> {
        self.shared.ring.as_ref()?.certificate(member)
    }

    /// Our address as other members see it, where a NAT changes it.
    pub fn reflexive(&self) -> Option<SocketAddr> {
        self.shared.state().nat.reflexive
    }

    /// Members that have an address in another p2pvm network of this machine, so that they cannot
    /// be reached there.
    pub fn hidden(&self) -> Vec<(MemberId, IpAddr)> {
        self.shared
            .state()
            .hidden
            .iter()
            .map(|(member, ip)| (*member, *ip))
            .collect()
    }

    /// The kind of NAT or firewall in front of this node.
    pub fn nat_kind(&self) -> NatKind {
        self.shared.state().nat.kind
    }

    /// The results of tries to reach members directly.
    pub fn punches(&self) -> Punches {
        self.shared.note_punches();
        self.shared.state().punches.summary()
    }

    /// A member's network coordinate, or this node's: from the neighbour on the ring, or from the
    /// last meeting.
    pub fn coordinate(&self, member: MemberId) -> Option<Coordinate> {
        if member == self.shared.fabric.me() {
            self.shared.here()
        } else {
            self.shared.place(member)
        }
    }

    /// Removes the port mapping from the router, which otherwise keeps it until it expires. To be
    /// called at the end.
    pub async fn close(&self) {
        if self.shared.options.upnp {
            self.shared.closing.notify_one();
            let _ = tokio::time::timeout(CLOSE_LIMIT, self.shared.closed.notified()).await;
        }
    }

    /// The addresses at which this node's plane may be reached.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.shared.candidates()
    }
}
