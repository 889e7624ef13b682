//! The packet plane: carries IP between this host, its guests and other members over encrypted
//! links.
//!
//! Threads, not the async runtime, carry packets: one reads the TUN, one the UDP socket, one each
//! guest port, and a clock thread runs handshakes, probes and timeouts. What they look up (routes,
//! sessions, ports) are snapshots that change rarely and are read without a lock. The plane knows
//! how to use a path; finding one is [`crate::connect`]'s part.

mod access;
mod aside;
mod astray;
mod checksum;
mod clock;
mod core;
mod cut;
mod deliver;
mod device;
mod door;
mod envelopes;
mod guest_proof;
mod holding;
#[cfg(test)]
mod idle_tests;
mod join;
mod large;
mod loops;
mod mend;
mod multicast;
pub mod packet;
mod packet_socket;
mod path_use;
pub mod paths;
mod peer;
mod pieces;
mod pmtu;
mod port;
mod port_care;
mod priority;
mod probe;
mod proof;
mod receive;
mod relaying;
mod ring;
mod roam;
mod routes;
mod segments;
mod tap_holder;
mod too_big;
mod traffic;
mod tun;
pub(crate) mod udp;
mod wake;

use self::core::Inner;
pub(crate) use self::ring::first_hop;
pub use access::Directory;
pub use guest_proof::{GuestProof, GuestReach};
pub use port::{GuestPort, Leaving};
pub use proof::{Answered, Proof, Unproved};
pub use relaying::RelayOffer;
pub use routes::Route;
pub use traffic::{Flow, NOISE as TRAFFIC_NOISE, TrafficMatrix};

