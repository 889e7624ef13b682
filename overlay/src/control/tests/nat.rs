//! Control hosts in network namespaces: behind real NATs, and alone in one to weigh idle traffic.
//! Needs root and nftables. A host is a thread inside its namespace.

use super::*;
use crate::underlay::Underlay;
use std::{fs::File, os::fd::AsFd, process::Command, thread};

/// Namespaces named after this process, deleted when dropped, whatever happens.
struct Namespaces(Vec<String>);

impl Namespaces {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn name(short: &str) -> String {
        format!("p2c{}-{short}", std::process::id())
    }

    fn add(&mut self, short: &str) {
        let name = Self::name(short);
        sh(&format!("ip netns add {name}"));
        self.0.push(name);
        inside(short, "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1");
    }

    /// Connects two namespaces; each end gets an interface named after the other end, and an
    /// address.
    fn link(&self, (a, a_address): (&str, &str), (b, b_address): (&str, &str)) {
        let (a_name, b_name) = (Self::name(a), Self::name(b));
        sh(&format!(
            "ip link add {b} netns {a_name} type veth peer name {a} netns {b_name}"
        ));
        inside(
            a,
            &format!("ip addr add {a_address} dev {b}; ip link set {b} up"),
        );
        inside(
            b,
            &format!("ip addr add {b_address} dev {a}; ip link set {a} up"),
        );
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn sh(script: &str) {
    assert!(
        Command::new("sh")
            .args(["-ec", script])
            .status()
            .unwrap()
            .success(),
        "{script}"
    );
}

fn inside(namespace: &str, script: &str) {
    sh(&format!(
        "ip netns exec {} sh -ec '{script}'",
        Namespaces::name(namespace)
    ));
}

/// Runs `work` on a thread of its own inside the namespace, for as long as it likes.
fn within<T: Send + 'static>(
    namespace: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> thread::JoinHandle<T> {
    let path = format!("/run/netns/{}", Namespaces::name(namespace));
    thread::spawn(move || {
        nix::sched::setns(
            File::open(path).unwrap().as_fd(),
            nix::sched::CloneFlags::CLONE_NEWNET,
        )
        .unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    })
}

/// Starts a host inside a namespace; it runs until the process ends.
async fn start_in(namespace: &str, config: ControlConfig) -> Arc<Control> {
    let (sender, started) = oneshot::channel();
    within(namespace, async move {
        let _ = sender.send(Control::start(config).await.unwrap());
        std::future::pending::<()>().await;
    });
    started.await.unwrap()
}

/// A site behind a router: its one host is 192.168.N.2, its router's public address 198.18.N.2.
fn site(namespaces: &mut Namespaces, name: &str, n: u8, rules: &str) {
    let router = format!("{name}r");
    namespaces.add(name);
    namespaces.add(&router);
    namespaces.link(
        ("core", &format!("198.18.{n}.1/24")),
        (&router, &format!("198.18.{n}.2/24")),
    );
    namespaces.link(
        (&router, &format!("192.168.{n}.1/24")),
        (name, &format!("192.168.{n}.2/24")),
    );
    inside(&router, &format!("ip route add default via 198.18.{n}.1"));
    inside(name, &format!("ip route add default via 192.168.{n}.1"));
    inside(&router, &format!("printf \"%s\" \"{rules}\" | nft -f -"));
}

/// A router's rules: its address for all inside, and nothing in that was not asked for. What comes
/// unasked for the router itself is dropped too, or its entry would take the port of a mapping to
/// come.
fn rules(masquerade: &str, more: &str) -> String {
    format!(
        "table ip n {{
            chain nat {{ type nat hook postrouting priority 100; oifname core {masquerade}; }}
            chain through {{ type filter hook forward priority 0; {more} iifname core ct state \
            new drop; }}
            chain in {{ type filter hook input priority 0; iifname core ct state new drop; }}
        }}"
    )
    .replace('}', "\n}")
}

/// Two public hosts, and sites with every kind of NAT.
fn internet() -> Namespaces {
    let mut namespaces = Namespaces::new();
    namespaces.add("core");
    for (name, n) in [("pa", 1), ("pb", 2)] {
        namespaces.add(name);
        namespaces.link(
            ("core", &format!("198.18.{n}.1/24")),
            (name, &format!("198.18.{n}.2/24")),
        );
        inside(name, &format!("ip route add default via 198.18.{n}.1"));
    }
    site(&mut namespaces, "cone1", 3, &rules("masquerade", ""));
    site(&mut namespaces, "cone2", 4, &rules("masquerade", ""));
    site(
        &mut namespaces,
        "sym1",
        5,
        &rules("masquerade random,fully-random", ""),
    );
    site(
        &mut namespaces,
        "sym2",
        6,
        &rules("masquerade random,fully-random", ""),
    );
    site(
        &mut namespaces,
        "noudp",
        7,
        &rules("masquerade", "meta l4proto udp drop;"),
    );
    namespaces
}

