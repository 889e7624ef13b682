//! Forwards questions that are not about the network: about another network of this machine to that
//! network's resolver, about anything else to the name servers that the host had before. The answer
//! is returned unchanged. For the host's own programs only: no open resolver for other members.
//!
//! The servers are asked in the host's order, the next one when one refuses, fails or is slow. A
//! server that does not answer counts as dead for a while, so that not every question waits for it:
//! it is asked along with the others until it answers. Servers of one host may know different names
//! (the first a company's own), so a later one's "no such name" counts only after the earlier ones
//! have had their time.
//!
//! Each question leaves from its own port (RFC 5452 §10), and an answer counts only from the server
//! that was asked, with the question's id and text. Equal questions are asked once at a time: a
//! program that asks us and is our server too causes no loop.

use super::wire::{self, Carrier};
use hickory_proto::rr::Name;
use p2pvm_host::names::{Forwarder, Neighbour};
use p2pvm_host::{lock, read_lock, write_lock};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

/// How long a question is asked.
/// Reason: programs wait 5 s (resolv.conf(5), `timeout`).
const LIMIT: Duration = Duration::from_millis(4500);
/// How long to wait for a server before the next one is asked too.
const STEP: Duration = Duration::from_millis(400);
/// How long to wait for a server before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a dead server rests before it is asked again.
const REST: Duration = Duration::from_secs(30);
/// How long to wait before a datagram is sent again.
/// Reason: it may be lost.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(900),
    Duration::from_millis(1600),
    Duration::from_secs(2),
];

type Answer = Option<Arc<Vec<u8>>>;
/// Equal for equal questions.
type Key = (Vec<u8>, Carrier);
/// Questions that are being asked, with the answer to come.
type RunningQuestions = HashMap<Key, watch::Receiver<Option<Answer>>>;
type Servers = Vec<SocketAddr>;

/// The servers for names outside the network, and which of them are dead. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    servers: RwLock<Vec<SocketAddr>>,
    neighbours: RwLock<Vec<Neighbour>>,
    /// Servers that did not answer, and when.
    dead: Mutex<HashMap<SocketAddr, Instant>>,
    /// Questions that are being asked.
    running: Mutex<RunningQuestions>,
    stuck: AtomicBool,
    /// When a server last answered, also that there is no such name.
    answered: Mutex<Option<std::time::Instant>>,
}

impl Forwarder for Upstream {
    fn lead(&self, servers: Vec<SocketAddr>, neighbours: Vec<Neighbour>) {
        *write_lock(&self.0.neighbours) = neighbours;
        self.set(servers);
    }

    fn is_stuck(&self) -> bool {
        self.0.stuck.load(Ordering::Relaxed)
    }

    fn answered(&self) -> Option<std::time::Instant> {
        *lock(&self.0.answered)
    }
}

/// The reply of one server.
enum ServerReply {
    /// An answer with records.
    Knows(Vec<u8>),
    /// There is nothing of that name or type.
    Nothing(Vec<u8>),
    /// It refuses or fails.
    Fails(Vec<u8>),
    /// It does not answer.
    Gone,
}

impl Upstream {
    /// Replaces the servers.
    pub fn set(&self, servers: Vec<SocketAddr>) {
        let mut current = write_lock(&self.0.servers);
        if *current != servers {
            // Another network: a server that was dead there may answer here.
            self.dead().clear();
            *current = servers;
        }
    }

    /// The servers.
    pub fn get(&self) -> Vec<SocketAddr> {
        read_lock(&self.0.servers).clone()
    }

    fn dead(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        lock(&self.0.dead)
    }

    /// The resolver of another network of this machine, if the name belongs to that network.
    fn neighbour(&self, name: &Name) -> Option<SocketAddr> {
        let address = name
            .parse_arpa_name()
            .ok()
            .map(|net| (net.addr(), net.prefix_len()));
        let neighbours = read_lock(&self.0.neighbours);
        let knows = |neighbour: &&Neighbour| {
            let zone = Name::from_ascii(&neighbour.domain).map(|mut zone| {
                zone.set_fqdn(true);
                zone
            });
            zone.is_ok_and(|zone| zone.zone_of(name))
                || address.is_some_and(|(ip, length)| {
                    neighbour
                        .subnets
                        .iter()
                        .any(|(first, bits)| length >= *bits && starts_alike(*first, ip, *bits))
                })
        };
        neighbours
            .iter()
            .find(knows)
            .map(|neighbour| neighbour.server)
    }

