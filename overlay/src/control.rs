//! The control plane: members connected by libp2p (QUIC, TCP where UDP is blocked, circuits of
//! other members where neither end can be dialled), with membership proved before anything is
//! served.
//!
//! [`join`] makes a machine a member, [`Control::start`] runs its host, and the crates above use it
//! as a [`Fabric`]. Its parts: `door` proves membership, `gate` keeps everything else shut until
//! then, `streams` opens raw streams, `requests` makes requests of them, `serve` answers them,
//! `driver` keeps the connections, `book` stores where members are, `find` looks up the others.
//! [`names`] resolves host names.

mod address;
mod admit;
mod book;
mod config;
mod door;
mod driver;
mod find;
mod gate;
mod host;
mod inbound;
mod join;
mod lookup;
mod mapped;
mod marked;
pub mod names;
mod outside;
mod requests;
mod serve;
mod shared;
mod status;
mod streams;
mod wire;

pub use config::{ControlConfig, FULL_MESH};
pub use join::{JoinError, NewMembership, join};
pub use status::{ControlEvent, PeerStatus};

use crate::{
    fabric::{BoxStream, Fabric, FabricError, Life, Serve},
    id::{MemberId, RingAddr, UnixTime},
    identity::{Identity, KeyPair, LinkKey},
    membership::{Admission, Certificate, Issuer, Refusal, Revocation, Target},
};
use crate::{lock, read_lock, write_lock};
use async_trait::async_trait;
use book::Book;
use door::Door;
use driver::Driver;
use libp2p::{Multiaddr, multiaddr::Protocol};
use serve::Server;
use shared::{Command, Shared};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{broadcast, mpsc, oneshot};
use wire::{Contact, GOSSIP_SERVICE, Gossip};

/// How many streams that others opened wait to be looked at.
const INCOMING: usize = 256;
/// How long a member that leaves waits for others to receive that.
const FAREWELL: Duration = Duration::from_secs(1);
const PEER_CACHE: &str = "peers.json";
/// How many ring neighbours count. Reason: a ring has about 2·2 near and log2 n far neighbours and
/// some shortcuts; no network of ours has more.
pub const MAX_RING_NEIGHBOURS: usize = 64;

/// Why a control host did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// This node's certificate is not valid (any more).
    #[error("this node's certificate does not make it a member")]
    NotAMember(#[source] Refusal),
    /// libp2p could not be set up.
    #[error("cannot set up the network host")]
    Host(#[source] host::Cause),
    /// No socket could be opened.
    #[error("cannot listen on port {0}")]
    Listen(u16, #[source] host::Cause),
    /// The control host has ended.
    #[error("the network host has shut down")]
    Ended,
    /// This node has no right to do that.
    #[error(
        "this node may neither invite nor revoke: only the network's root and its delegates may"
    )]
    NoRight,
    /// The network's root alone has the right to do that.
    #[error("{} may admit members: only the network's root may revoke it", .0.short())]
    NoRightOverDelegates(MemberId),
    /// This delegate has no revocation left.
    #[error(
        "this node has revoked as many members and invites as a delegate may: only the network's \
            root can revoke more"
    )]
    NoneLeft,
}

/// A running control host. Dropping it ends it; [`Control::shutdown`] also waits.
pub struct Control {
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    certificate: Certificate,
    root: Option<KeyPair>,
    way_in: Option<Arc<mapped::WayIn>>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Control {
    /// Listens, connects to the known members and keeps connected.
    ///
    /// # Errors
    /// If this node is no member, or no socket can be opened.
    pub async fn start(mut config: ControlConfig) -> Result<Arc<Self>, ControlError> {
        config
            .trust
            .verify(&config.certificate)
            .map_err(ControlError::NotAMember)?;
        let me = config.identity.member_id();
        if config.certificate.member() != me {
            return Err(ControlError::NotAMember(Refusal::NotYours));
        }
        let key = host::keypair(&config.identity).map_err(|e| ControlError::Host(e.into()))?;
        let book = Book::load(
            &config.state_dir.join(PEER_CACHE),
            &config.trust,
            me,
            config.full_mesh,
        );
        let root = config
            .issuer_key
            .as_ref()
            .map(|k| KeyPair::from_seed(&k.seed()));
        let issuer_key = config.issuer_key.take();
        let door = Arc::new(door_of(&config, issuer_key));
        let (incoming, streams) = mpsc::channel(INCOMING);
        let (commands, requests) = mpsc::channel(INCOMING);
        let mut swarm = host::build(key, door.clone(), incoming, &config.underlay)
            .map_err(ControlError::Host)?;
        listen(&mut swarm, &config.listen_on, config.listen_port)?;
        let shared = Arc::new(Shared::new(
            me,
            door.clone(),
            book,
            commands,
            config.full_mesh,
            config.underlay,
        ));
        door.set_backend(shared.clone());
        let known = (parse(&config.bootstrap), parse(&config.public_addresses));
        let driver = Driver::new(
            swarm,
            shared.clone(),
            config.identity.clone(),
            config.certificate.clone(),
            requests,
            known,
            config.unused_after,
        );
        let mut tasks = vec![
            tokio::spawn(driver.run()).abort_handle(),
            tokio::spawn(serve(Server::new(shared.clone()), streams)).abort_handle(),
        ];
        let way_in = config.map_port.then(mapped::WayIn::new);
        tasks.extend(
            way_in
                .clone()
                .map(|way_in| tokio::spawn(way_in.keep(shared.clone())).abort_handle()),
        );
        Ok(Arc::new(Self {
            shared,
            identity: config.identity,
            certificate: config.certificate,
            root,
            way_in,
            tasks,
        }))
    }

    /// The events from now on. A slow reader misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<ControlEvent> {
        self.shared.events.subscribe()
    }