/// A member at each place, which joins through the first.
async fn members_at(world: &World) -> Vec<(&'static str, Arc<Control>)> {
    let anywhere: Vec<IpAddr> = vec![Ipv4Addr::UNSPECIFIED.into()];
    let mut all: Vec<(&str, Arc<Control>)> = Vec::new();
    for name in ["pa", "pb", "cone1", "cone2", "sym1", "sym2", "noudp"] {
        let identity = Identity::generate();
        let certificate = world.certify(&identity, name, false);
        let bootstrap = all
            .first()
            .map(|(_, c)| c.contact_addrs())
            .unwrap_or_default();
        let config = world.config(identity, certificate, bootstrap);
        let control = start_in(
            name,
            ControlConfig {
                listen_on: anywhere.clone(),
                listen_port: 7001,
                ..config
            },
        )
        .await;
        control.serve("reverse", Arc::new(Reverse));
        eventually("it knows its addresses", || {
            control.contact_addrs().len() >= 2
        })
        .await;
        all.push((name, control));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_behind_every_kind_of_nat_are_reached_by_all() {
    let (_namespaces, world) = (internet(), World::new(1));
    let all = members_at(&world).await;
    let hosts: Vec<&Control> = all.iter().map(|(_, c)| c.as_ref()).collect();
    let started = Instant::now();
    meshed(&hosts).await;
    println!("full mesh after {:?}", started.elapsed());
    tokio::time::sleep(Duration::from_secs(8)).await;
    for (from_name, from) in &all {
        for (to_name, to) in all.iter().filter(|(name, _)| name != from_name) {
            let answer = from.call(to.me(), "reverse", vec![1, 2], LONG).await;
            assert_eq!(answer, Ok(vec![2, 1]), "{from_name} to {to_name}");
            let status = from
                .peers()
                .into_iter()
                .find(|p| p.member == to.me())
                .unwrap();
            let relay = status
                .relayed
                .and_then(|r| all.iter().find(|(_, c)| c.me() == r))
                .map(|(name, _)| *name);
            println!(
                "{from_name} -> {to_name}: {} {:?}",
                relay.map_or("direct".into(), |r| format!("via {r}")),
                status.rtt
            );
            if from_name.starts_with('p') || to_name.starts_with('p') {
                assert_eq!(relay, None, "{from_name} to {to_name} needs no relay");
            }
        }
    }
    stream_50_mb(hosts[4], hosts[5]).await;
    stream_50_mb(hosts[6], hosts[4]).await;
}

fn received_bytes() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let lo = table
        .lines()
        .find(|l| l.trim_start().starts_with("lo:"))
        .unwrap();
    lo.split(':')
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find(|l| l.starts_with("VmRSS"))
        .and_then(|l| l.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn six_idle_members_each_use_less_than_a_kilobyte_per_second() {
    const NODES: u64 = 6;
    const SECONDS: u64 = 12;
    let mut namespaces = Namespaces::new();
    namespaces.add("idle");
    let (rate, kib) = within("idle", async {
        let before = resident_kib();
        let world = World::new(1);
        let mut nodes = vec![world.first().await];
        for i in 1..NODES {
            nodes.push(world.member(&format!("n{i}"), &[&nodes[0]]).await);
        }
        let all: Vec<&Control> = nodes.iter().map(Arc::as_ref).collect();
        meshed(&all).await;
        tokio::time::sleep(LONG).await;
        let bytes = received_bytes();
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        (
            (received_bytes() - bytes) / SECONDS,
            (resident_kib() - before) / NODES as usize,
        )
    })
    .join()
    .unwrap();
    // What one sends, another receives: each node's share counts twice.
    let per_node = 2 * rate / NODES;
    println!(
        "idle: {per_node} B/s sent and received by each of {NODES} members; {kib} KiB resident each"
    );
    assert!(per_node < 1000, "{per_node} B/s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_behind_this_machines_tunnels_is_told_or_dialled() {
    let mut namespaces = Namespaces::new();
    namespaces.add("u1");
    namespaces.add("u2");
    namespaces.link(("u1", "198.18.1.1/24"), ("u2", "198.18.1.2/24"));
    // What another network's tunnel looks like on both machines.
    let (one, two) = (Namespaces::name("u1"), Namespaces::name("u2"));
    sh(&format!(
        "ip link add p2pvm1 netns {one} type veth peer name p2pvm1 netns {two}"
    ));
    for (name, n) in [("u1", 1), ("u2", 2)] {
        let alias = "ip link set p2pvm1 alias \"p2pvm/1 network=other link=5002 control=5001\"";
        inside(
            name,
            &format!("{alias}; ip addr add 10.88.0.{n}/16 dev p2pvm1; ip link set p2pvm1 up"),
        );
    }
    let world = World::new(1);
    let anywhere: Vec<IpAddr> = vec![Ipv4Addr::UNSPECIFIED.into()];
    let start =
        async |name: &'static str, namespace: &'static str, port: u16, bootstrap: Vec<String>| {
            let identity = Identity::generate();
            let certificate = world.certify(&identity, name, false);
            let config = world.config(identity, certificate, bootstrap);
            start_in(
                namespace,
                ControlConfig {
                    listen_on: anywhere.clone(),
                    listen_port: port,
                    ..config
                },
            )
            .await
        };
    let first = start("first", "u1", 7001, Vec::new()).await;
    eventually("it knows its addresses", || {
        first.contact_addrs().len() >= 2
    })
    .await;
    let told = [first.contact_addrs(), first.listen_addrs()].concat();
    assert!(
        told.iter().all(|address| !address.contains("10.88.")),
        "{told:?}"
    );
    let outer = first.contact_addrs();
    let inner: Vec<String> = outer
        .iter()
        .map(|address| address.replace("198.18.1.1", "10.88.0.1"))
        .collect();

    let dialler = start("dialler", "u2", 7002, inner.clone()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        dialler.connected().is_empty(),
        "it has dialled through the tunnel"
    );
    // A machine that does not know its own tunnel for one: it is not let in.
    inside("u2", "ip link set p2pvm1 alias \"\"");
    let caller = start("caller", "u2", 7003, inner).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        caller.connected().is_empty() && first.connected().is_empty(),
        "it was let in through the tunnel"
    );
    let other = start("other", "u2", 7004, outer).await;
    meshed(&[&first, &other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_goes_around_accepted_routes_also_by_tcp_alone() {
    for udp in [true, false] {
        let mut namespaces = Namespaces::new();
        namespaces.add("r1");
        namespaces.add("r2");
        namespaces.link(("r1", "198.18.1.1/24"), ("r2", "198.18.1.2/24"));
        // As the keeper makes it: all the world is behind a network that this machine is in, but
        // for its own sockets.
        let accepted = "ip link add p2pvm0 type veth peer name far; ip addr add 10.88.0.2/16 dev \
            p2pvm0; ip link set p2pvm0 up; \
            ip link set p2pvm0 alias \"p2pvm/1 network=other link=5002 control=5001\"; ip link \
            set far up; \
            ip route add 0.0.0.0/1 dev p2pvm0 table 7000; ip route add 128.0.0.0/1 dev p2pvm0 \
            table 7000; \
            ip rule add pref 5302 nop; ip rule add pref 5300 fwmark 0x70327076 goto 5302; ip rule \
            add pref 5301 lookup 7000";
        inside(
            "r2",
            &format!(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
                    net.ipv6.conf.default.disable_ipv6=1; {accepted}"
            ),
        );
        if !udp {
            inside(
                "r1",
                "nft add table ip n; nft add chain ip n i \"{ type filter hook input priority 0; \
                    }\"; nft add rule ip n i meta l4proto udp drop",
            );
        }
        let world = World::new(1);
        let identity = Identity::generate();
        let certificate = world.certify(&identity, "first", false);
        let config = world.config(identity, certificate, Vec::new());
        let listens = ControlConfig {
            listen_on: vec![Ipv4Addr::UNSPECIFIED.into()],
            listen_port: 7001,
            ..config
        };
        let first = start_in("r1", listens).await;
        eventually("it knows its addresses", || {
            first.contact_addrs().len() >= 2
        })
        .await;
        let identity = Identity::generate();
        let certificate = world.certify(&identity, "dialler", false);
        let config = world.config(identity, certificate, first.contact_addrs());
        // It listens nowhere: each dial leaves from a port that no rule knows.
        let (underlay, looked) = (Underlay::default(), oneshot::channel());
        let look = underlay.clone();
        within("r2", async move { looked.0.send(look.renew()).unwrap() });
        assert!(looked.1.await.unwrap());
        let dialler = start_in(
            "r2",
            ControlConfig {
                listen_on: Vec::new(),
                underlay,
                ..config
            },
        )
        .await;
        meshed(&[&first, &dialler]).await;
        let sent = "test $(cat /sys/class/net/p2pvm0/statistics/tx_packets) = 0";
        inside("r2", sent);
    }
}