    /// The answer to a question about `name`; `None` if no server answers.
    pub(super) async fn ask(&self, name: &Name, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let key = (wire::question_key(query)?, carrier);
        let (sender, receiver) = watch::channel(None);
        let earlier = {
            let mut running = lock(&self.0.running);
            let earlier = running.get(&key).cloned();
            if earlier.is_none() {
                running.insert(key.clone(), receiver);
            }
            earlier
        };
        let answer = match earlier {
            // Its caller may be gone: then there is no answer.
            Some(mut earlier) => timeout(LIMIT, earlier.wait_for(Option::is_some))
                .await
                .ok()?
                .ok()?
                .clone()
                .flatten(),
            None => {
                let _asking = RunningQuestion {
                    shared: &self.0,
                    key,
                };
                let answer = self.ask_servers(name, query, carrier).await.map(Arc::new);
                sender.send_replace(Some(answer.clone()));
                answer
            }
        };
        wire::as_asked(answer?.as_ref().clone(), query)
    }

    async fn ask_servers(&self, name: &Name, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        if let Some(server) = self.neighbour(name) {
            return match ask_one(server, query, carrier).await {
                ServerReply::Knows(answer)
                | ServerReply::Nothing(answer)
                | ServerReply::Fails(answer) => Some(answer),
                ServerReply::Gone => None,
            };
        }
        let answer = self.ask_in_order(query, carrier).await;
        self.0.stuck.store(answer.is_none(), Ordering::Relaxed);
        if answer
            .as_ref()
            .is_some_and(|answer| matches!(wire::code(answer), 0 | 3))
        {
            *lock(&self.0.answered) = Some(std::time::Instant::now());
        }
        answer
    }

    /// The living servers in order; the resting ones; and those of the latter that are due.
    fn order(&self) -> (Servers, Servers, Servers) {
        let servers = self.get();
        let dead = self.dead();
        let (resting, alive): (Vec<_>, Vec<_>) = servers
            .into_iter()
            .partition(|server| dead.contains_key(server));
        let due = resting
            .iter()
            .filter(|server| {
                dead.get(server)
                    .is_some_and(|since| since.elapsed() >= REST)
            })
            .copied()
            .collect();
        (alive, resting, due)
    }

    async fn ask_in_order(&self, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let (alive, resting, due) = self.order();
        let began = Instant::now();
        let mut running = JoinSet::new();
        let ask =
            |running: &mut JoinSet<(usize, ServerReply)>, place: usize, server: SocketAddr| {
                let (upstream, query) = (self.clone(), query.to_vec());
                running.spawn(async move {
                    let reply = upstream.ask_and_note(server, &query, carrier).await;
                    (place, reply)
                });
            };
        // Nobody waits for these: a reply makes the server count as alive again.
        let mut aside = JoinSet::new();
        for server in due {
            ask(&mut aside, usize::MAX, server);
            self.dead().insert(server, Instant::now());
        }
        aside.detach_all();
        let mut next = alive.iter().chain(&resting).copied().enumerate();
        let mut round = Round::new(alive.len());
        let mut more = next.next();
        let mut step = began;
        loop {
            if let Some((place, server)) =
                more.filter(|_| Instant::now() >= step || round.pending.is_empty())
            {
                ask(&mut running, place, server);
                round.pending.push(place);
                more = next.next();
                step = Instant::now() + STEP;
            }
            if round.pending.is_empty() && more.is_none() {
                break;
            }
            let until = began + round.limit();
            let wake = more.map_or(until, |_| until.min(step));
            match tokio::time::timeout_at(wake, running.join_next()).await {
                Ok(Some(Ok((place, reply)))) => {
                    round.add(place, reply);
                    step = Instant::now();
                }
                Ok(_) => {}
                Err(_) if Instant::now() >= until => break,
                Err(_) => {}
            }
            if round.is_decided() {
                break;
            }
        }
        // They run until it is known whether the servers answer at all.
        running.detach_all();
        round.answer()
    }

