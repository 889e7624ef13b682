//! Gets a link up to a member when the first packet or ping wants one, and keeps it on the best
//! path.
//!
//! One call over the control plane carries both sides' addresses and the whole handshake, so that
//! after one round trip the session stands and sealed probes go to all addresses at once from both
//! sides (simultaneous open; ICE's idea, RFC 8445, with the handshake folded in). Where no direct
//! path answers in time, a member that both can reach passes the sealed datagrams on; where UDP
//! does not get through at all, they go over a stream of the control plane. What is not direct is
//! tried again directly: less often after a while, but within half a minute for as long as the link
//! is used, and at once when there is news.
//!
//! To a member with no control connection the same exchange goes over the ring (`over_ring`), which
//! is then the first path: the first packet leaves after one round trip over the ring, while
//! everything else is still being tried.

mod dial;
mod escape;
mod examine;
mod mapping;
pub mod message;
mod mobility;
mod nat;
mod netcheck;
mod over_ring;
mod punches;
mod relays;
mod retries;
mod silence;
mod stream;
mod turns;

pub use message::{Candidate, CandidateKind, NatKind};
pub(crate) use nat::is_private;
pub use netcheck::{NetCheck, Reachable};
pub use over_ring::Papers;
pub use punches::{Punch, Punches};

use crate::{
    coordinates::Coordinate,
    fabric::{Fabric, Serve},
    id::MemberId,
    membership::Certificate,
    plane::{Error, Path, Plane, RelayOffer},
    portmap,
    ring::{Header, Position},
    ring_net::{Answers, RingNet},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use message::{Answer, MAX_CANDIDATES, MAX_NEIGHBOURS, Request, Whereabouts};
use over_ring::OverRing;
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// The fabric service of connectors.
pub const SERVICE: &str = "link";
/// The fabric service whose streams carry datagrams where UDP does not.
pub const STREAM_SERVICE: &str = "link-stream";
/// A router that has not taken a mapping back by then keeps it until it runs out.
const CLOSE_LIMIT: Duration = Duration::from_millis(1500);
/// A punch to a member without a link is over after this; the next one counts anew.
const PUNCH_LIFE: Duration = Duration::from_secs(60);
/// A NAT that counts has given its ports to others after this.
const COUNTER_LIFE: Duration = Duration::from_secs(5);
/// Links made at once.
const MAX_DIALS: usize = 32;

/// What a connector may use.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Ask members by STUN for our address.
    pub stun: bool,
    /// Ask the router for a port mapping by PCP, NAT-PMP or UPnP.
    pub upnp: bool,
    /// Where others reach this node's plane, as a person who made the router forward its port says.
    pub outside: Option<SocketAddr>,
    /// What this node passes on for others.
    pub relay: RelayOffer,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            stun: true,
            upnp: true,
            outside: None,
            relay: RelayOffer::default(),
        }
    }
}

#[derive(Default)]
struct State {
    nat: NatKind,
    reflexive: Option<SocketAddr>,
    /// What it was before that.
    reflexive_before: Option<SocketAddr>,
    mapped: Option<SocketAddr>,
    mapped_by: Option<portmap::Protocol>,
    /// The newest mapping, also where it is held no more: what came through it goes on through it.
    mapped_last: Option<SocketAddr>,
    /// What stands before our IPv6 addresses.
    nat6: NatKind,
    /// What a closer look at the NAT showed, at which outside address, and when; the same for IPv6.
    finding: examine::Finding,
    found: Option<(SocketAddr, Instant)>,
    finding6: examine::Finding,
    found6: Option<(SocketAddr, Instant)>,
    /// Whether it is known if the NAT gives each destination another mapping.
    mapping_known: bool,
    /// Who helped with it.
    helper: Option<(MemberId, SocketAddr)>,
    written: examine::Written,
    punches: punches::Log,
    /// What members said of themselves, and when.
    known: HashMap<MemberId, (Instant, Whereabouts)>,
    /// What of that was left out, as it lies in another network of this machine.
    hidden: HashMap<MemberId, IpAddr>,
    /// When to try a better path next.
    retries: retries::Retries,
    /// Members that are written to from the second port, where their addresses are public.
    aside: HashSet<MemberId>,
    /// The second port as others see it, and when that was looked at.
    reflexive_aside: Option<(SocketAddr, Instant)>,
    /// What leaves the first port is lost, whoever it is for, and what leaves the second is not.
    first_port_dead: bool,
    /// Members that would not relay, and when they said so.
    refused: HashMap<MemberId, Instant>,
}

