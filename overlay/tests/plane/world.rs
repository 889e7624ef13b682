//! A small world of network namespaces for the plane's tests: hosts on a common wire, some behind a
//! NAT of their own. Names carry the process id; everything is taken down again when dropped, also
//! after a failed assertion.

use async_trait::async_trait;
use p2pvm_overlay::{
    BoxStream, Fabric, FabricError, MemberId, RingAddr, Serve, UnixTime,
    connect::{ConnectOptions, Connector, Credentials},
    fabric::memory::{MemoryFabric, MemoryNet},
    identity::{KeyPair, LinkKey},
    membership::{Groups, Ipv4Subnet, Issuer, NetworkConfig, Rights, Trust, policy::AddressOwner},
    plane::{Directory, GuestPort, Plane, PlaneConfig, PlaneEvent, Route},
    ring::RingOptions,
    ring_driver::RingDriver,
    ring_net::RingNet,
};
use std::{
    collections::HashMap,
    fs::File,
    net::IpAddr,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

/// The host `10.77.0.N` is the member of number N, in the group "gN".
pub struct Numbered;

impl Directory for Numbered {
    fn owner_of(&self, addr: &IpAddr) -> AddressOwner {
        let n = match addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        AddressOwner::Member {
            id: MemberId([n; 32]),
            name: format!("m{n}"),
            groups: Groups::new([format!("g{n}")]).expect("a name"),
        }
    }
}

/// What a host's router does.
#[derive(Clone, Copy, PartialEq)]
pub enum Nat {
    None,
    PortRestricted,
    Symmetric,
    /// No NAT, but no UDP either.
    NoUdp,
}

pub fn sh(command: &str) -> Output {
    Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("sh runs")
}

fn must(command: &str) {
    let output = sh(command);
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The control plane between the hosts, with link keys, which [`MemoryFabric`] does not know.
pub struct KeyedFabric {
    inner: Arc<MemoryFabric>,
    keys: Arc<Mutex<HashMap<MemberId, LinkKey>>>,
}

#[async_trait]
impl Fabric for KeyedFabric {
    fn me(&self) -> MemberId {
        self.inner.me()
    }
    fn connected(&self) -> Vec<MemberId> {
        self.inner.connected()
    }
    /// Known of members that it has a connection with, as on the real control plane.
    fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        let met = self.inner.connected().contains(&member);
        met.then(|| self.keys.lock().unwrap().get(&member).copied())
            .flatten()
    }
    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError> {
        self.inner.closest(place, n).await
    }
    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.inner.call(to, service, body, timeout).await
    }
    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>) {
        self.inner.serve(service, handler);
    }
    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError> {
        self.inner.open_stream(to, service).await
    }
    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        self.inner.accept_streams(service)
    }
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

pub struct World {
    prefix: String,
    namespaces: Vec<String>,
    net: MemoryNet,
    keys: Arc<Mutex<HashMap<MemberId, LinkKey>>>,
    hosts: u8,
    /// Whether planes count traffic.
    pub traffic: bool,
    /// The second byte of its network's addresses, and its hosts' interface: others for a second
    /// network on the same hosts.
    pub subnet: u8,
    pub device: &'static str,
    root: Option<(KeyPair, NetworkConfig)>,
}

/// One host: a plane in a namespace of its own, and its connector.
pub struct Host {
    pub member: MemberId,
    pub number: u8,
    pub subnet: u8,
    pub namespace: String,
    pub plane: Plane,
    pub connector: Arc<Connector>,
    /// Its place on the ring, in a world with one.
    pub ring: Option<(Arc<RingNet>, RingDriver)>,
    pub events: mpsc::Receiver<PlaneEvent>,
}

impl Host {
    pub fn overlay(&self) -> String {
        format!("10.{}.0.{}", self.subnet, self.number)
    }

    pub fn v6(&self) -> std::net::Ipv6Addr {
        v6_in(self.subnet, self.number)
    }

    pub fn exec(&self, command: &str) -> Output {
        sh(&format!("ip netns exec {} {command}", self.namespace))
    }

    pub fn route(&self) -> Route {
        Route {
            member: self.member,
            epoch: p2pvm_overlay::Epoch(0),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            sh(&format!("ip netns del {namespace}"));
        }
    }
}

pub fn within<T: Send>(namespace: &str, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                let file =
                    File::open(format!("/run/netns/{namespace}")).expect("the namespace exists");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("root enters it");
                body()
            })
            .join()
            .expect("no panic inside")
    })
}

impl World {
    pub fn new(one_way: Duration) -> Self {
        Self::bare(one_way)
    }