    /// Asks one server and notes whether it answers at all.
    async fn ask_and_note(
        &self,
        server: SocketAddr,
        query: &[u8],
        carrier: Carrier,
    ) -> ServerReply {
        let asked = ask_one(server, query, carrier);
        tokio::pin!(asked);
        let said = match timeout(PATIENCE, &mut asked).await {
            Ok(said) => said,
            Err(_) => {
                self.dead().insert(server, Instant::now());
                timeout(LIMIT.saturating_sub(PATIENCE), asked)
                    .await
                    .unwrap_or(ServerReply::Gone)
            }
        };
        if !matches!(said, ServerReply::Gone) {
            self.dead().remove(&server);
        }
        said
    }
}

/// One question to servers in order: what they have replied so far.
struct Round {
    /// How many of the servers, the first ones, were alive at the beginning.
    alive: usize,
    /// The places of the servers that are being asked.
    pending: Vec<usize>,
    found: Option<Vec<u8>>,
    nothing: Option<(usize, Vec<u8>)>,
    failed: Option<Vec<u8>>,
}

impl Round {
    fn new(alive: usize) -> Self {
        Self {
            alive,
            pending: Vec::new(),
            found: None,
            nothing: None,
            failed: None,
        }
    }

    /// How long the servers have from the beginning: if one has replied that there is nothing, the
    /// others have only their first time to know better.
    fn limit(&self) -> Duration {
        if self.nothing.is_some() {
            PATIENCE
        } else {
            LIMIT
        }
    }

    fn add(&mut self, place: usize, reply: ServerReply) {
        self.pending.retain(|asked| *asked != place);
        match reply {
            ServerReply::Knows(answer) => self.found = Some(answer),
            ServerReply::Nothing(answer) => {
                if self
                    .nothing
                    .as_ref()
                    .is_none_or(|(earlier, _)| place < *earlier)
                {
                    self.nothing = Some((place, answer));
                }
            }
            ServerReply::Fails(answer) => self.failed = Some(answer),
            ServerReply::Gone => {}
        }
    }

    /// Whether an answer was found, or no living server before the one that knows nothing is left.
    fn is_decided(&self) -> bool {
        let Some((place, _)) = &self.nothing else {
            return self.found.is_some();
        };
        let first = self.alive.min(*place);
        self.found.is_some() || self.pending.iter().all(|asked| *asked >= first)
    }

    fn answer(self) -> Option<Vec<u8>> {
        let nothing = self.nothing.map(|(_, answer)| answer);
        self.found.or(nothing).or(self.failed)
    }
}

/// Removes a question from the running ones, however it ends.
struct RunningQuestion<'a> {
    shared: &'a Shared,
    key: Key,
}

impl Drop for RunningQuestion<'_> {
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.key);
    }
}

fn starts_alike(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits)
        }
        _ => false,
    }
}

async fn ask_one(server: SocketAddr, query: &[u8], carrier: Carrier) -> ServerReply {
    let asked = match carrier {
        Carrier::Udp => by_datagram(server, query).await,
        Carrier::Tcp => timeout(LIMIT, by_stream(server, query))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    match asked {
        Ok(answer) => match wire::code(&answer) {
            0 if wire::has_answers(&answer) || wire::is_cut(&answer) => ServerReply::Knows(answer),
            0 | 3 => ServerReply::Nothing(answer),
            _ => ServerReply::Fails(answer),
        },
        Err(_) => ServerReply::Gone,
    }
}

async fn by_datagram(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for pause in AGAIN {
        socket.send(query).await?;
        let end = Instant::now() + pause;
        while let Ok(received) = tokio::time::timeout_at(end, socket.recv(&mut buffer)).await {
            let length = received?;
            if wire::answers(&buffer[..length], query) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn by_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], query].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if wire::answers(&answer, query) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