impl State {
    /// Whether `addr` is a port that the router lets everybody through to us, asked by us or told
    /// by a person. Who sees us there wrote to us there, or the router says so to all: it shows
    /// nothing of how the NAT maps and filters otherwise.
    fn is_let_through(&self, options: &ConnectOptions, addr: SocketAddr) -> bool {
        [self.mapped_last, options.outside].contains(&Some(addr))
    }
}

pub(crate) struct Shared {
    plane: Plane,
    fabric: Arc<dyn Fabric>,
    options: ConnectOptions,
    state: Mutex<State>,
    turns: turns::Turns,
    ring: Option<OverRing>,
    learned: tokio::sync::Notify,
    /// Rings when the node is to let go of its port mapping, and when it has.
    closing: tokio::sync::Notify,
    closed: tokio::sync::Notify,
    /// Ports that are open for other members' STUN requests.
    ports: Arc<tokio::sync::Semaphore>,
    /// This host has moved: what others see of it is another.
    learn_again: tokio::sync::Notify,
    /// A member whose link stood makes it anew: something between the two has changed.
    doubted: tokio::sync::Notify,
}

/// Makes and keeps links; dropping it stops that (links that stand live on).
pub struct Connector {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Handler(Weak<Shared>);

#[async_trait]
impl Serve for Handler {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let shared = self.0.upgrade().ok_or("shutting down")?;
        let request = message::decode(&body).ok_or("not a request of this version")?;
        shared
            .answer(from, request)
            .await
            .map(|answer| message::encode(&answer))
    }
}

struct RingCalls(Weak<Shared>);

impl Answers for RingCalls {
    fn answer(&self, asked: &Header, body: &[u8]) -> BoxFuture<'static, Option<Vec<u8>>> {
        let (shared, asked, body) = (self.0.upgrade(), *asked, body.to_vec());
        Box::pin(async move {
            let shared = shared?;
            over_ring::answer(&shared, shared.ring.as_ref()?, &asked, &body).await
        })
    }
}

impl Connector {
    /// Serves other members' connectors and looks after the plane's wishes. Must be called within a
    /// tokio runtime.
    pub fn start(plane: Plane, fabric: Arc<dyn Fabric>, options: ConnectOptions) -> Arc<Self> {
        Self::begin(plane, fabric, options, None)
    }

    /// As [`Connector::start`], and meets members over the ring too, showing these papers.
    pub fn start_with_ring(
        plane: Plane,
        fabric: Arc<dyn Fabric>,
        options: ConnectOptions,
        ring: Arc<RingNet>,
        papers: Papers,
    ) -> Arc<Self> {
        Self::begin(plane, fabric, options, Some(OverRing::new(ring, papers)))
    }

