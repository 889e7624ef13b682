//! What the driver, the tasks of streams and the callers share: the services, the address book, who
//! is connected; and requests and streams over what the driver opens.

use super::{
    ControlEvent, PeerStatus,
    address::is_usable,
    book::Book,
    door::{Door, Household},
    find::Found,
    streams::{Carried, NoStream, Waiter},
    wire::{
        ADMIT_SERVICE, AdmitRequest, CONTACTS_SERVICE, Contact, GOSSIP_SERVICE, Gossip,
        MAX_REPLY_BYTES, NEAREST_SERVICE, PART_SERVICE, PROBE_SERVICE, Status, decode, invalid,
        read_bytes, read_header, write_bytes,
    },
};
use crate::{
    fabric::{BoxStream, FabricError, Life, MAX_BODY_BYTES, Serve},
    id::{MemberId, RingAddr},
    identity::LinkKey,
    lookup::{Density, NAMED},
    membership::{Certificate, Refusal, Revocation},
    underlay::Underlay,
};
use async_trait::async_trait;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, swarm::ConnectionId};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{broadcast, mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// A connection attempt, through relays if need be, takes this long at most.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// The opener of a stream says what it wants in this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const KIND_CALL: u8 = 0;
const KIND_STREAM: u8 = 1;

/// What the driver is asked to do.
pub enum Command {
    /// Open a raw stream, dialling if need be, and looking the member up if so said.
    Open {
        member: MemberId,
        waiter: Waiter,
        search: bool,
    },
    /// A search for a member's contact is over; whether it brought news.
    Searched(MemberId, bool),
    /// Take what a member said.
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
    /// Packets to a member are not answered: look whether its connection lives, and make another
    /// beside it if not.
    Sound(MemberId, Option<oneshot::Sender<Life>>),
    /// A connection to a member has answered such a question, or has not so far.
    Sounded(MemberId, ConnectionId, bool),
    /// This host has moved: look which connections still live and dial anew at once.
    Roamed,
    /// The router lets others in at `new`, and not at `old` any more.
    Mapped {
        old: Option<SocketAddr>,
        new: Option<SocketAddr>,
        /// Answered when members can be told.
        done: oneshot::Sender<()>,
    },
    /// This member leaves the network: its last contact, which says that it is to be found nowhere.
    Farewell(oneshot::Sender<Contact>),
    /// Say goodbye and end.
    Shutdown(oneshot::Sender<()>),
}

/// A member with at least one proved connection.
#[derive(Clone, Debug)]
pub struct Online {
    pub relayed: Option<MemberId>,
    pub rtt: Option<Duration>,
}

/// See the module.
pub struct Shared {
    pub me: MemberId,
    pub door: Arc<Door>,
    pub book: RwLock<Book>,
    pub online: RwLock<BTreeMap<MemberId, Online>>,
    /// Certificates of the connected, for those whose contact is yet to come.
    pub certificates: RwLock<HashMap<MemberId, Certificate>>,
    pub listening: RwLock<Vec<String>>,
    pub events: broadcast::Sender<ControlEvent>,
    pub commands: mpsc::Sender<Command>,
    /// Up to so many members everyone stays connected to everyone.
    pub full_mesh: usize,
    /// Which addresses lie behind tunnels of this machine.
    pub underlay: Underlay,
    /// Whom the ring wants connected, in a larger network.
    pub ring_neighbours: RwLock<Vec<MemberId>>,
    /// How far apart members lie, as lookups learn it.
    pub density: Mutex<Density>,
    /// What lookups have just found.
    pub found: Found,
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
            found: Found::default(),
            #[cfg(test)]
            made: std::sync::atomic::AtomicU64::new(0),
            handlers: RwLock::default(),
            acceptors: Mutex::default(),
        }
    }

    /// Whether an address may be told and dialled.
    pub fn is_usable(&self, address: &Multiaddr) -> bool {
        is_usable(address, &self.door.network, &self.underlay.view())
    }

    pub fn set_handler(&self, service: &'static str, handler: Arc<dyn Serve>) {
        self.handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(service, handler);
    }

    fn handler(&self, service: &str) -> Option<Arc<dyn Serve>> {
        self.handlers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(service)
            .cloned()
    }

    pub fn set_acceptor(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        let (sender, receiver) = mpsc::channel(64);
        self.acceptors().insert(service, sender);
        receiver
    }

    fn acceptors(
        &self,
    ) -> MutexGuard<'_, HashMap<&'static str, mpsc::Sender<(MemberId, BoxStream)>>> {
        self.acceptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn connected(&self) -> Vec<MemberId> {
        self.online
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }

    pub fn certificate(&self, member: MemberId) -> Option<Certificate> {
        let connected = self
            .certificates
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&member)
            .cloned();
        connected.or_else(|| {
            self.book
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(member)
                .map(|c| c.certificate.clone())
        })
    }

    pub fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        self.certificate(member).map(|c| c.link_key())
    }

    pub fn peers(&self) -> Vec<PeerStatus> {
        let online = self
            .online
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        // Who has left says so in its last contact; it stays in the book so that no older one takes
        // its place.
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
            name: self
                .certificates
                .read()
                .unwrap_or_else(PoisonError::into_inner)
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

    /// The round trip to a member that says it is public and that this node has a direct connection
    /// with.
    pub fn rtt_of_open(&self, member: MemberId) -> Option<Duration> {
        let public = self
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(member)
            .is_some_and(|contact| contact.public);
        let online = self.online.read().unwrap_or_else(PoisonError::into_inner);
        online
            .get(&member)
            .filter(|o| public && o.relayed.is_none())?
            .rtt
    }

    /// Whether the network has more members than keep a full mesh.
    pub fn is_large(&self) -> bool {
        self.book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
            >= self.full_mesh
    }

    /// The members known that are nearest to `place`, with the `seq` of their contacts.
    fn nearest_known(&self, place: RingAddr) -> Vec<(MemberId, u64)> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        book.nearest(&place, NAMED)
            .into_iter()
            .map(|c| (c.member(), c.seq))
            .collect()
    }

    fn contacts_of(&self, members: &[MemberId]) -> Vec<Contact> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        members
            .iter()
            .take(NAMED)
            .filter_map(|m| book.get(*m).cloned())
            .collect()
    }

    async fn open_once(
        &self,
        member: MemberId,
        search: bool,
    ) -> Result<Result<Carried, NoStream>, FabricError> {
        let (waiter, answer) = oneshot::channel();
        self.commands
            .send(Command::Open {
                member,
                waiter,
                search,
            })
            .await
            .map_err(|_| FabricError::Closed)?;
        match tokio::time::timeout(OPEN_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) if self.commands.is_closed() => Err(FabricError::Closed),
            // The connection ended between the asking and the opening.
            Ok(Err(_)) => Ok(Err(NoStream::Broken)),
            Err(_) => Err(FabricError::Unreachable(member)),
        }
    }

    async fn open(&self, to: MemberId, search: bool) -> Result<Carried, FabricError> {
        // A connection found broken at the first use is replaced once; nothing has been sent on it.
        for _ in 0..2 {
            match self.open_once(to, search).await? {
                Ok(carried) => return Ok(carried),
                Err(NoStream::Unreachable) => break,
                Err(NoStream::Broken | NoStream::Unsupported) => {}
            }
        }
        Err(FabricError::Unreachable(to))
    }

    /// Sends a request and waits for the answer.
    pub async fn call(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.exchange(to, service, body, timeout, true).await
    }

    /// The same with a member whose contact is known: what a lookup asks must not begin another
    /// lookup.
    pub async fn call_known(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.exchange(to, service, body, timeout, false).await
    }

    async fn exchange(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
        search: bool,
    ) -> Result<Vec<u8>, FabricError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(FabricError::TooLarge(body.len()));
        }
        let exchange = async {
            if to == self.me {
                return match self.handler(service) {
                    Some(handler) => handler
                        .serve(to, body)
                        .await
                        .map_err(|reason| FabricError::Refused(to, reason)),
                    None => Err(FabricError::NoSuchService(to, service.to_owned())),
                };
            }
            let mut carried = self.open(to, search).await?;
            let (status, answer) = request(&mut carried, service, &body).await.map_err(|e| {
                tracing::debug!(peer = ?to, service, "a request broke off: {e}");
                FabricError::Unreachable(to)
            })?;
            match status {
                Status::Ok => Ok(answer),
                Status::Refused => Err(FabricError::Refused(
                    to,
                    String::from_utf8_lossy(&answer).into_owned(),
                )),
                Status::NoSuchService => Err(FabricError::NoSuchService(to, service.to_owned())),
            }
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, timeout)))
    }

    /// Opens a byte stream to an acceptor.
    pub async fn open_stream(&self, to: MemberId, service: &str) -> Result<BoxStream, FabricError> {
        if to == self.me {
            let (here, there) = tokio::io::duplex(256 << 10);
            return match self.accept(service, to, Box::new(there)).await {
                true => Ok(Box::new(here)),
                false => Err(FabricError::NoSuchService(to, service.to_owned())),
            };
        }
        let opening = async {
            let Carried { mut stream, token } = self.open(to, true).await?;
            let broken = |_: io::Error| FabricError::Unreachable(to);
            stream
                .write_all(&header(KIND_STREAM, service))
                .await
                .map_err(broken)?;
            stream.flush().await.map_err(broken)?;
            let mut status = [0];
            stream.read_exact(&mut status).await.map_err(broken)?;
            match Status::from_byte(status[0]).map_err(broken)? {
                Status::Ok => Ok(Box::new(Tracked {
                    stream: stream.compat(),
                    _token: token,
                }) as BoxStream),
                _ => Err(FabricError::NoSuchService(to, service.to_owned())),
            }
        };
        tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, OPEN_TIMEOUT)))
    }

    async fn accept(&self, service: &str, from: MemberId, stream: BoxStream) -> bool {
        let acceptor = self.acceptors().get(service).cloned();
        match acceptor {
            Some(acceptor) => acceptor.send((from, stream)).await.is_ok(),
            None => false,
        }
    }

    /// Serves one stream that a member opened.
    pub async fn serve_stream(&self, from: MemberId, carried: Carried) -> io::Result<()> {
        // A connection outlives the news of its member's revocation by a moment: nothing is served
        // in it.
        if self
            .certificate(from)
            .is_none_or(|c| self.door.trust.verify(&c).is_err())
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let Carried { mut stream, token } = carried;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let (kind, service) = tokio::time::timeout(HEADER_TIMEOUT, read_header(&mut stream))
            .await
            .map_err(late)??;
        match kind {
            KIND_CALL => {
                let body = read_bytes(&mut stream, MAX_BODY_BYTES).await?;
                let (status, answer) = match self.answer(from, &service, body).await {
                    None => (Status::NoSuchService, Vec::new()),
                    Some(Ok(answer)) if answer.len() <= MAX_BODY_BYTES => (Status::Ok, answer),
                    Some(Ok(answer)) => (
                        Status::Refused,
                        format!("the answer of {} bytes is too large", answer.len()).into_bytes(),
                    ),
                    Some(Err(reason)) => (Status::Refused, reason.into_bytes()),
                };
                stream.write_all(&[status as u8]).await?;
                write_bytes(&mut stream, &answer).await?;
                stream.close().await
            }
            KIND_STREAM => {
                let open = self
                    .acceptors()
                    .get(service.as_str())
                    .is_some_and(|a| !a.is_closed());
                let status = if open {
                    Status::Ok
                } else {
                    Status::NoSuchService
                };
                stream.write_all(&[status as u8]).await?;
                stream.flush().await?;
                if open {
                    self.accept(
                        &service,
                        from,
                        Box::new(Tracked {
                            stream: stream.compat(),
                            _token: token,
                        }),
                    )
                    .await;
                } else {
                    stream.close().await?;
                }
                Ok(())
            }
            _ => Err(invalid("unknown kind of stream")),
        }
    }

    async fn answer(
        &self,
        from: MemberId,
        service: &str,
        body: Vec<u8>,
    ) -> Option<Result<Vec<u8>, String>> {
        let unreadable = |e: io::Error| e.to_string();
        match service {
            GOSSIP_SERVICE => Some(match decode(&body) {
                Ok(gossip) => self
                    .commands
                    .send(Command::Gossip(from, gossip))
                    .await
                    .map(|()| Vec::new())
                    .map_err(|e| e.to_string()),
                Err(e) => Err(unreadable(e)),
            }),
            ADMIT_SERVICE => Some(match decode::<(MemberId, AdmitRequest)>(&body) {
                Ok((joiner, request)) => {
                    let decision = self.door.certify(joiner, &request).await;
                    postcard::to_stdvec(&decision).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            NEAREST_SERVICE => Some(match decode::<RingAddr>(&body) {
                Ok(place) => {
                    postcard::to_stdvec(&self.nearest_known(place)).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            CONTACTS_SERVICE => Some(match decode::<Vec<MemberId>>(&body) {
                Ok(members) => {
                    postcard::to_stdvec(&self.contacts_of(&members)).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            PART_SERVICE => {
                let (sender, agreed) = oneshot::channel();
                let asked = self.commands.send(Command::Part(from, sender)).await;
                Some(match (asked, agreed.await) {
                    (Ok(()), Ok(true)) => Ok(Vec::new()),
                    _ => Err("the connection is still needed".into()),
                })
            }
            PROBE_SERVICE => Some(Ok(Vec::new())),
            _ => Some(self.handler(service)?.serve(from, body).await),
        }
    }
}

#[async_trait]
impl Household for Shared {
    fn contacts(&self, newcomer: MemberId) -> Vec<Contact> {
        self.book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .to_tell(&newcomer.ring_addr())
    }

    fn contacts_digest(&self) -> ([u8; 32], u32) {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        (book.digest(), book.len() as u32)
    }

    async fn pass_on(
        &self,
        joiner: MemberId,
        request: &AdmitRequest,
    ) -> Result<Certificate, Refusal> {
        let body = postcard::to_stdvec(&(joiner, request))
            .map_err(|e| Refusal::Undecided(e.to_string()))?;
        let may_admit = |m: &MemberId| self.certificate(*m).is_some_and(|c| c.rights().admit);
        let mut verdict = Refusal::CannotAdmit;
        let mut issuers = self.connected();
        if self.is_large() {
            // There an issuer may be known and not connected.
            let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
            let others: Vec<MemberId> = book
                .iter()
                .map(Contact::member)
                .filter(|m| *m != self.me && !issuers.contains(m))
                .collect();
            issuers.extend(others);
        }
        for issuer in issuers.into_iter().filter(may_admit) {
            match self
                .call(issuer, ADMIT_SERVICE, body.clone(), Duration::from_secs(6))
                .await
            {
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

fn header(kind: u8, service: &str) -> Vec<u8> {
    // Names of services are short constants of ours.
    let name = &service.as_bytes()[..service.len().min(255)];
    [&[kind, name.len() as u8], name].concat()
}

async fn request(
    carried: &mut Carried,
    service: &str,
    body: &[u8],
) -> io::Result<(Status, Vec<u8>)> {
    let stream = &mut carried.stream;
    stream.write_all(&header(KIND_CALL, service)).await?;
    write_bytes(stream, body).await?;
    let mut status = [0];
    stream.read_exact(&mut status).await?;
    let answer = read_bytes(stream, MAX_BODY_BYTES.max(MAX_REPLY_BYTES)).await?;
    Ok((Status::from_byte(status[0])?, answer))
}

/// A stream that keeps its connection from being closed as superfluous.
struct Tracked {
    stream: Compat<libp2p::Stream>,
    _token: Arc<()>,
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
