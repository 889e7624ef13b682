//! The keeper on real kernels: each test has a network namespace of its own, which goes with its thread, and named ones beside it for
//! machines elsewhere. Needs root, ip, nft, iptables.

use p2pvm_host::{Board, Keeper, Level, Net, Wanted, journal::Journal, links::set_alias};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// What somebody removed is back within this.
const BACK: Duration = Duration::from_secs(10);

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn works(script: &str) -> bool {
    Command::new("sh").args(["-c", script]).output().unwrap().status.success()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < BACK, "{what} took longer than {BACK:?}\n{}", snapshot());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a test in a network namespace of its own.
fn inside(test: impl FnOnce() + Send + 'static) {
    let done = thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=0");
        test();
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A machine elsewhere, joined to this namespace by a veth pair.
struct Elsewhere(String);

impl Elsewhere {
    fn new(name: &str, here: &str, address: &str, there: &str) -> Self {
        let elsewhere = Self(format!("hn-{}-{name}", std::process::id()));
        let ns = &elsewhere.0;
        // `ip netns` mounts what it names: in this process's mount namespace, as every other.
        sh(&format!(
            "ip netns add {ns} && ip link add {here} type veth peer name eth0 netns {ns} && ip addr add {address} dev {here} &&
             ip link set {here} up && ip -n {ns} link set lo up && ip -n {ns} addr add {there} dev eth0 && ip -n {ns} link set eth0 up"
        ));
        elsewhere
    }

    fn sh(&self, script: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{script}'", self.0))
    }

    fn works(&self, script: &str) -> bool {
        works(&format!("ip netns exec {} sh -c '{script}'", self.0))
    }

    fn inside<T: Send + 'static>(&self, action: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            action()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// All that could be left behind; counters and handles change by themselves.
fn snapshot() -> String {
    sh(
        "ip -d addr | grep -Ev 'valid_lft|fe80' | sed 's/ tentative//'; ip route show table all | grep -v fe80; ip rule; nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//' | grep -v fe80; \
        iptables-legacy-save 2>/dev/null | grep -v '^[#:]'; \
        for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/rp_filter; do echo $f $(cat $f); done",
    )
}

/// An interface in the place of a network's TUN.
fn device(name: &str, address: &str) {
    sh(&format!(
        "ip link add {name} type veth peer name peer-{name} && ip addr add {address} dev {name} && ip link set {name} up && ip link set peer-{name} up"
    ));
}

fn wanted(n: u16) -> Wanted {
    Wanted {
        device: format!("p2pvm{n}"),
        network: format!("network{n}"),
        link_port: 4002 + 10 * n,
        control_port: 4001 + 10 * n,
        overlay: Some(Net::new(Ipv4Addr::new(10, 90 + n as u8, 0, 0), 16)),
        open_firewalls: true,
        ..Wanted::default()
    }
}

fn nets(texts: &[&str]) -> BTreeSet<Net> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

struct Network {
    keeper: Keeper,
    board: Board,
    wanted: Wanted,
    _dir: tempfile::TempDir,
}

impl Network {
    fn start(n: u16) -> Self {
        let wanted = wanted(n);
        device(&wanted.device, &format!("10.{}.0.1/16", 90 + n));
        let index = nix::net::if_::if_nametoindex(wanted.device.as_str()).unwrap();
        set_alias(index, &wanted.mark().to_string()).unwrap();
        let (dir, board) = (tempfile::tempdir().unwrap(), Board::default());
        let keeper = Keeper::start(wanted.clone(), Journal::at(dir.path().join("undo.json")), board.clone()).unwrap();
        Self { keeper, board, wanted, _dir: dir }
    }

    fn accept(&mut self, texts: &[&str]) {
        self.wanted.accepted = nets(texts);
        self.keeper.settle(self.wanted.clone());
    }

    fn offer(&mut self, texts: &[&str]) {
        self.wanted.offered = nets(texts);
        let report = self.keeper.settle(self.wanted.clone());
        assert_eq!(report.forwarding, None);
    }

    fn end(self) {
        self.keeper.close();
        assert!(!self._dir.path().join("undo.json").exists(), "nothing is left to undo");
        sh(&format!("ip link del {}", self.wanted.device));
    }
}

fn forwards(interface: &str) -> bool {
    sh(&format!("cat /proc/sys/net/ipv4/conf/{interface}/forwarding")).trim() == "1"
}

#[test]
fn own_sockets_go_around_accepted_routes_and_everything_else_takes_them() {
    inside(|| {
        // A member far away: its own address lies in the subnet that it offers.
        let far = Elsewhere::new("far", "eth0", "10.0.0.1/24", "10.0.0.2/24");
        far.sh("ip addr add 198.18.3.10/24 dev lo");
        sh("ip route add default via 10.0.0.2; sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1");
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["198.18.3.0/24", "198.18.128.0/17"]);
        assert!(sh("ip route get 198.18.3.10").contains("dev p2pvm0"), "{}", snapshot());
        let around = |how: &str| sh(&format!("ip route get 198.18.3.10 {how}"));
        for how in ["ipproto udp sport 4001", "ipproto udp sport 4002", "ipproto tcp sport 4001", "mark 0x70327076"] {
            assert!(around(how).contains("dev eth0 src 10.0.0.1"), "{how}: {}", around(how));
        }
        assert!(around("ipproto udp sport 4003").contains("dev p2pvm0"));

        // Packets there and back, with the strictest check of where they come from, and from the right address.
        let udp = far.inside(|| UdpSocket::bind("0.0.0.0:4002").unwrap());
        let tcp = far.inside(|| TcpListener::bind("0.0.0.0:4001").unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 9];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{} {length}", from.ip()).as_bytes(), from);
            }
        });
        thread::spawn(move || tcp.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"!"))));
        let to: SocketAddr = "198.18.3.10:4002".parse().unwrap();
        for port in [4001, 4002] {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send_to(b"hello", to).unwrap();
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).unwrap_or_else(|e| panic!("UDP from {port}: {e}\n{}", snapshot()));
            assert!(answer[..length].starts_with(b"10.0.0.1 "));
        }
        let other = UdpSocket::bind("0.0.0.0:0").unwrap();
        other.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        other.send_to(b"hello", to).unwrap();
        assert!(other.recv(&mut [0; 9]).is_err(), "what is not p2pvm's goes into the network");
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        )
        .unwrap();
        use std::os::fd::AsRawFd;
        nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::new(0, 0, 0, 0, 4001)).unwrap();
        nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::new(198, 18, 3, 10, 4001)).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.read_exact(&mut [0]).unwrap();

        // The default route moves, and comes in two halves as a VPN's: LANs of others are reached still, own sockets follow it.
        sh("ip link add up1 type veth peer name up1x && ip addr add 172.31.0.1/24 dev up1 && ip link set up1 up && ip link set up1x up &&
            ip route replace default via 172.31.0.2 && ip route add 0.0.0.0/1 via 172.31.0.2 && ip route add 128.0.0.0/1 via 172.31.0.2");
        assert!(sh("ip route get 198.18.3.10").contains("dev p2pvm0"));
        assert!(around("ipproto udp sport 4002").contains("dev up1"));
        // A route of this machine's own goes first.
        sh("ip route add 198.18.3.0/28 via 10.0.0.2");
        until("a part to go its own way", || sh("ip route get 198.18.3.10").contains("dev eth0"));
        assert!(sh("ip route get 198.18.3.99").contains("dev p2pvm0"));
        sh("ip route add 198.18.3.0/24 via 10.0.0.2");
        until("all to go its own way", || sh("ip route get 198.18.3.99").contains("dev eth0"));
        sh(
            "ip route del 198.18.3.0/24; ip route del 198.18.3.0/28; ip route del 0.0.0.0/1; ip route del 128.0.0.0/1; ip link del up1; ip route add default via 10.0.0.2",
        );
        network.accept(&[]);
        assert!(!sh("ip rule").contains("53"), "the rules go with the last route: {}", sh("ip rule"));
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn a_route_by_the_own_gateway_stays_out_of_an_accepted_one_around_it() {
    inside(|| {
        let _gateway = Elsewhere::new("gateway", "eth0", "198.18.4.10/24", "198.18.4.1/24");
        sh("ip route add default via 198.18.4.1");
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["198.18.0.0/16"]);
        assert!(sh("ip route get 198.18.3.10").contains("dev p2pvm0"), "{}", snapshot());
        // As a DHCP client or a person does it, without an interface.
        sh("ip route add 198.18.1.0/24 via 198.18.4.1");
        assert!(sh("ip route show 198.18.1.0/24").contains("via 198.18.4.1 dev eth0"), "{}", snapshot());
        until("its way", || sh("ip route get 198.18.1.10").contains("dev eth0"));
        // What a former release made, of another scope, goes too.
        sh("ip route add throw 198.18.9.0/24 proto 112 table $(ip rule | sed -n 's/.*lookup \\(18[0-9]*\\).*/\\1/p')");
        until("its end", || !snapshot().contains("throw 198.18.9.0"));
        sh("ip route del 198.18.1.0/24");
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn what_a_vpn_reaches_by_a_table_of_its_own_is_in_the_way_as_what_main_reaches() {
    inside(|| {
        let _vpn = Elsewhere::new("vpn", "wg0", "10.0.0.1/24", "10.0.0.2/24");
        let subnet = (Ipv4Addr::new(10, 50, 0, 0), 16);
        let found = || p2pvm_host::overlap(subnet).unwrap().map(|conflict| conflict.to_string()).unwrap_or_default();
        assert_eq!(found(), "");
        for (come, gone, said) in [
            (
                "ip route add 10.50.7.0/24 dev wg0 table 52; ip rule add pref 5270 lookup 52",
                "ip rule del pref 5270",
                "10.50.7.0/24 (by wg0)",
            ),
            (
                "ip route add 10.0.0.0/8 dev wg0 table 51820; ip rule add not fwmark 51820 lookup 51820",
                "ip rule del not fwmark 51820",
                "10.0.0.0/8 (by wg0)",
            ),
            ("ip route add blackhole 10.50.3.0/24", "ip route del blackhole 10.50.3.0/24", "10.50.3.0/24 (which leads nowhere)"),
            ("ip route add 10.50.9.0/24 dev wg0 table 7; ip rule add from 10.0.0.9 lookup 7", "ip rule del from 10.0.0.9", ""),
        ] {
            sh(come);
            assert!(found().ends_with(said) && found().is_empty() == said.is_empty(), "{come}: {}", found());
            sh(gone);
        }
        // An accepted subnet gives way to it too, wherever its rule stands.
        let mut network = Network::start(0);
        sh("ip route add 192.168.77.0/24 dev wg0 table 52; ip rule add pref 6000 lookup 52");
        network.accept(&["192.168.0.0/16", "192.168.77.0/25"]);
        assert!(
            sh("ip route get 192.168.77.2").contains("dev wg0") && sh("ip route get 192.168.78.2").contains("dev p2pvm0"),
            "{}",
            snapshot()
        );
        network.end();
    });
}

#[test]
fn rules_of_wg_quick_and_tailscale_go_on_working_beside_ours() {
    inside(|| {
        device("wg0", "10.200.0.2/24");
        device("ts0", "100.64.0.2/32");
        device("eth0", "10.0.0.1/24");
        sh("ip route add default via 10.0.0.2; ip route add 100.64.0.0/10 dev ts0 table 52;
            ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main; ip rule add pref 5270 lookup 52");
        let way = |to: &str| sh(&format!("ip route get {to}"));
        let wg_quick = "ip route add default dev wg0 table 51820; ip rule add not fwmark 51820 lookup 51820; \
                        ip rule add table main suppress_prefixlength 0";
        let mut network = Network::start(0);
        network.accept(&["192.168.7.0/24", "100.64.0.0/12"]);
        assert!(way("192.168.7.9").contains("dev p2pvm0"));
        assert!(way("100.64.3.4").contains("dev ts0"), "Tailscale's table goes before ours");
        sh(wg_quick);
        until("the routes to go before those of a VPN that came later", || way("192.168.7.9").contains("dev p2pvm0"));
        network.end();
        sh("ip rule del table main suppress_prefixlength 0; ip rule del not fwmark 51820; ip route flush table 51820");
        sh(wg_quick);
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["192.168.7.0/24", "100.64.0.0/12"]);
        assert!(way("192.168.7.9").contains("dev p2pvm0"));
        assert!(way("192.0.2.1").contains("dev wg0"), "everything else goes into the VPN");
        assert!(way("192.168.7.9 ipproto udp sport 4002").contains("dev wg0"), "own sockets too: a VPN under us");
        assert!(way("192.0.2.1 mark 51820").contains("dev eth0"), "the VPN's own packets do not");
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn what_somebody_removes_is_back_within_ten_seconds() {
    inside(|| {
        let lan = Elsewhere::new("lan", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let before = snapshot();
        let mut network = Network::start(0);
        network.accept(&["192.168.9.0/24"]);
        network.offer(&["192.168.77.0/24"]);
        let rules = sh("nft list table ip p2pvm_p2pvm0");
        let whole = || {
            works("ip route get 192.168.9.1 | grep -q p2pvm0")
                && sh("ip rule").matches("proto 112").count() == 6
                && forwards("lan0")
                && forwards("p2pvm0")
                && works("nft list table ip p2pvm_p2pvm0")
                && sh("nft list table ip p2pvm_p2pvm0") == rules
        };
        assert!(whole(), "{}", snapshot());
        for removal in [
            "ip route flush dev p2pvm0 table all; ip route add 10.90.0.0/16 dev p2pvm0",
            "ip rule del pref 5301",
            "ip rule del pref 5300; ip rule del pref 5300",
            "ip rule del pref 5302",
            "ip rule add pref 5301 lookup 1879048201 proto 112",
            "nft flush ruleset",
            "nft flush chain ip p2pvm_p2pvm0 through",
            "nft insert rule ip p2pvm_p2pvm0 through accept",
            "sysctl -qw net.ipv4.conf.lan0.forwarding=0",
            "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0",
            "ip link set p2pvm0 down; ip link set p2pvm0 up",
        ] {
            sh(removal);
            until(removal, whole);
        }
        network.end();
        drop(lan);
        until("the veth pair to go", || !works("ip link show lan0"));
        assert_eq!(
            sh("ip rule; nft list ruleset"),
            before.lines().filter(|l| l.contains("lookup")).map(|l| format!("{l}\n")).collect::<String>()
        );
    });
}

#[test]
fn networks_that_offer_through_one_lan_undo_only_their_own_part() {
    inside(|| {
        let _lan = Elsewhere::new("two", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let before = snapshot();
        let (mut a, mut b) = (Network::start(0), Network::start(1));
        a.offer(&["192.168.77.0/24"]);
        b.offer(&["192.168.77.0/24"]);
        a.accept(&["192.168.9.0/24"]);
        b.accept(&["192.168.9.0/24", "192.168.10.0/24"]);
        for port in [4002, 4012] {
            assert!(sh(&format!("ip route get 192.168.10.1 ipproto udp sport {port} 2>&1 || true")).contains("unreachable"));
        }
        a.end();
        assert!(forwards("lan0") && sh("ip route get 192.168.9.1").contains("p2pvm1"), "{}", snapshot());
        assert!(sh("nft list ruleset").contains("p2pvm_p2pvm1"));
        b.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn containers_that_come_later_are_not_cut_off_and_keep_their_forwarding() {
    inside(|| {
        let lan = Elsewhere::new("docker", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        lan.sh("ip route add default via 192.168.77.1");
        let container = Elsewhere::new("box", "br0", "172.30.0.1/24", "172.30.0.2/24");
        container.sh("ip route add default via 172.30.0.1");
        let pings = || container.works("ping -n -c 1 -W 1 192.168.77.9");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        assert!(!pings(), "nothing but p2pvm forwards here");
        assert!(!lan.works("ping -n -c 1 -W 1 172.30.0.2"), "the LAN gets nowhere that it did not before");
        sh("sysctl -qw net.ipv4.ip_forward=1; nft add table ip nat; nft add chain ip nat post \"{ type nat hook postrouting priority srcnat; }\";
            nft add rule ip nat post ip saddr 172.30.0.0/24 oifname lan0 masquerade");
        until("the container to get out", pings);
        let inward = || lan.works("ping -n -c 1 -W 1 172.30.0.2");
        until("the guard to go", inward);
        network.offer(&[]);
        assert!(pings() && forwards("lan0"), "{}", snapshot());
        network.offer(&["192.168.77.0/24"]);
        network.end();
        assert!(pings() && forwards("lan0") && forwards("br0"), "{}", snapshot());
        assert!(!sh("nft list ruleset").contains("p2pvm"));
    });
}

#[test]
fn containers_reach_members_and_are_reached_at_published_ports_while_a_lan_is_offered() {
    inside(|| {
        let _lan = Elsewhere::new("cont", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let container = Elsewhere::new("cbox", "br0", "172.30.0.1/24", "172.30.0.2/24");
        container.sh("ip route add default via 172.30.0.1");
        sh("sysctl -qw net.ipv4.ip_forward=1; nft -f - <<'E'
            table ip nat {
                chain post { type nat hook postrouting priority srcnat; ip saddr 172.30.0.0/24 oifname != \"br0\" masquerade; }
                chain pre { type nat hook prerouting priority dstnat; tcp dport 8080 fib daddr type local dnat to 172.30.0.2:80; }
            }
E");
        let mut network = Network::start(0);
        // The far end of the interface is a member.
        let member = Elsewhere::new("cmem", "unused0", "192.168.99.1/24", "192.168.99.9/24");
        sh(&format!(
            "ip link set peer-p2pvm0 netns {0}; ip -n {0} addr add 10.90.0.2/16 dev peer-p2pvm0; ip -n {0} link set peer-p2pvm0 up",
            member.0
        ));
        let listener = container.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
        thread::spawn(move || listener.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"!"))));
        let published = || {
            member.inside(|| {
                let to: SocketAddr = "10.90.0.1:8080".parse().unwrap();
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2));
                stream.is_ok_and(|mut stream| stream.read_exact(&mut [0]).is_ok())
            })
        };
        let outward = || container.works("ping -n -c 1 -W 2 10.90.0.2");
        assert!(published() && outward(), "before anything is offered\n{}", snapshot());
        network.offer(&["192.168.77.0/24"]);
        assert!(published(), "a published port\n{}", snapshot());
        assert!(outward(), "answers to a container\n{}", snapshot());
        // What nobody published stays closed to members.
        member.sh("ip route add 172.30.0.0/24 via 10.90.0.1");
        assert!(!member.works("ping -n -c 1 -W 1 172.30.0.2"));
        network.end();
    });
}

#[test]
fn dockers_and_ufws_chains_are_opened_put_back_and_left_as_they_were() {
    for (chains, forward_chain) in [
        (
            "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN",
            "DOCKER-USER",
        ),
        (
            "iptables -P FORWARD DROP; iptables -P INPUT DROP; iptables -N ufw-before-input; iptables -A INPUT -j ufw-before-input;
          iptables -A ufw-before-input -i lo -j ACCEPT; iptables -A INPUT -j REJECT",
            "FORWARD",
        ),
    ] {
        inside(move || {
            let _lan = Elsewhere::new(&forward_chain.to_lowercase()[..3], "lan0", "192.168.77.1/24", "192.168.77.9/24");
            sh(&chains.replace("iptables ", "iptables-nft "));
            let before = snapshot();
            let mut network = Network::start(0);
            network.offer(&["192.168.77.0/24"]);
            let open = || {
                let rules = sh("iptables-nft -S");
                rules.contains(&format!("-A {forward_chain} -i p2pvm0 -m comment --comment \"p2pvm p2pvm0 in\" -j ACCEPT"))
                    && rules.contains(&format!("-A {forward_chain} -i lan0 -o p2pvm0"))
            };
            assert!(open(), "{}", snapshot());
            assert_eq!(sh("iptables-nft -S").contains("-A INPUT -i p2pvm0"), forward_chain == "FORWARD");
            assert_eq!(network.board.worst(), Level::Ok, "{:?}", network.board.all());
            // The owner loads its rules anew.
            let input = if forward_chain == "FORWARD" { "iptables-nft -F INPUT" } else { "" };
            sh(&format!("iptables-nft -F {forward_chain}; {input}"));
            until("the passages to be back", open);
            sh(&format!("iptables-nft -I {forward_chain} -j DROP"));
            until("the passages to be first again", || {
                let rules = sh(&format!("iptables-nft -S {forward_chain}"));
                rules.find("p2pvm0 in").unwrap_or(usize::MAX) < rules.find("-j DROP").unwrap()
            });
            network.end();
            assert!(!sh("nft list ruleset").contains("p2pvm"), "{}", snapshot());
            sh(&format!("iptables-nft -D {forward_chain} -j DROP"));
            if forward_chain == "DOCKER-USER" {
                sh("iptables-nft -A DOCKER-USER -j RETURN");
            } else {
                sh("iptables-nft -A INPUT -j ufw-before-input; iptables-nft -A INPUT -j REJECT");
            }
            assert_eq!(snapshot(), before);
        });
    }
}

#[test]
fn iptables_legacy_is_opened_and_left_as_it_was() {
    inside(|| {
        let _lan = Elsewhere::new("legacy", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh("iptables-legacy -P FORWARD DROP; iptables-legacy -A INPUT -j REJECT");
        let before = snapshot();
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let open = || {
            let rules = sh("iptables-legacy -S");
            rules.contains("-A INPUT -i p2pvm0") && rules.contains("-A FORWARD -i p2pvm0") && rules.contains("-A FORWARD -i lan0 -o p2pvm0")
        };
        assert!(open(), "{}", snapshot());
        assert_eq!(network.board.worst(), Level::Ok, "{:?}", network.board.all());
        network.end();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn a_firewall_that_cannot_be_opened_is_named_with_the_command_that_helps() {
    inside(|| {
        let _lan = Elsewhere::new("named", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        sh("nft -f - <<E
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10; policy accept; ct state established,related accept; iifname lo accept; reject with icmpx admin-prohibited; }
}
table inet mine {
  chain through { type filter hook forward priority 0; policy drop; }
}
E");
        let before = sh("nft list ruleset");
        let mut network = Network::start(0);
        network.offer(&["192.168.77.0/24"]);
        let found = || network.board.all().into_iter().filter(|(area, _)| *area == "firewall").map(|(_, f)| f).collect::<Vec<_>>();
        let all = found();
        assert!(all.iter().any(|f| f.found.contains("chain filter_INPUT of table inet firewalld")), "{all:?}");
        assert!(
            all.iter().any(|f| f.level == Level::Failed && f.found.contains("chain through of table inet mine (policy drop)")),
            "{all:?}"
        );
        assert_eq!(network.keeper.report().blocked.len(), 1);
        let ours = sh("nft list ruleset");
        assert!(ours.contains("chain through {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}"), "left alone: {ours}");
        for finding in all {
            sh(&finding.advice);
        }
        until("the commands to have helped", || found().is_empty());
        network.end();
        sh("nft flush chain inet mine through");
        assert!(before.contains("inet mine") && !sh("nft list ruleset").contains("p2pvm_"));
    });
}

#[test]
fn forwarding_that_cannot_be_set_up_says_why_and_leaves_nothing_switched_on() {
    inside(|| {
        let _lan = Elsewhere::new("fail", "lan0", "192.168.77.1/24", "192.168.77.9/24");
        let network = Network::start(0);
        let wanted = Wanted { offered: nets(&["192.168.77.0/24"]), device: "p2pvm0\" nonsense".into(), ..network.wanted.clone() };
        let report = network.keeper.settle(wanted);
        assert!(report.forwarding.as_deref().is_some_and(|why| why.contains("nft")), "{report:?}");
        assert!(!forwards("lan0"));
        network.keeper.settle(network.wanted.clone());
        network.end();
        assert!(!forwards("lan0"));
    });
}

#[test]
fn a_lan_that_comes_up_in_the_networks_own_subnet_is_said() {
    inside(|| {
        let network = Network::start(0);
        assert_eq!(network.board.worst(), Level::Ok, "{:?}", network.board.all());
        device("wlan0", "10.90.7.5/24");
        let said = || network.board.all().iter().any(|(area, f)| *area == "routes" && f.found.contains("wlan0 (10.90.7.5/24)"));
        until("the overlap to be said", said);
        sh("ip link del wlan0");
        until("it to be settled", || !said());
        network.end();
    });
}