    fn begin(
        plane: Plane,
        fabric: Arc<dyn Fabric>,
        options: ConnectOptions,
        ring: Option<OverRing>,
    ) -> Arc<Self> {
        plane.set_relay(options.relay);
        let shared = Arc::new(Shared {
            plane,
            fabric,
            options,
            state: Mutex::default(),
            turns: turns::Turns::default(),
            ring,
            learned: tokio::sync::Notify::new(),
            closing: tokio::sync::Notify::new(),
            closed: tokio::sync::Notify::new(),
            ports: Arc::new(tokio::sync::Semaphore::new(examine::MAX_PORTS)),
            learn_again: tokio::sync::Notify::new(),
            doubted: tokio::sync::Notify::new(),
        });
        shared
            .fabric
            .serve(SERVICE, Arc::new(Handler(Arc::downgrade(&shared))));
        if let Some(ring) = &shared.ring {
            ring.net.serve(Arc::new(RingCalls(Arc::downgrade(&shared))));
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(dial::wishes(shared.clone()));
        tasks.spawn(dial::improve(shared.clone()));
        tasks.spawn(relays::tend(shared.clone()));
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

    /// As [`Connector::ensure`], for a path that does not itself rest on the ring. `via`: where
    /// nothing else leads to the member, it is called over the ring through this neighbour.
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
        self.shared.state().reflexive
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

    /// What stands between us and the others.
    pub fn nat_kind(&self) -> NatKind {
        self.shared.state().nat
    }

    /// What became of tries to reach members directly.
    pub fn punches(&self) -> Punches {
        self.shared.note_punches();
        self.shared.state().punches.summary()
    }

    /// Where a member, or this node, stands by round trips: as the ring's neighbour says, or as it
    /// said when it was last met.
    pub fn coordinate(&self, member: MemberId) -> Option<Coordinate> {
        if member == self.shared.fabric.me() {
            self.shared.here()
        } else {
            self.shared.places(&[member])[0]
        }
    }

    /// Takes the port mapping back from the router, which otherwise keeps it until it runs out. To
    /// be called at the end.
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let local = self.plane.local_addresses().into_iter();
        let local = local.map(|ip| Candidate {
            kind: CandidateKind::Local,
            addr: SocketAddr::new(ip, self.plane.udp_port()),
        });
        let state = self.state();
        let aside = state
            .reflexive_aside
            .filter(|(_, at)| self.plane.is_second_port_used() && at.elapsed() < escape::LOOK_LIFE);
        let reflexive = state
            .reflexive
            .into_iter()
            .chain(aside.map(|(addr, _)| addr));
        let reflexive = reflexive.map(|addr| Candidate {
            kind: CandidateKind::Reflexive,
            addr,
        });
        let mapped = state.mapped.or(self.options.outside).map(|addr| Candidate {
            kind: CandidateKind::Mapped,
            addr,
        });
        let newest = state
            .finding
            .newest
            .filter(|(_, at)| state.nat == NatKind::Counting && at.elapsed() < COUNTER_LIFE);
        let guesses = newest
            .into_iter()
            .flat_map(|(newest, _)| examine::guesses(newest));
        let guesses = guesses.map(|addr| Candidate {
            kind: CandidateKind::Predicted,
            addr,
        });
        mapped
            .into_iter()
            .chain(reflexive)
            .chain(guesses)
            .chain(local)
            .take(MAX_CANDIDATES)
            .collect()
    }

    /// What we tell others of ourselves.
    fn whereabouts(&self) -> Whereabouts {
        let direct: HashMap<MemberId, u32> = self.direct_neighbours();
        let mut neighbours: Vec<_> = self
            .fabric
            .connected()
            .into_iter()
            .map(|m| (m, direct.get(&m).copied()))
            .collect();
        neighbours.sort_by_key(|(_, rtt)| rtt.unwrap_or(u32::MAX));
        neighbours.truncate(MAX_NEIGHBOURS);
        let (nat, relay) = (self.state().nat, self.plane.is_willing_to_relay());
        Whereabouts {
            candidates: self.candidates(),
            nat,
            neighbours,
            relay,
            coordinate: self.here(),
        }
    }

    /// Where we stand by round trips, as soon as that says anything.
    fn here(&self) -> Option<Coordinate> {
        let status = self.ring.as_ref()?.net.status()?;
        Some(status.coordinate).filter(Coordinate::is_known)
    }

    /// Where these members stand.
    fn places(&self, members: &[MemberId]) -> Vec<Option<Coordinate>> {
        let status = self.ring.as_ref().and_then(|ring| ring.net.status());
        let neighbour = |m: &MemberId| {
            status
                .as_ref()?
                .neighbours
                .iter()
                .find(|n| n.node.member == *m)?
                .coordinate
        };
        let state = self.state();
        let said = |m: &MemberId| state.known.get(m)?.1.coordinate;
        members
            .iter()
            .map(|m| {
                neighbour(m)
                    .or_else(|| said(m))
                    .filter(Coordinate::is_known)
            })
            .collect()
    }

    /// Members with a direct link, or with a direct control connection to a public address, where a
    /// link would be direct too.
    fn direct_neighbours(&self) -> HashMap<MemberId, u32> {
        let millis = |rtt: Option<Duration>| {
            rtt.map_or(1000, |d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX))
        };
        let peers = self.plane.peers().into_iter();
        let linked = peers
            .filter(|(_, info)| matches!(info.path, Path::Direct(_)))
            .map(|(m, info)| (m, millis(info.rtt)));
        let open = self
            .fabric
            .connected()
            .into_iter()
            .filter_map(|m| Some((m, millis(Some(self.fabric.rtt_of_open(m)?)))));
        open.chain(linked).collect()
    }

