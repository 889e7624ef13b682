//! The handle of a running plane: what every user of this crate may do with it.

use super::{
    access::Directory,
    core::Inner,
    error::Error,
    guest::{
        config::{GuestPort, Leaving},
        limit::GuestLimit,
    },
    interface::proof::ProofFailure,
    path::relaying::RelayOffer,
    routes::Route,
    traffic::TrafficMatrix,
    types::{PathInfo, PlaneConfig, PlaneEvent, Pong},
};
use crate::{
    id::{MemberId, VmId},
    membership::{Cidr, NetworkPolicy},
    underlay::Underlay,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

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

    /// A plane without a TUN device and threads, which needs no privileges and carries no packets:
    /// for tests of what is built on a plane.
    ///
    /// # Errors
    /// [`Error::Bind`] or [`Error::Thread`].
    pub fn start_idle(
        config: PlaneConfig,
        events: tokio::sync::mpsc::Sender<PlaneEvent>,
    ) -> Result<Self, Error> {
        Inner::start_idle(config, events).map(|inner| Self(Arc::new(Owner(inner))))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }

    /// The UDP port in use.
    pub fn udp_port(&self) -> u16 {
        self.inner().udp.port()
    }

    /// Gives the TUN the host's overlay addresses (with prefix lengths) and routes their subnets
    /// into it, in place of earlier ones; the plane keeps them there. While IPv6 is switched off
    /// the IPv6 address is left out. Call it in the network namespace in which the plane was
    /// started.
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

    /// Sets the control plane's port in the interface's mark.
    pub fn set_control_port(&self, port: u16) {
        self.inner().set_control_port(port);
    }

    /// Sets in the interface's mark which member's address another p2pvm network of this machine
    /// holds; that network's daemon reads it there.
    pub fn set_misses(&self, misses: Option<IpAddr>) {
        self.inner().set_misses(misses);
    }

    /// The networks of this machine that carry datagrams, and those that are tunnels. The plane
    /// keeps them up to date.
    pub fn underlay(&self) -> Underlay {
        self.inner().underlay.clone()
    }

    /// Compares the TUN with what it has to be, puts back what differs, and returns what that was,
    /// in words. The plane does so by itself whenever the kernel reports a change, and every few
    /// seconds.
    pub async fn mend(&self) -> Vec<String> {
        self.inner().mend().await
    }

    /// What is wrong with the TUN or a guest's interface and cannot be put back, in words. Empty if
    /// all is well.
    pub fn device_faults(&self) -> Vec<String> {
        self.inner().device_faults()
    }

    /// Destinations in the network whose packets other programs' rules or routes lead past the TUN,
    /// although the TUN itself is as it should be.
    pub fn ways_elsewhere(&self) -> Vec<ProofFailure> {
        self.inner().ways_elsewhere()
    }

    /// How many datagrams and segments of a tunnel of this machine came into the TUN, and the last
    /// one's time and destination. They are dropped, as a tunnel through a tunnel only carries
    /// itself; even one means that a route leads them there.
    pub fn loops(&self) -> (u64, Option<(Instant, SocketAddr)>) {
        self.inner().loops.seen()
    }

    /// Sets the route of an address and sends packets that waited for it. A smaller epoch never
    /// replaces a larger one.
    pub fn set_route(&self, addr: IpAddr, route: Route) {
        self.inner().set_route(addr, route);
    }

    /// Sets the route of an address, whatever epoch is known, and sends packets that waited for it:
    /// the address has another owner.
    pub fn replace_route(&self, addr: IpAddr, route: Route) {
        self.inner().replace_route(addr, route);
    }

    /// Removes the route of an address.
    pub fn remove_route(&self, addr: IpAddr) {
        self.inner().tables.routes.rcu(|routes| {
            let mut routes = (**routes).clone();
            routes.remove(&addr);
            routes
        });
    }

    /// All routes, in no order.
    pub fn routes(&self) -> Vec<(IpAddr, Route)> {
        self.inner().tables.routes.load().iter().collect()
    }

    /// The IPv4 address that was last set as a member's host's.
    pub fn host_of(&self, member: &MemberId) -> Option<IpAddr> {
        self.inner().tables.routes.load().host_of(member)
    }

    /// Sets which member forwards into each of these subnets, in place of earlier ones. The route
    /// of an address takes precedence over a subnet, a longer prefix over a shorter one.
    pub fn set_subnets(&self, subnets: Vec<(Cidr, MemberId)>) {
        self.inner().tables.routes.rcu(|routes| {
            let mut routes = (**routes).clone();
            routes.set_subnets(&subnets);
            routes
        });
    }

    /// Starts or stops counting the traffic between addresses.
    pub fn count_traffic(&self, on: bool) {
        self.inner().traffic.set(on);
    }

    /// Puts a policy in force for everything that arrives here for this host and its guests; `None`
    /// lets everything in.
    pub fn set_policy(&self, policy: Option<(Arc<NetworkPolicy>, Arc<dyn Directory>)>) {
        self.inner().access.set(policy);
    }

    /// Lets no packet in until [`Plane::set_policy`] is called. Reason: a new member does not know
    /// yet whether the network has a policy.
    pub fn await_policy(&self) {
        self.inner().access.close();
    }

    /// Carries guests' multicast to and from these members; `None`: not at all.
    pub fn set_multicast(&self, members: Option<Vec<MemberId>>) {
        self.inner().multicast.set(members);
    }

    /// How many packets the policy has kept out so far.
    pub fn denied(&self) -> u64 {
        self.inner().access.denied()
    }

    /// Carries a guest's traffic from and to its interface. An earlier port of the same VM is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::Port`] if the interface cannot be opened.
    pub fn attach_port(&self, port: GuestPort) -> Result<(), Error> {
        Inner::attach_port(self.inner(), port)
    }

    /// Stops carrying a guest's traffic.
    pub fn detach_port(&self, vm: VmId) {
        self.inner().detach_port(vm);
    }

    /// Fences a guest, so that nothing goes in or out, or ends that.
    pub fn freeze_port(&self, vm: VmId, frozen: bool) {
        self.inner().freeze_port(vm, frozen);
    }

    /// Bounds what a guest sends, and what it is sent, bits a second each; `None` ends that.
    pub fn limit_port(&self, vm: VmId, bits_per_second: Option<u64>) {
        self.inner().limit_port(vm, bits_per_second);
    }

    /// A guest's limit, and what was dropped by it; `None` if no port of the guest is here.
    pub fn limit_of(&self, vm: VmId) -> Option<GuestLimit> {
        self.inner().limit_of(vm)
    }

    /// Sets how far a guest's departure has come, so that no packet is lost meanwhile.
    pub fn hold_port(&self, vm: VmId, leaving: Leaving) {
        self.inner().hold_port(vm, leaving);
    }

    /// Passes packets for `addr`, whose VM has moved away, on to `to` and tells their senders.
    /// `None` ends that.
    pub fn set_forward(&self, addr: IpAddr, to: Option<Route>) {
        self.inner().set_forward(addr, to);
    }

    /// Sends an Ethernet frame to a guest.
    pub fn send_to_guest(&self, vm: VmId, frame: Vec<u8>) {
        self.inner().send_to_guest(vm, &frame);
    }

    /// Measures the round trip over the link, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::NoPath`] if no link came up in time, [`Error::TimedOut`] if one did and no answer
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
        self.inner().tables.peers.load().get(&member)?.info()
    }

    /// All members with a link.
    pub fn peers(&self) -> Vec<(MemberId, PathInfo)> {
        self.inner()
            .tables
            .peers
            .load()
            .iter()
            .filter_map(|peer| Some((peer.member, peer.info()?)))
            .collect()
    }

    /// Probes every path by which nothing came lately and waits for the answers, up to `limit`, so
    /// that [`Plane::peers`] is up to date.
    pub async fn look_at_silent(&self, limit: Duration) {
        self.inner().look_at_silent(limit).await;
    }

    /// The bytes between each pair of addresses.
    pub fn traffic(&self) -> TrafficMatrix {
        self.inner().traffic.matrix(Instant::now())
    }

    /// Sets what this node passes on for other members.
    pub fn set_relay(&self, offer: RelayOffer) {
        self.inner().relaying.set(offer);
    }

    /// Bytes passed on for other members since the start, and bytes that the limit kept from that.
    pub fn relayed(&self) -> (u64, u64) {
        self.inner().relaying.counters()
    }

    /// Acts as if this host's addresses had changed: every path of every link is probed at once.
    pub fn rouse(&self) {
        self.inner().roamed("asked");
    }

    /// Stops the threads and takes the TUN down; it is gone once the last handle is dropped, which
    /// also does this.
    pub fn shutdown(&self) {
        self.inner().stop();
    }
}
