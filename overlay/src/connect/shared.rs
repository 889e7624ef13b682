//! The state shared by the connector's tasks, and its driver: carries out its actions, passes it
//! this host's state, answers other members.

use super::{
    ConnectOptions, SERVICE, dial, examine,
    message::{self, Answer, Candidate, MAX_NEIGHBOURS, NatKind, Reachability, Request},
    nat,
    over_ring::{self, RingAccess},
    relays, silence,
    state::{Action, Host, Input, State, Statement, links, reach::PresentLink},
    turns,
};
use crate::lock;
use crate::{
    coordinates::Coordinate,
    fabric::{Fabric, Serve},
    id::MemberId,
    plane::{Path, Plane},
    ring::{Header, RingStatus},
    ring_net::Answers,
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

/// How long a punch waits until the NAT's mapping is known. Reason: no member may be there that can
/// tell.
const MAPPING_LIMIT: Duration = Duration::from_millis(1000);

/// See the module.
pub(crate) struct Shared {
    pub plane: Plane,
    pub fabric: Arc<dyn Fabric>,
    pub options: ConnectOptions,
    state: Mutex<State>,
    pub turns: turns::Turns,
    pub ring: Option<RingAccess>,
    /// Wakes when the survey has learned something.
    pub learned: tokio::sync::Notify,
    /// Wakes when the node has to release its port mapping, and when that is done.
    pub closing: tokio::sync::Notify,
    pub closed: tokio::sync::Notify,
    /// Ports that are open for other members' STUN requests.
    pub ports: Arc<tokio::sync::Semaphore>,
    /// Wakes when others may see this host at another address.
    pub learn_again: tokio::sync::Notify,
    /// Wakes when a member makes a standing link again: the path between the two has changed.
    pub doubted: tokio::sync::Notify,
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

impl Shared {
    pub fn new(
        plane: Plane,
        fabric: Arc<dyn Fabric>,
        options: ConnectOptions,
        ring: Option<RingAccess>,
    ) -> Self {
        Self {
            state: Mutex::new(State::new(fabric.me(), options)),
            plane,
            fabric,
            options,
            turns: turns::Turns::default(),
            ring,
            learned: tokio::sync::Notify::new(),
            closing: tokio::sync::Notify::new(),
            closed: tokio::sync::Notify::new(),
            ports: Arc::new(tokio::sync::Semaphore::new(examine::MAX_PORTS)),
            learn_again: tokio::sync::Notify::new(),
            doubted: tokio::sync::Notify::new(),
        }
    }

    /// Answers other members' connectors.
    pub fn serve(self: &Arc<Self>) {
        let handler = Arc::new(Handler(Arc::downgrade(self)));
        self.fabric.serve(SERVICE, handler);
        if let Some(ring) = &self.ring {
            ring.net.serve(Arc::new(RingCalls(Arc::downgrade(self))));
        }
    }

    // --- The state

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Passes an event to the state, and does what it then asks for.
    pub fn handle(self: &Arc<Self>, input: Input<'_>) {
        self.state().handle(Instant::now(), input);
        self.act();
    }

    /// Does what the state asks for.
    pub fn act(self: &Arc<Self>) {
        loop {
            let Some(action) = self.state().poll() else {
                return;
            };
            match action {
                Action::KeepAlive(member, keep) => self.plane.set_keep_alive(member, keep),
                Action::Improve {
                    member,
                    path,
                    number,
                    is_hopeless,
                } => {
                    let shared = self.clone();
                    tokio::spawn(dial::improve(shared, member, path, number, is_hopeless));
                }
                Action::ReviewRelays {
                    member,
                    relays,
                    rtt,
                } => {
                    tokio::spawn(relays::review(self.clone(), member, relays, rtt));
                }
                Action::WriteFrom {
                    second: false,
                    addresses,
                } => self.plane.move_to_first_port(&addresses),
                Action::WriteFrom { addresses, .. } => {
                    if let Err(error) = self.plane.move_to_second_port(&addresses) {
                        tracing::debug!(
                            error = %p2pvm_host::chain(&error),
                            "cannot write from another port"
                        );
                    }
                }
                Action::Try {
                    member,
                    guessed,
                    told,
                } => {
                    for addr in guessed {
                        self.plane.try_paths(member, [Path::Direct(addr)]);
                    }
                    let told = told.into_iter().map(Path::Direct);
                    self.plane.try_paths(member, told);
                }
                Action::PunchLater(member, theirs) => {
                    tokio::spawn(punch_later(self.clone(), member, theirs));
                }
                Action::Bridge(member) => {
                    tokio::spawn(silence::bridge(self.clone(), member));
                }
                Action::AllFromSecondPort => self.all_from_second_port(),
                Action::SilenceFirstPort(silent) => self.plane.silence_first_port(silent),
                Action::MappingChanged => self.plane.mapping_changed(),
            }
        }
    }

    fn all_from_second_port(&self) {
        let port = self.plane.udp_port();
        self.plane.move_all_to_second_port();
        tracing::warn!(
            port,
            "nothing comes back to this port, such as where a router holds on to a dead flow: \
                another is used"
        );
    }

    /// Tries the addresses of a member that was met.
    pub fn met(self: &Arc<Self>, member: MemberId, reachability: &Reachability) {
        let plane = &self.plane;
        self.handle(Input::Met {
            member,
            host: &self.host(),
            statement: self.statement(reachability),
            told: &reachability.candidates,
            link: PresentLink {
                is_direct: self.is_direct(member),
                carries: &|way| plane.carries(member, Path::Direct(*way)),
            },
        });
    }

    /// Stores what a member says of itself.
    pub fn remember(self: &Arc<Self>, member: MemberId, reachability: &Reachability) {
        self.handle(Input::Heard(member, self.statement(reachability)));
    }

    /// A member's reachability without the addresses that lead through tunnels of this machine,
    /// because both are in another network too.
    pub fn statement(&self, reachability: &Reachability) -> Statement {
        let mut reachability = reachability.clone();
        let is_hidden = |c: &Candidate| self.plane.is_inside_tunnel(&c.addr.ip());
        let hidden = reachability.candidates.iter().find(|c| is_hidden(c));
        let hidden = hidden.map(|c| c.addr.ip());
        reachability.candidates.retain(|c| !is_hidden(c));
        Statement {
            reachability,
            hidden,
        }
    }

    // --- This host

    pub fn host(&self) -> Host {
        Host {
            local: self.plane.local_addresses(),
            port: self.plane.udp_port(),
            uses_second_port: self.plane.is_second_port_used(),
        }
    }

    pub fn candidates(&self) -> Vec<Candidate> {
        let host = self.host();
        self.state().candidates(Instant::now(), &host)
    }

    /// This node's own reachability.
    pub fn reachability(&self) -> Reachability {
        let direct: HashMap<MemberId, u32> = self.direct_neighbours();
        let mut neighbours: Vec<_> = self
            .fabric
            .connected()
            .into_iter()
            .map(|m| (m, direct.get(&m).copied()))
            .collect();
        neighbours.sort_by_key(|(_, rtt)| rtt.unwrap_or(u32::MAX));
        neighbours.truncate(MAX_NEIGHBOURS);
        let (nat, relay) = (self.state().nat.kind, self.plane.is_willing_to_relay());
        Reachability {
            candidates: self.candidates(),
            nat,
            neighbours,
            relay,
            coordinate: self.here(),
        }
    }

    /// Our network coordinate, once it is known well enough.
    pub fn here(&self) -> Option<Coordinate> {
        Some(self.ring_status()?.coordinate).filter(Coordinate::is_known)
    }

    pub fn ring_status(&self) -> Option<Arc<RingStatus>> {
        self.ring.as_ref()?.net.status()
    }

    /// A member's network coordinate.
    pub fn place(&self, member: MemberId) -> Option<Coordinate> {
        let on_ring = place_on_ring(&self.ring_status(), &member);
        self.state().place(&member, on_ring)
    }

    pub fn is_direct(&self, member: MemberId) -> bool {
        self.plane
            .path(member)
            .is_some_and(|info| matches!(info.path, Path::Direct(_)))
    }

    /// Members with a direct link, or with a direct control connection to a public address, where a
    /// link would be direct too.
    pub fn direct_neighbours(&self) -> HashMap<MemberId, u32> {
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

    /// Whether a direct path to the member is possible, as far as both sides' NATs are known.
    pub fn may_reach(&self, theirs: &Reachability) -> bool {
        let host = self.host();
        self.state().may_reach(Instant::now(), &host, theirs)
    }

    /// Whether some link in use is not direct.
    pub fn wants_better(&self) -> bool {
        let links = self.plane.link_uses(Instant::now());
        links::wants_better(links.iter().map(|link| (link.idle, link.path)))
    }

    /// Counts the punches that have come through since.
    pub fn note_punches(&self) {
        let links = self.plane.peers();
        let links = links.iter().map(|(m, info)| (*m, info.path, info.since));
        self.state().note_punches(Instant::now(), links);
    }

    /// Waits until it is known whether the NAT gives each destination another mapping. If that
    /// cannot be found out, the node waits once only.
    pub async fn mapping_known(&self) {
        let until = tokio::time::Instant::now() + MAPPING_LIMIT;
        loop {
            let learned = self.learned.notified();
            if self.state().nat.mapping_known
                || tokio::time::timeout_at(until, learned).await.is_err()
            {
                break;
            }
        }
        self.state().nat.mapping_known = true;
    }

    // --- Other members

    async fn answer(self: &Arc<Self>, from: MemberId, request: Request) -> Result<Answer, String> {
        match request {
            Request::Where => Ok(Answer::Here(self.reachability())),
            Request::Knock(to, id) => examine::knock(self, to, id),
            Request::KnockElsewhere(to, id) => examine::knock_elsewhere(self, to, id).await,
            Request::Link(reachability, handshake) => {
                if self.is_direct(from) {
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
                    .map_err(|e| p2pvm_host::chain(&e))?;
                self.met(from, &reachability);
                Ok(Answer::Linked(self.reachability(), answer))
            }
            Request::Relay(_) if !self.plane.is_willing_to_relay() => {
                Err("this member does not relay".into())
            }
            Request::Relay(to) => {
                let path = dial::ensure(self, to, dial::Reach::WithoutRelay)
                    .await
                    .map_err(|e| p2pvm_host::chain(&e))?;
                let rtt = self
                    .plane
                    .path(to)
                    .and_then(|info| info.rtt)
                    .unwrap_or(Duration::from_secs(1));
                tracing::debug!(?from, ?to, ?path, "this node relays");
                Ok(Answer::Relaying(
                    u32::try_from(rtt.as_millis()).unwrap_or(u32::MAX),
                ))
            }
        }
    }
}

/// The network coordinate of a neighbour on the ring.
pub(super) fn place_on_ring(
    ring: &Option<Arc<RingStatus>>,
    member: &MemberId,
) -> Option<Coordinate> {
    let neighbours = &ring.as_ref()?.neighbours;
    neighbours
        .iter()
        .find(|n| n.node.member == *member)?
        .coordinate
}

/// Delays a punch until the NAT's mapping is known.
fn punch_later(
    shared: Arc<Shared>,
    member: MemberId,
    theirs: Reachability,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        shared.mapping_known().await;
        if shared.state().nat.kind == NatKind::Counting {
            return dial::meet_again(shared, member).await;
        }
        shared.handle(Input::PunchDue {
            member,
            host: &shared.host(),
            theirs,
            is_direct: shared.is_direct(member),
        });
    })
}