    fn remember(&self, member: MemberId, whereabouts: &Whereabouts) {
        let (now, outside) = (Instant::now(), self.outside(whereabouts));
        let mut state = self.state();
        match whereabouts
            .candidates
            .iter()
            .find(|candidate| !outside.candidates.contains(candidate))
        {
            Some(hidden) => drop(state.hidden.insert(member, hidden.addr.ip())),
            None => drop(state.hidden.remove(&member)),
        }
        let before = state.known.insert(member, (now, outside.clone()));
        if before.is_some_and(|(_, before)| before.differs(&outside)) {
            state.retries.begin_anew(member, now + dial::RETRY);
        }
    }

    /// What a member says of itself without the addresses that lead through tunnels of this
    /// machine: another network of both.
    fn outside(&self, whereabouts: &Whereabouts) -> Whereabouts {
        let mut whereabouts = whereabouts.clone();
        whereabouts
            .candidates
            .retain(|candidate| !self.plane.is_inside_tunnel(&candidate.addr.ip()));
        whereabouts
    }

    /// Whether this side keeps the NAT mappings of a direct link alive: one of the two is enough,
    /// as the other answers.
    fn keeps_alive(&self, member: MemberId) -> bool {
        let state = self.state();
        let theirs = state
            .known
            .get(&member)
            .map_or(NatKind::Unknown, |(_, w)| w.nat);
        self.fabric.me() < member && [state.nat, theirs].iter().any(|nat| *nat != NatKind::Open)
    }

    /// Whether a direct path to the member is possible, as far as both sides' NATs are known.
    fn may_reach(&self, theirs: &Whereabouts) -> bool {
        let ours = self.candidates();
        let state = self.state();
        // A mapped port lets in everybody, whatever the NAT does otherwise.
        let kind = |nat: NatKind, of: &[Candidate]| {
            let mapped =
                nat != NatKind::Blocked && of.iter().any(|c| c.kind == CandidateKind::Mapped);
            if mapped { NatKind::FullCone } else { nat }
        };
        let (our_kind, their_kind) = (kind(state.nat, &ours), kind(theirs.nat, &theirs.candidates));
        if [our_kind, their_kind].contains(&NatKind::Blocked) {
            return false;
        }
        // No NAT translates IPv6, so both know beforehand where the other is.
        let six = |of: &[Candidate]| {
            of.iter()
                .any(|c| c.addr.is_ipv6() && !nat::is_private(&c.addr.ip()))
        };
        let four = |of: &[Candidate]| of.iter().any(|c| c.addr.is_ipv4());
        let outside = |of: &[Candidate]| {
            of.iter()
                .find(|c| c.kind == CandidateKind::Reflexive)
                .map(|c| c.addr.ip())
        };
        let neighbours = outside(&ours).is_some() && outside(&ours) == outside(&theirs.candidates);
        (six(&ours) && six(&theirs.candidates))
            || (four(&ours)
                && four(&theirs.candidates)
                && (neighbours || our_kind.may_punch(their_kind)))
    }

    /// Tries the member's addresses directly.
    ///
    /// Right after the start it is not known yet whether our own NAT gives each destination another
    /// mapping. Where the far end hears only the very port that it was told, a packet sent then
    /// would take a mapping that nobody can guess later, for as long as the NAT remembers it. So
    /// such a punch waits until that is known, and is agreed on anew if ports have to be guessed.
    fn punch(self: &Arc<Self>, member: MemberId, whereabouts: &Whereabouts) {
        self.remember(member, whereabouts);
        self.choose_port(member, whereabouts);
        if self.knows_enough_to_punch(whereabouts.nat) {
            return self.punch_now(member, &self.outside(whereabouts));
        }
        let (shared, whereabouts) = (self.clone(), self.outside(whereabouts));
        tokio::spawn(async move {
            shared.mapping_known().await;
            if shared.state().nat == NatKind::Counting {
                dial::meet_again(shared, member).await;
            } else {
                shared.punch_now(member, &whereabouts);
            }
        });
    }

    /// Whether nothing is lost by writing at once to a member behind such a NAT.
    fn knows_enough_to_punch(&self, theirs: NatKind) -> bool {
        let state = self.state();
        let hidden =
            state.reflexive.is_some() || (state.nat == NatKind::Unknown && self.local_is_private());
        let hears = matches!(
            theirs,
            NatKind::Open | NatKind::FullCone | NatKind::AddressCone
        );
        !self.options.stun || !hidden || hears || state.mapping_known
    }