    /// The multiaddresses, with `/p2p/`, that this node listens on.
    pub fn listen_addrs(&self) -> Vec<String> {
        let view = self.shared.underlay.view();
        let all = read_lock(&self.shared.listening);
        let by_tunnel = |address: &String| {
            address
                .parse()
                .ok()
                .and_then(|a| address::ip_of(&a))
                .is_some_and(|ip| view.is_of_a_tunnel(&ip))
        };
        all.iter()
            .filter(|address| !by_tunnel(address))
            .cloned()
            .collect()
    }

    /// The port that this node listens at, once it does.
    pub fn listen_port(&self) -> Option<u16> {
        let port = |address: Multiaddr| {
            address.iter().find_map(|part| {
                if let Protocol::Udp(port) | Protocol::Tcp(port) = part {
                    Some(port)
                } else {
                    None
                }
            })
        };
        self.listen_addrs()
            .iter()
            .filter_map(|a| a.parse().ok())
            .find_map(port)
    }

    /// The multiaddresses, with `/p2p/`, that this node publishes, for an invite.
    pub fn contact_addrs(&self) -> Vec<String> {
        let peer = address::peer_of(self.shared.me);
        let contact = self.shared.door.contact();
        let addresses = contact
            .iter()
            .flat_map(|c| &c.addresses)
            .filter(|a| !a.contains("/p2p-circuit"));
        addresses
            .filter_map(|a| Some(format!("{a}/p2p/{}", peer?)))
            .collect()
    }

    /// Waits until the router has been asked for a port mapping, if it is to be asked:
    /// [`Control::contact_addrs`] then has the outside address. A router that does not answer takes
    /// a few seconds.
    pub async fn asked_router(&self) {
        if let Some(way_in) = &self.way_in {
            way_in.settled().await;
        }
    }

    /// Whether another site can be expected to reach this node at one of its published addresses.
    pub fn is_reachable(&self) -> bool {
        self.shared
            .door
            .contact()
            .is_some_and(|contact| contact.public)
    }

    /// The number of members, estimated by the last lookups; `None` in a small network, where all
    /// are known.
    pub fn size_estimate(&self) -> Option<f64> {
        let density = lock(&self.shared.density);
        density.members().filter(|_| self.shared.is_large())
    }