use crate::{
    fabric::FabricError,
    id::{Epoch, MemberId, VmId},
    membership::{Cidr, NetworkPolicy},
    underlay::Underlay,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Everything that the plane reads in a packet of a guest or a member, for the fuzzer.
#[cfg(fuzzing)]
pub fn look_at(bytes: &[u8]) {
    let room = usize::from(bytes.first().copied().unwrap_or_default()) * 8;
    for router in [
        IpAddr::from([10, 0, 0, 1]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
    ] {
        let answer = too_big::refusal(bytes, room, router);
        assert!(
            answer
                .is_none_or(|answer| answer.len() <= 1280 && packet::addresses(&answer).is_some())
        );
    }
    let _ = multicast::group_mac(bytes);
    let _ = access::look_at(bytes);
    if let [id, index, count, rest @ ..] = bytes {
        let mut pieces = pieces::Pieces::default();
        let now = Instant::now();
        for at in [*index, 0, 1, 2, 3] {
            let _ = pieces.take(now, u32::from(*id), at, *count, rest);
        }
    }
}

/// Why the plane could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TUN device could not be made or set up.
    #[error("cannot set up the TUN device {device}")]
    Tun {
        /// Its name.
        device: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The UDP port could not be bound.
    #[error("cannot bind UDP port {port}")]
    Bind {
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A packet thread could not be started.
    #[error("cannot start the packet threads")]
    Thread(#[source] io::Error),
    /// The host's overlay address could not be set.
    #[error("cannot put {addr} on {device}")]
    Address {
        /// The device.
        device: String,
        /// The address.
        addr: IpAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A guest's interface could not be opened.
    #[error("cannot open the guest port {ifname}")]
    Port {
        /// The interface.
        ifname: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No path to the member could be made.
    #[error("no path to {} could be found: neither direct, nor through another member, nor by \
        stream", .0.short())]
    NoPath(MemberId),
    /// The member did not answer in time.
    #[error("{} did not answer within {:?}", .0.short(), .1)]
    TimedOut(MemberId, Duration),
    /// The control plane could not help.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The handshake failed.
    #[error("handshake with {} failed: {}", .0.short(), .1)]
    Handshake(MemberId, String),
    /// The plane was shut down.
    #[error("the packet plane is shut down")]
    Closed,
}

/// What a plane is started with.
pub struct PlaneConfig {
    /// This node.
    pub me: MemberId,
    /// The secret half of this node's link key.
    pub link_secret: Zeroizing<[u8; 32]>,
    /// The UDP port to bind; 0 for any.
    pub udp_port: u16,
    /// The TUN device to make, such as `p2pvm0`.
    pub device: String,
    /// The TUN's MTU in bytes. At 1340 a relayed packet still fits 1500 bytes of IPv6.
    pub mtu: u16,
    /// Count what each pair of addresses says to each other ([`Plane::traffic`]).
    pub traffic: bool,
    /// The network's id, as it is written: marks the interface, so that every daemon of this
    /// machine knows it ([`p2pvm_host::links::Mark`]).
    pub network: String,
    /// The port of the control plane, for the same mark; 0: not known yet
    /// ([`Plane::set_control_port`]).
    pub control_port: u16,
}

/// How datagrams reach a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this member, sealed end to end.
    Relayed(MemberId),
    /// Over the ring, from neighbour to neighbour, sealed end to end.
    Ring,
    /// Over a stream of the control plane: UDP does not get through.
    Stream,
}

/// Whoever says that a path is direct must have heard something by it within this.
const SILENT: Duration = Duration::from_secs(10);

/// The state of the link to a member.
#[derive(Clone, Copy, Debug)]
pub struct PathInfo {
    /// The path that data takes.
    pub path: Path,
    /// Its last measured round trip.
    pub rtt: Option<Duration>,
    /// Since when this path is used.
    pub since: Instant,
    /// Bytes of IP packets sent to the member.
    pub tx_bytes: u64,
    /// Bytes of IP packets received from it.
    pub rx_bytes: u64,
    /// When the last handshake finished.
    pub last_handshake: Option<Instant>,
    /// The largest IP packet that goes whole this way, bytes.
    pub packet_bytes: usize,
    /// When something last answered by this path; `None`: nothing yet.
    pub heard: Option<Instant>,
}

impl PathInfo {
    /// For how long nothing has answered by this path, if that is so long that it may be dead.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let since = self.heard.map_or(self.since, |heard| heard.max(self.since));
        Some(now.saturating_duration_since(since)).filter(|silence| *silence >= SILENT)
    }
}

/// A member's answer to [`Plane::ping`].
#[derive(Clone, Copy, Debug)]
pub struct Pong {
    /// Round trip through the link.
    pub rtt: Duration,
    /// The path by which the answer came.
    pub path: Path,
    /// Over the ring: links that the answer took.
    pub hops: Option<u8>,
}

/// What the plane tells its owner.
#[derive(Clone, Debug)]
pub enum PlaneEvent {
    /// A packet goes to, or comes from, an address without a route: it waits a few seconds for
    /// [`Plane::set_route`].
    Unresolved(IpAddr),
    /// Data to a member takes another path now, or has none.
    PathChanged {
        /// The member.
        member: MemberId,
        /// The path; `None`: no link any more.
        path: Option<Path>,
    },
    /// A member sent a packet of an address under an epoch older than known: dropped.
    StaleEpoch {
        /// The source address.
        addr: IpAddr,
        /// Who sent it.
        from: MemberId,
        /// The epoch it claimed.
        sent: Epoch,
        /// The epoch that stands.
        known: Epoch,
    },
    /// A guest's ARP, neighbour discovery or DHCP frame.
    GuestFrame {
        /// The guest.
        vm: VmId,
        /// The Ethernet frame.
        frame: Vec<u8>,
    },
    /// The former host of an address told where it went; already applied to the routes.
    MovedHint {
        /// The address.
        addr: IpAddr,
        /// Where it is now.
        route: Route,
    },
}

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The handle of a running plane; the last one dropped shuts it down.
#[derive(Clone)]
pub struct Plane(Arc<Owner>);

impl Plane {
    /// Makes the TUN device, binds UDP and starts the threads, all in the network namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// [`Error::Tun`], [`Error::Bind`] or [`Error::Thread`].
    pub fn start(
        config: PlaneConfig,
        events: tokio::sync::mpsc::Sender<PlaneEvent>,
    ) -> Result<Self, Error> {
        Inner::start(config, events).map(|inner| Self(Arc::new(Owner(inner))))
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }

    /// The UDP port in use.
    pub fn udp_port(&self) -> u16 {
        self.inner().udp.port()
    }

    /// Puts the host's overlay addresses (with prefix lengths) onto the TUN and routes their
    /// subnets into it; those set before are taken off. Where IPv6 is switched off its address is
    /// left out, and put on when that changes. From then on the plane keeps them there. Call it in
    /// the network namespace in which the plane was started.
    ///
    /// # Errors
    /// [`Error::Address`] with what the kernel said.
    pub fn set_host_addresses(
        &self,
        v4: Option<(Ipv4Addr, u8)>,
        v6: Option<(Ipv6Addr, u8)>,
    ) -> Result<(), Error> {
        self.inner().set_host_addresses(v4, v6)
    }

    /// Says at which port the control plane listens: it belongs to the interface's mark.
    pub fn set_control_port(&self, port: u16) {
        self.inner().set_control_port(port);
    }

    /// Says which member's address another p2pvm network of this machine holds, for that network's
    /// daemon to read in the interface's mark.
    pub fn set_misses(&self, misses: Option<IpAddr>) {
        self.inner().set_misses(misses);
    }

    /// The networks of this machine as far as they carry datagrams, and those that are tunnels; the
    /// plane keeps it new.
    pub fn underlay(&self) -> Underlay {
        self.inner().underlay.clone()
    }

    /// Compares the TUN with what it is to be, puts back what differs, and says what that was, in
    /// words. The plane does so by itself whenever the kernel says that something changed, and
    /// every few seconds.
    pub async fn mend(&self) -> Vec<String> {
        self.inner().mend().await
    }

    /// What is wrong with the TUN, or with a guest's interface, and cannot be put back, in words;
    /// nothing: all is well.
    pub fn device_faults(&self) -> Vec<String> {
        self.inner().device_faults()
    }

    /// The ways of packets to the network that somebody else's rules or routes lead past the TUN,
    /// which is as it should be.
    pub fn ways_elsewhere(&self) -> Vec<Unproved> {
        self.inner().ways_elsewhere()
    }

    /// Datagrams and segments of a tunnel of this machine that came into the TUN: they are dropped,
    /// as a tunnel through a tunnel only carries itself. Each is one too many: something leads them
    /// there.
    pub fn loops(&self) -> (u64, Option<(Instant, SocketAddr)>) {
        self.inner().loops.seen()
    }

    /// Says where an address is. A smaller epoch never replaces a larger one; packets that waited
    /// go on.
    pub fn set_route(&self, addr: IpAddr, route: Route) {
        self.inner().set_route(addr, route);
    }

    /// Forgets where an address is.
    pub fn remove_route(&self, addr: IpAddr) {
        self.inner().routes.rcu(|routes| {
            let mut routes = (**routes).clone();
            routes.remove(&addr);
            routes
        });
    }

    /// All routes, in no order.
    pub fn routes(&self) -> Vec<(IpAddr, Route)> {
        self.inner().routes.load().iter().collect()
    }

    /// The IPv4 address that was last said to be a member's host's.
    pub fn host_of(&self, member: &MemberId) -> Option<IpAddr> {
        self.inner().routes.load().host_of(member)
    }

    /// Says which member forwards into each of these subnets; they replace those said before. An
    /// address of its own goes before a subnet, a longer prefix before a shorter one.
    pub fn set_subnets(&self, subnets: Vec<(Cidr, MemberId)>) {
        self.inner().routes.rcu(|routes| {
            let mut routes = (**routes).clone();
            routes.set_subnets(&subnets);
            routes
        });
    }

    /// Counts who talks with whom from now on, or not.
    pub fn count_traffic(&self, on: bool) {
        self.inner().traffic.set(on);
    }

    /// Puts a policy in force for all that arrives here, for this host and its guests; `None` lets
    /// everything in.
    pub fn set_policy(&self, policy: Option<(Arc<NetworkPolicy>, Arc<dyn Directory>)>) {
        self.inner().access.set(policy);
    }

    /// Lets no packet in until [`Plane::set_policy`] is called: for a member that does not know yet
    /// whether there is a policy.
    pub fn await_policy(&self) {
        self.inner().access.close();
    }

    /// Carries guests' multicast to and from these members, or not at all.
    pub fn set_multicast(&self, members: Option<Vec<MemberId>>) {
        self.inner().multicast.set(members);
    }

    /// Packets that the policy has kept out so far.
    pub fn denied(&self) -> u64 {
        self.inner().access.denied()
    }

    /// Takes a guest's traffic from and to its interface. A port of the same VM is replaced.
    ///
    /// # Errors
    /// [`Error::Port`] if the interface cannot be opened.
    pub fn attach_port(&self, port: GuestPort) -> Result<(), Error> {
        Inner::attach_port(self.inner(), port)
    }

    /// Lets go of a guest's interface.
    pub fn detach_port(&self, vm: VmId) {
        self.inner().detach_port(vm);
    }

    /// Fences a guest, or lets it talk again: frozen, nothing goes in or out.
    pub fn freeze_port(&self, vm: VmId, frozen: bool) {
        self.inner().freeze_port(vm, frozen);
    }

    /// Says how far a guest's departure has come, so that nothing that arrives meanwhile is lost.
    pub fn hold_port(&self, vm: VmId, leaving: Leaving) {
        self.inner().hold_port(vm, leaving);
    }

    /// The VM that held `addr` here has moved: its packets that still come go on to `to`, and their
    /// senders are told. `None` ends that.
    pub fn set_forward(&self, addr: IpAddr, to: Option<Route>) {
        self.inner().set_forward(addr, to);
    }

    /// Sends an Ethernet frame to a guest.
    pub fn send_to_guest(&self, vm: VmId, frame: Vec<u8>) {
        self.inner().send_to_guest(vm, &frame);
    }

    /// Measures the round trip over the link, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::NoPath`] if no link came up in time, [`Error::TimedOut`] if it did and no answer
    /// came.
    pub async fn ping(&self, member: MemberId, timeout: Duration) -> Result<Pong, Error> {
        self.inner().ping(member, timeout).await
    }

    /// Ends the link to a member whose membership was revoked.
    pub fn remove_peer(&self, member: MemberId) {
        self.inner().remove_peer(member);
    }

    /// The link to a member, if there is one.
    pub fn path(&self, member: MemberId) -> Option<PathInfo> {
        self.inner().peers.load().get(&member)?.info()
    }

    /// All members with a link.
    pub fn peers(&self) -> Vec<(MemberId, PathInfo)> {
        self.inner()
            .peers
            .load()
            .iter()
            .filter_map(|peer| Some((peer.member, peer.info()?)))
            .collect()
    }

    /// Asks, on every path by which nothing came lately, whether it lives, and waits for the
    /// answers: what [`Plane::peers`] says then holds now. Takes up to `limit` where one does not
    /// answer.
    pub async fn look_at_silent(&self, limit: Duration) {
        self.inner().look_at_silent(limit).await;
    }

    /// Who talks with whom, and how much.
    pub fn traffic(&self) -> TrafficMatrix {
        self.inner().traffic.matrix(Instant::now())
    }

    /// What this node passes on for others from now on.
    pub fn set_relay(&self, offer: RelayOffer) {
        self.inner().relaying.set(offer);
    }

    /// Bytes passed on for others since the start, and bytes that would have been but for the
    /// limit.
    pub fn relayed(&self) -> (u64, u64) {
        self.inner().relaying.counters()
    }

    /// Acts as if this host's addresses had changed: every link is tried again in every way at
    /// once.
    pub fn rouse(&self) {
        self.inner().roamed("asked");
    }

    /// Stops the threads and takes the TUN down; it is gone once the last handle is dropped, which
    /// also does this.
    pub fn shutdown(&self) {
        self.inner().stop();
    }
}