    /// Waits until it is known whether the NAT gives each destination another mapping. Who never
    /// finds out waits once.
    async fn mapping_known(&self) {
        let until = tokio::time::Instant::now() + dial::MAPPING_LIMIT;
        loop {
            let learned = self.learned.notified();
            if self.state().mapping_known || tokio::time::timeout_at(until, learned).await.is_err()
            {
                break;
            }
        }
        self.state().mapping_known = true;
    }

    fn is_let_through(&self, addr: SocketAddr) -> bool {
        self.state().is_let_through(&self.options, addr)
    }

    /// Whether all of this host's own addresses are of the kind that NATs hide.
    fn local_is_private(&self) -> bool {
        self.plane.local_addresses().iter().all(nat::is_private)
    }

    fn punch_now(&self, member: MemberId, whereabouts: &Whereabouts) {
        let usable =
            |addr: &SocketAddr| addr.port() != 0 && crate::plane::packet::is_unicast(&addr.ip());
        let candidates = whereabouts
            .candidates
            .iter()
            .take(MAX_CANDIDATES)
            .filter(|c| usable(&c.addr));
        let (guessed, told): (Vec<&Candidate>, Vec<&Candidate>) =
            candidates.partition(|c| c.kind == CandidateKind::Predicted);
        let (allowed, now) = (self.may_reach(whereabouts), Instant::now());
        {
            let mut state = self.state();
            if state.nat == NatKind::Blocked || whereabouts.nat == NatKind::Blocked {
                return;
            }
            guessed
                .iter()
                .chain(&told)
                .for_each(|c| state.written.note(c.addr.ip(), now));
            let between = [state.nat, whereabouts.nat]
                .iter()
                .any(|nat| *nat != NatKind::Open);
            let is_direct = self
                .plane
                .path(member)
                .is_some_and(|info| matches!(info.path, Path::Direct(_)));
            if between && !is_direct && !(told.is_empty() && guessed.is_empty()) {
                state.punches.begin(member, allowed, now);
            }
        }
        // Guesses first and one by one: where our own NAT counts, each takes its next port, in this
        // order.
        for addr in examine::order(
            guessed.iter().map(|c| c.addr).collect(),
            self.fabric.me() < member,
        ) {
            self.plane.try_paths(member, [Path::Direct(addr)]);
        }
        self.plane
            .try_paths(member, told.iter().map(|c| Path::Direct(c.addr)));
    }

    /// Counts the punches that have come through since, and forgets those that nobody waits for.
    fn note_punches(&self) {
        let (links, now) = (self.plane.peers(), Instant::now());
        let mut state = self.state();
        for (member, info) in &links {
            if matches!(info.path, Path::Direct(_)) {
                state.punches.direct(*member, info.since);
            }
        }
        state.punches.forget(
            |member, age| age < PUNCH_LIFE || links.iter().any(|(linked, _)| linked == member),
            now,
        );
    }

    async fn answer(self: &Arc<Self>, from: MemberId, request: Request) -> Result<Answer, String> {
        match request {
            Request::Where => Ok(Answer::Here(self.whereabouts())),
            Request::Knock(to, id) => examine::knock(self, to, id),
            Request::KnockElsewhere(to, id) => examine::knock_elsewhere(self, to, id).await,
            Request::Link(whereabouts, handshake) => {
                if self
                    .plane
                    .path(from)
                    .is_some_and(|info| matches!(info.path, Path::Direct(_)))
                {
                    self.doubted.notify_one();
                }
                nat::settle(self, Duration::from_millis(300)).await;
                examine::look_at_the_counter(self).await;
                let key = self
                    .fabric
                    .link_key(from)
                    .ok_or("your link key is not known here")?;
                let answer = self
                    .plane
                    .accept_link(from, key, &handshake)
                    .map_err(|e| e.to_string())?;
                self.punch(from, &whereabouts);
                Ok(Answer::Linked(self.whereabouts(), answer))
            }
            Request::Relay(_) if !self.plane.is_willing_to_relay() => {
                Err("this member does not relay".into())
            }
            Request::Relay(to) => {
                let path = dial::ensure(self, to, dial::Reach::WithoutRelay)
                    .await
                    .map_err(|e| e.to_string())?;
                let rtt = self
                    .plane
                    .path(to)
                    .and_then(|info| info.rtt)
                    .unwrap_or(Duration::from_secs(1));
                tracing::debug!(?from, ?to, ?path, "relaying");
                Ok(Answer::Relaying(
                    u32::try_from(rtt.as_millis()).unwrap_or(u32::MAX),
                ))
            }
        }
    }
}