    fn bare(one_way: Duration) -> Self {
        let prefix = format!(
            "pl{}w{}",
            std::process::id(),
            WORLDS.fetch_add(1, Ordering::Relaxed)
        );
        let (net, keys) = (MemoryNet::new(one_way), Arc::default());
        let mut world = Self {
            prefix,
            namespaces: Vec::new(),
            net,
            keys,
            hosts: 0,
            traffic: true,
            subnet: 77,
            device: "p2pvm0",
            root: None,
        };
        let core = world.namespace("core");
        must(&format!(
            "ip -n {core} link add name wire0 type bridge && ip -n {core} link set wire0 up"
        ));
        world
    }

    /// A world whose members meet on a ring.
    pub fn with_ring(one_way: Duration) -> Self {
        let root = KeyPair::generate();
        let subnet = Ipv4Subnet::new([10, 77, 0, 0].into(), 16).expect("a subnet");
        let network =
            NetworkConfig::found(&root, "lab", subnet, UnixTime::now()).expect("a network");
        let mut world = Self::bare(one_way);
        world.root = Some((root, network));
        world
    }

    /// Cuts or heals what two members have of the control plane.
    pub fn set_cut(&self, a: MemberId, b: MemberId, cut: bool) {
        self.net.set_cut(a, b, cut);
    }

    /// Cuts or heals the wire between the two hosts, both ways.
    pub fn set_wire_cut(&self, a: &Host, b: &Host, cut: bool) {
        for (from, to) in [(a, b), (b, a)] {
            let verb = if cut { "replace" } else { "del" };
            let rule = format!(
                "ip -n {} route {verb} blackhole 198.18.0.{}/32",
                from.namespace, to.number
            );
            must(&rule);
        }
    }

    /// An empty namespace.
    pub fn namespace(&mut self, name: &str) -> String {
        let full = format!("{}{name}", self.prefix);
        must(&format!(
            "ip netns add {full} && ip -n {full} link set lo up"
        ));
        self.namespaces.push(full.clone());
        full
    }

    /// A host with the public or private address that its router's kind gives it.
    pub fn host(&mut self, nat: Nat) -> Host {
        self.host_after(nat, "true")
    }

    /// The same, after a command has been run there.
    pub fn host_after(&mut self, nat: Nat, command: &str) -> Host {
        self.hosts += 1;
        let n = self.hosts;
        let core = self.namespaces[0].clone();
        let namespace = self.namespace(&format!("h{n}"));
        let outer = match nat {
            Nat::None | Nat::NoUdp => namespace.clone(),
            _ => {
                let router = self.namespace(&format!("r{n}"));
                must(&format!(
                    "ip link add name lan netns {router} type veth peer name eth0 netns \
                        {namespace} && \
                     ip -n {router} addr add 192.168.{n}.1/24 dev lan && ip -n {router} link set \
                     lan up && \
                     ip -n {namespace} addr add 192.168.{n}.2/24 dev eth0 && ip -n {namespace} \
                     link set eth0 up && \
                     ip -n {namespace} route add default via 192.168.{n}.1 && \
                     ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1"
                ));
                let random = if nat == Nat::Symmetric {
                    "random,fully-random"
                } else {
                    ""
                };
                // A router drops what it did not ask for before tracking it, as home routers do.
                must(&format!(
                    "ip netns exec {router} nft 'table ip nat {{ chain post {{ type nat hook \
                        postrouting priority 100; oifname wan masquerade {random}; }}; \
                     chain inward {{ type filter hook input priority 0; iifname wan ct state new \
                     drop; }}; }}'"
                ));
                router
            }
        };
        must(&format!(
            "ip link add name p{n} netns {core} type veth peer name wan netns {outer} && ip -n \
                {core} link set p{n} master wire0 up && \
             ip -n {outer} addr add 198.18.0.{n}/24 dev wan && ip -n {outer} link set wan up"
        ));
        if nat == Nat::NoUdp {
            must(&format!(
                "ip netns exec {namespace} nft 'table ip t {{ chain o {{ type filter hook output \
                    priority 0; oifname wan meta l4proto udp drop; }}; \
                 chain i {{ type filter hook input priority 0; iifname wan meta l4proto udp drop; \
                 }}; }}'"
            ));
        }
        must(&format!("ip netns exec {namespace} {command}"));
        self.start(n, namespace)
    }

    /// A host in a namespace that somebody else made and takes down.
    pub fn place(&mut self, namespace: String) -> Host {
        self.hosts += 1;
        self.start(self.hosts, namespace)
    }

    fn start(&mut self, number: u8, namespace: String) -> Host {
        let member = MemberId([number; 32]);
        let secret = Zeroizing::new([number + 100; 32]);
        let public =
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes();
        self.keys.lock().unwrap().insert(member, LinkKey(public));
        let (sender, events) = mpsc::channel(1024);
        let (counted, subnet, device) = (self.traffic, self.subnet, self.device);
        let plane = within(&namespace, || {
            let config = PlaneConfig {
                me: member,
                link_secret: secret,
                udp_port: 0,
                device: device.into(),
                mtu: 1340,
                traffic: counted,
                network: format!("network{subnet}"),
                control_port: 4001,
            };
            let plane = Plane::start(config, sender).expect("the plane starts");
            let addresses = (
                ([10, subnet, 0, number].into(), 16),
                (v6_in(subnet, number), 64),
            );
            plane
                .set_host_addresses(Some(addresses.0), Some(addresses.1))
                .expect("the address is set");
            plane
        });
        let (connector, ring) = self.connect(&plane, member, number, public);
        Host {
            member,
            number,
            subnet,
            namespace,
            plane,
            connector,
            ring,
            events,
        }
    }