    /// The members known, by id: all of a small network, some of a large one.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.peers()
    }

    /// Whether the member has said that it leaves the network.
    pub fn has_left(&self, member: MemberId) -> bool {
        self.shared.has_left(member)
    }

    /// A member's certificate, if it has been seen.
    pub fn certificate(&self, member: MemberId) -> Option<Certificate> {
        if member == self.shared.me {
            Some(self.certificate.clone())
        } else {
            self.shared.certificate(member)
        }
    }

    /// A member's certificate; other members are asked for it if it has not been seen.
    pub async fn find_certificate(&self, member: MemberId) -> Option<Certificate> {
        if self.certificate(member).is_none() {
            self.shared.search(member).await;
        }
        self.certificate(member)
    }

    /// The issuer of invites and revocations, if this node may issue any.
    pub fn issuer(&self) -> Option<Issuer<'_>> {
        match &self.root {
            Some(root) => Some(Issuer::root(root)),
            None => self
                .certificate
                .rights()
                .admit
                .then(|| Issuer::delegate(self.identity.keys(), &self.certificate)),
        }
    }

    /// Revokes a member or an invite, here and, by gossip, everywhere. If no member has the revoked
    /// member's certificate, others judge when they see it.
    ///
    /// # Errors
    /// [`ControlError::NoRight`], [`ControlError::NoRightOverDelegates`] or
    /// [`ControlError::NoneLeft`]: the others would not heed it.
    pub async fn revoke(&self, target: Target) -> Result<(), ControlError> {
        let issuer = self.issuer().ok_or(ControlError::NoRight)?;
        if let Target::Member(member) = target
            && !issuer.is_root()
            && self
                .find_certificate(member)
                .await
                .is_some_and(|certificate| !issuer.may_expel(&certificate))
        {
            return Err(ControlError::NoRightOverDelegates(member));
        }
        if !issuer.is_root() && self.shared.door.trust.is_used_up(&self.shared.me) {
            return Err(ControlError::NoneLeft);
        }
        let revocation = Revocation::issue(
            &issuer,
            self.shared.door.network.id,
            target,
            UnixTime::now(),
        );
        self.shared
            .commands
            .send(Command::Revoke(Box::new(revocation)))
            .await
            .map_err(|_| ControlError::Ended)
    }

    /// Replaces the counter of invites' uses, for a counter that starts later than the host.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        self.shared.door.set_admission(admission);
    }

    /// Sets this node's neighbours on the ring, near and far: in a network beyond the full mesh its
    /// connections follow them. Replaces the previous ones; at most [`MAX_RING_NEIGHBOURS`] count.
    pub fn set_ring_neighbours(&self, mut neighbours: Vec<MemberId>) {
        neighbours.retain(|m| *m != self.shared.me);
        neighbours.truncate(MAX_RING_NEIGHBOURS);
        *write_lock(&self.shared.ring_neighbours) = neighbours;
    }

    /// Tells all connected members that this one leaves the network, so that they no longer list
    /// it.
    pub async fn farewell(&self) {
        let (told, contact) = oneshot::channel();
        if self
            .shared
            .commands
            .send(Command::Farewell(told))
            .await
            .is_err()
        {
            return;
        }
        let Ok(contact) = contact.await else { return };
        let Ok(body) = postcard::to_stdvec(&Gossip {
            contacts: vec![contact],
            revocations: Vec::new(),
        }) else {
            return;
        };
        let telling = self.shared.connected().into_iter().map(|member| {
            self.shared
                .call(member, GOSSIP_SERVICE, body.clone(), FAREWELL)
        });
        // A member that does not receive it gets it from the others.
        futures::future::join_all(telling).await;
    }

    /// Ends the host after writing the peer cache.
    pub async fn shutdown(&self) {
        if let Some(way_in) = &self.way_in {
            way_in.close().await;
        }
        let (done, ended) = oneshot::channel();
        if self
            .shared
            .commands
            .send(Command::Shutdown(done))
            .await
            .is_ok()
        {
            let _ = ended.await;
        }
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Its contact has no addresses yet, because they are not known.
fn door_of(config: &ControlConfig, issuer_key: Option<KeyPair>) -> Door {
    let certificate = config.certificate.clone();
    let contact = Contact::sign(&config.identity, certificate, Vec::new(), false, 0);
    Door::of_member(
        config.identity.clone(),
        config.network.clone(),
        config.trust.clone(),
        contact,
        issuer_key,
        config.admission.clone(),
    )
}

fn parse(addresses: &[String]) -> Vec<Multiaddr> {
    addresses.iter().filter_map(|a| a.parse().ok()).collect()
}

fn listen(
    swarm: &mut libp2p::Swarm<host::Host>,
    on: &[IpAddr],
    port: u16,
) -> Result<(), ControlError> {
    let (mut listening, mut failure) = (false, None);
    for ip in on {
        let at = Multiaddr::from(*ip);
        for address in [
            at.clone().with(Protocol::Udp(port)).with(Protocol::QuicV1),
            at.with(Protocol::Tcp(port)),
        ] {
            match swarm.listen_on(address) {
                Ok(_) => listening = true,
                // Hosts without IPv6 are common.
                Err(e) => failure = Some(e),
            }
        }
    }
    match failure {
        Some(failure) if !listening => Err(ControlError::Listen(port, failure.into())),
        _ => Ok(()),
    }
}

async fn serve(
    server: Arc<Server>,
    mut streams: mpsc::Receiver<(libp2p::PeerId, streams::RawStream)>,
) {
    while let Some((peer, carried)) = streams.recv().await {
        if let Some(member) = address::member_of(&peer) {
            server.begin(member, carried.stream, carried.token);
        }
    }
}

#[async_trait]
impl Fabric for Control {
    fn me(&self) -> MemberId {
        self.shared.me
    }

    fn connected(&self) -> Vec<MemberId> {
        self.shared.connected()
    }

    fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        if member == self.shared.me {
            Some(self.identity.link_key())
        } else {
            self.shared.link_key(member)
        }
    }

    fn rtt_of_open(&self, member: MemberId) -> Option<Duration> {
        self.shared.rtt_of_open(member)
    }

    fn roamed(&self) {
        let _ = self.shared.commands.try_send(Command::Roamed);
    }

    async fn sound(&self, member: MemberId) -> Life {
        let (told, life) = oneshot::channel();
        let asked = self
            .shared
            .commands
            .send(Command::Sound(member, Some(told)))
            .await;
        if asked.is_err() {
            Life::Silent
        } else {
            life.await.unwrap_or(Life::Silent)
        }
    }

    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError> {
        if self.shared.is_large() {
            self.shared.closest_by_lookup(place, n).await
        } else {
            Ok(self.nearby(place, n))
        }
    }

    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.shared.call(to, service, body, timeout).await
    }

    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>) {
        self.shared.set_handler(service, handler);
    }

    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError> {
        self.shared.open_stream(to, service).await
    }

    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        self.shared.set_acceptor(service)
    }
}

#[cfg(test)]
mod tests;
