//! The state that the driver, the streams' tasks and the callers share: the services, the address
//! book, the connected members.

use super::{
    ControlEvent, PeerStatus,
    address::is_usable,
    admit::JoinRequest,
    book::Book,
    door::{Door, DoorBackend},
    find::LookupCache,
    streams::Waiter,
    wire::{ADMIT_SERVICE, ADMIT_SIGNED_SERVICE, Contact, Gossip, decode},
};
use crate::{
    fabric::{BoxStream, FabricError, Life, Serve},
    id::{MemberId, RingAddr},
    identity::LinkKey,
    lookup::{Density, NAMED},
    membership::{Certificate, Refusal, Revocation},
    underlay::Underlay,
};
use crate::{lock, read_lock, write_lock};
use async_trait::async_trait;
use libp2p::{Multiaddr, swarm::ConnectionId};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, RwLock},
    time::Duration,
};
use tokio::sync::{broadcast, mpsc, oneshot};

/// How long a member that may admit may take to decide on a request passed on to it.
const ISSUER_TIMEOUT: Duration = Duration::from_secs(6);

/// A command for the driver.
pub enum Command {
    /// Open a raw stream, dialling if needed, and looking the member up if requested.
    Open {
        member: MemberId,
        waiter: Waiter,
        search: bool,
    },
    /// A search for a member's contact is over; whether it brought news.
    Searched(MemberId, bool),
    /// Take a member's gossip.
    Gossip(MemberId, Gossip),
    /// Take a revocation that this node signed.
    Revoke(Box<Revocation>),
    /// A member asks whether its connection may end, or has agreed that one made here does.
    Part(MemberId, oneshot::Sender<bool>),
    Parted(MemberId),
    /// A probe found a member dead: close its connections.
    Dead(MemberId),
    /// A probe found this connection to a member dead.
    DeadLink(ConnectionId),
    /// Packets to a member are not answered: ask its connection for a sign of life, and make
    /// another beside it if none comes.
    Sound(MemberId, Option<oneshot::Sender<Life>>),
    /// A connection to a member has shown life, or has not so far.
    Sounded(MemberId, ConnectionId, bool),
    /// This host has moved: find out which connections still live, and dial again at once.
    Roamed,
    /// The router maps the port to `new`, and no longer to `old`.
    Mapped {
        old: Option<SocketAddr>,
        new: Option<SocketAddr>,
        /// The answer comes when members can be told.
        done: oneshot::Sender<()>,
    },
    /// This member leaves the network: its last contact has no addresses.
    Farewell(oneshot::Sender<Contact>),
    /// Close all connections and end.
    Shutdown(oneshot::Sender<()>),
}

/// A member with at least one proved connection.
#[derive(Clone, Debug)]
pub struct Online {
    pub relayed: Option<MemberId>,
    pub rtt: Option<Duration>,
}

pub struct Shared {
    pub me: MemberId,
    pub door: Arc<Door>,
    pub book: RwLock<Book>,
    pub online: RwLock<BTreeMap<MemberId, Online>>,
    /// Certificates of connected members whose contact has not come yet.
    pub certificates: RwLock<HashMap<MemberId, Certificate>>,
    pub listening: RwLock<Vec<String>>,
    pub events: broadcast::Sender<ControlEvent>,
    pub commands: mpsc::Sender<Command>,
    /// How many members the network has before not every member stays connected to every other.
    pub full_mesh: usize,
    /// The addresses behind tunnels of this machine.
    pub underlay: Underlay,
    /// The members that the ring wants connected in a larger network.
    pub ring_neighbours: RwLock<Vec<MemberId>>,
    /// The density of members, as lookups learn it.
    pub density: Mutex<Density>,
    /// The results of recent lookups.
    pub found: LookupCache,
    /// Connections that have been established since the start.
    #[cfg(test)]
    pub made: std::sync::atomic::AtomicU64,
    handlers: RwLock<HashMap<&'static str, Arc<dyn Serve>>>,
    acceptors: Mutex<HashMap<&'static str, mpsc::Sender<(MemberId, BoxStream)>>>,
}

impl Shared {
    pub fn new(
        me: MemberId,
        door: Arc<Door>,
        book: Book,
        commands: mpsc::Sender<Command>,
        full_mesh: usize,
        underlay: Underlay,
    ) -> Self {
        Self {
            me,
            door,
            book: RwLock::new(book),
            online: RwLock::default(),
            certificates: RwLock::default(),
            listening: RwLock::default(),
            events: broadcast::channel(256).0,
            commands,
            full_mesh,
            underlay,
            ring_neighbours: RwLock::default(),
            density: Mutex::default(),
            found: LookupCache::default(),
            #[cfg(test)]
            made: std::sync::atomic::AtomicU64::new(0),
            handlers: RwLock::default(),
            acceptors: Mutex::default(),
        }
    }

    /// Whether an address may be published and dialled.
    pub fn is_usable(&self, address: &Multiaddr) -> bool {
        is_usable(address, &self.door.network, &self.underlay.view())
    }

    pub fn set_handler(&self, service: &'static str, handler: Arc<dyn Serve>) {
        write_lock(&self.handlers).insert(service, handler);
    }

    pub(super) fn handler(&self, service: &str) -> Option<Arc<dyn Serve>> {
        read_lock(&self.handlers).get(service).cloned()
    }

    pub fn set_acceptor(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        let (sender, receiver) = mpsc::channel(64);
        self.acceptors().insert(service, sender);
        receiver
    }

    pub(super) fn acceptors(
        &self,
    ) -> MutexGuard<'_, HashMap<&'static str, mpsc::Sender<(MemberId, BoxStream)>>> {
        lock(&self.acceptors)
    }