    /// The connector of a host's plane and, in a world with one, its place on the ring.
    fn connect(
        &self,
        plane: &Plane,
        member: MemberId,
        number: u8,
        public: [u8; 32],
    ) -> (Arc<Connector>, Option<(Arc<RingNet>, RingDriver)>) {
        let fabric = Arc::new(KeyedFabric {
            inner: self.net.add(member),
            keys: self.keys.clone(),
        });
        let options = ConnectOptions {
            stun: true,
            upnp: false,
            ..ConnectOptions::default()
        };
        match &self.root {
            None => (Connector::start(plane.clone(), fabric, options), None),
            Some((root, network)) => {
                let (from, to) = (UnixTime::now(), UnixTime::now().plus(3600));
                let (key, name) = (LinkKey(public), format!("host{number}"));
                let certificate = Issuer::root(root)
                    .certify(network, (member, key), &name, Rights::default(), (from, to))
                    .expect("a certificate");
                let net = RingNet::new(plane.clone());
                let papers = Credentials {
                    certificate,
                    trust: Arc::new(Trust::new(network.id)),
                };
                let connector = Connector::start_with_ring(
                    plane.clone(),
                    fabric.clone(),
                    options,
                    net.clone(),
                    papers,
                );
                let driver = RingDriver::start(
                    net.clone(),
                    connector.clone(),
                    fabric,
                    RingOptions {
                        far: Some(0),
                        ..RingOptions::default()
                    },
                );
                (connector, Some((net, driver)))
            }
        }
    }

    /// A guest of `host`: a namespace with one interface, whose other end is the host's port
    /// `tapN`.
    pub fn guest(&mut self, host: &Host, name: &str, vm: u8, epoch: u64) -> (String, GuestPort) {
        let guest = format!("{}{name}", self.prefix);
        if !self.namespaces.contains(&guest) {
            self.namespace(name);
        } else {
            sh(&format!("ip -n {guest} link del eth0"));
        }
        let (tap, address) = (format!("tap{vm}"), format!("10.77.1.{vm}"));
        let (mac, gateway) = ([2, 0, 0, 0, 1, vm], [2, 0, 0, 0, 0, 1]);
        let port = GuestPort {
            vm: p2pvm_overlay::VmId([vm; 32]),
            ifname: tap,
            mac,
            gateway_mac: gateway,
            gateway: std::net::Ipv4Addr::new(10, 255, 255, 254),
            v4: address.parse().expect("an address"),
            v6: Vec::new(),
            epoch: p2pvm_overlay::Epoch(epoch),
            bits_per_second: None,
        };
        self.wire_guest(host, &guest, &port);
        within(&host.namespace, || host.plane.attach_port(port.clone())).expect("the port opens");
        (guest, port)
    }

    /// Makes a guest's interface and its port.
    pub fn wire_guest(&self, host: &Host, guest: &str, port: &GuestPort) {
        let text = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
        let (tap, address) = (&port.ifname, port.v4);
        must(&format!(
            "ip link add name {tap} netns {} type veth peer name eth0 address {} netns {guest} && \
                ip -n {} link set {tap} up && \
             ip -n {guest} link set eth0 mtu 1340 && ip -n {guest} addr add {address}/16 dev eth0 \
             && ip -n {guest} link set eth0 arp off up",
            host.namespace,
            text(port.mac),
            host.namespace
        ));
        for n in 1..=self.hosts {
            must(&format!(
                "ip -n {guest} neigh replace 10.77.0.{n} lladdr {} dev eth0",
                text(port.gateway_mac)
            ));
        }
    }
}

/// A host's IPv6 address in the overlay.
pub fn v6(number: u8) -> std::net::Ipv6Addr {
    v6_in(77, number)
}

fn v6_in(subnet: u8, number: u8) -> std::net::Ipv6Addr {
    let digits = u16::from(subnet / 10 * 16 + subnet % 10);
    [0xfd00 | digits, 0, 0, 0, 0, 0, 0, u16::from(number)].into()
}

/// Tells every host where every other is.
pub fn introduce(hosts: &[&Host]) {
    for a in hosts {
        for b in hosts {
            a.plane
                .set_route(b.overlay().parse().expect("an address"), b.route());
            a.plane.set_route(b.v6().into(), b.route());
        }
    }
}