    pub fn connected(&self) -> Vec<MemberId> {
        read_lock(&self.online).keys().copied().collect()
    }

    pub fn certificate(&self, member: MemberId) -> Option<Certificate> {
        let connected = read_lock(&self.certificates).get(&member).cloned();
        connected.or_else(|| {
            read_lock(&self.book)
                .get(member)
                .map(|c| c.certificate.clone())
        })
    }

    pub fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        self.certificate(member).map(|c| c.link_key())
    }

    /// Whether the member's last contact says that it leaves the network.
    pub fn has_left(&self, member: MemberId) -> bool {
        let book = read_lock(&self.book);
        book.get(member).is_some_and(Contact::is_farewell)
    }

    pub fn peers(&self) -> Vec<PeerStatus> {
        let online = read_lock(&self.online).clone();
        let book = read_lock(&self.book);
        // The last contact of a member that has left stays in the book, so that no older one
        // replaces it.
        let there = book
            .iter()
            .filter(|contact| !contact.is_farewell())
            .map(Contact::member);
        let mut members: Vec<MemberId> = there
            .chain(online.keys().copied())
            .filter(|m| *m != self.me)
            .collect();
        members.sort_unstable();
        members.dedup();
        let status = |member: MemberId| PeerStatus {
            member,
            name: read_lock(&self.certificates)
                .get(&member)
                .or_else(|| book.get(member).map(|c| &c.certificate))
                .map(|c| c.name().to_owned())
                .unwrap_or_default(),
            connected: online.contains_key(&member),
            addresses: book
                .get(member)
                .map(|c| c.addresses.clone())
                .unwrap_or_default(),
            relayed: online.get(&member).and_then(|o| o.relayed),
            rtt: online.get(&member).and_then(|o| o.rtt),
        };
        members.into_iter().map(status).collect()
    }

    /// The round trip to a member that says it is public and that this node is directly connected
    /// to.
    pub fn rtt_of_open(&self, member: MemberId) -> Option<Duration> {
        let public = read_lock(&self.book)
            .get(member)
            .is_some_and(|contact| contact.public);
        let online = read_lock(&self.online);
        online
            .get(&member)
            .filter(|o| public && o.relayed.is_none())?
            .rtt
    }

    /// Whether the network has more members than keep a full mesh.
    pub fn is_large(&self) -> bool {
        read_lock(&self.book).len() >= self.full_mesh
    }

    /// The members known that are nearest to `place`, with the `seq` of their contacts.
    pub(super) fn nearest_known(&self, place: RingAddr) -> Vec<(MemberId, u64)> {
        let book = read_lock(&self.book);
        book.nearest(&place, NAMED)
            .into_iter()
            .map(|c| (c.member(), c.seq))
            .collect()
    }

    pub(super) fn contacts_of(&self, members: &[MemberId]) -> Vec<Contact> {
        let book = read_lock(&self.book);
        members
            .iter()
            .take(NAMED)
            .filter_map(|m| book.get(*m).cloned())
            .collect()
    }
}

impl Shared {
    /// Asks a member that may admit; one of the first release reads unsigned requests only.
    async fn ask_issuer(
        &self,
        issuer: MemberId,
        joiner: MemberId,
        asked: &JoinRequest,
    ) -> Result<Vec<u8>, FabricError> {
        let encode = |bytes: postcard::Result<Vec<u8>>| {
            bytes.map_err(|e| FabricError::Refused(issuer, e.to_string()))
        };
        if let JoinRequest::Signed(signed) = asked {
            let body = encode(postcard::to_stdvec(&(joiner, signed)))?;
            let answer = self
                .call(issuer, ADMIT_SIGNED_SERVICE, body, ISSUER_TIMEOUT)
                .await;
            if !matches!(answer, Err(FabricError::NoSuchService(..))) {
                return answer;
            }
        }
        let body = encode(postcard::to_stdvec(&(joiner, asked.request())))?;
        self.call(issuer, ADMIT_SERVICE, body, ISSUER_TIMEOUT).await
    }
}

#[async_trait]
impl DoorBackend for Shared {
    fn contacts(&self, newcomer: MemberId) -> Vec<Contact> {
        read_lock(&self.book).to_tell(&newcomer.ring_addr())
    }

    fn contacts_digest(&self) -> ([u8; 32], u32) {
        let book = read_lock(&self.book);
        (book.digest(), book.len() as u32)
    }

    async fn pass_on(
        &self,
        joiner: MemberId,
        request: &JoinRequest,
    ) -> Result<Certificate, Refusal> {
        let may_admit = |m: &MemberId| self.certificate(*m).is_some_and(|c| c.rights().admit);
        let mut verdict = Refusal::CannotAdmit;
        let mut issuers = self.connected();
        if self.is_large() {
            // In a large network an issuer may be known and not connected.
            let book = read_lock(&self.book);
            let others: Vec<MemberId> = book
                .iter()
                .map(Contact::member)
                .filter(|m| *m != self.me && !issuers.contains(m))
                .collect();
            issuers.extend(others);
        }
        for issuer in issuers.into_iter().filter(may_admit) {
            match self.ask_issuer(issuer, joiner, request).await {
                Ok(answer) => match decode::<Result<Certificate, Refusal>>(&answer) {
                    Ok(Err(Refusal::CannotAdmit)) | Err(_) => {}
                    Ok(decided) => return decided,
                },
                Err(e) => verdict = Refusal::Undecided(e.to_string()),
            }
        }
        Err(verdict)
    }
}
