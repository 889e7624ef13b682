//! A hostile guest on `a`: frames that its driver would not send, from its own end of the TAP.

use super::{
    Attempt, Stage,
    frames::{self, ARP, BROADCAST, IPV4, IPV6, Tap},
};
use crate::common::dig;
use p2pvm_dhcp::GATEWAY_MAC;
use p2pvm_overlay::membership::vm_mac;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

/// What is delivered is heard by then: a delivered packet takes some milliseconds here.
const SILENCE: Duration = Duration::from_millis(1200);
/// How much a flood may leave in the daemon's memory, in bytes.
const LEFT: u64 = 48 << 20;
const PORT: u16 = 7777;

pub const ATTEMPTS: &[Attempt] = &[
    ("(its own packets, which pass)", own_packets),
    ("another host's IPv4 address as source", anothers_source),
    ("other impossible IPv4 sources", impossible_sources),
    ("another's IPv6 address as source", anothers_v6_source),
    ("ARP answers for the gateway and for hosts", arp_spoofing),
    ("DHCP offers of its own", dhcp_spoofing),
    ("router advertisements", router_advertisements),
    (
        "neighbour advertisements for others",
        neighbour_advertisements,
    ),
    ("its host's address on the LAN", hosts_lan_address),
    ("169.254.169.254", metadata_address),
    ("its host's loopback addresses", loopback),
    ("malformed virtio-net headers", malformed_headers),
    ("frames of every length and kind", odd_frames),
    ("thousands of questions for names", dns_flood),
    ("thousands of ARP and DHCP requests", request_flood),
    ("packets as fast as it can", packet_flood),
    ("files in its run directory", run_directory),
];

struct Guest<'s> {
    stage: &'s Stage,
    tap: Tap,
    mac: [u8; 6],
    v4: IpAddr,
    v6: IpAddr,
}

fn guest(stage: &Stage) -> Guest<'_> {
    Guest {
        stage,
        tap: Tap::of(&stage.lab, "a"),
        mac: vm_mac(stage.vm()),
        v4: stage.web.address.parse().unwrap(),
        v6: stage.rogue.network.vm_v6(stage.vm()).into(),
    }
}

impl Guest<'_> {
    /// Sends a UDP packet to the gateway's or another Ethernet address.
    fn udp(&self, mac: [u8; 6], from: (IpAddr, u16), to: (IpAddr, u16), content: &[u8]) {
        let (kind, packet) = frames::udp(from, to, content);
        self.tap
            .send(&frames::ethernet(mac, self.mac, kind, &packet));
    }

    fn gateway(&self) -> Ipv4Addr {
        self.stage.rogue.network.subnet.gateway()
    }

    fn host_v4(&self, host: &str) -> IpAddr {
        super::address(&self.stage.lab, host).parse().unwrap()
    }

    fn host_v6(&self, host: &str) -> IpAddr {
        let status = self.stage.lab.status(host).unwrap();
        status.address_v6.parse().unwrap()
    }

    /// Whether a packet of it to a port of `b` is heard there.
    fn is_heard(&self, from: IpAddr, to: IpAddr) -> bool {
        let ear = listen(self.stage, "b", PORT);
        let began = Instant::now();
        while began.elapsed() < SILENCE {
            self.udp(GATEWAY_MAC, (from, PORT), (to, PORT), b"!");
            if hears(&ear, Duration::from_millis(100)) {
                return true;
            }
        }
        false
    }
}

/// A socket of a host, on all its addresses of both families.
fn listen(stage: &Stage, host: &str, port: u16) -> UdpSocket {
    let bound = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
    stage.lab.testbed().inside(host, bound).unwrap().unwrap()
}

fn hears(ear: &UdpSocket, limit: Duration) -> bool {
    ear.set_read_timeout(Some(limit)).unwrap();
    ear.recv(&mut [0; 64]).is_ok()
}

fn own_packets(stage: &Stage) {
    let guest = guest(stage);
    assert!(guest.is_heard(guest.v4, guest.host_v4("b")));
    assert!(guest.is_heard(guest.v6, guest.host_v6("b")));
}

fn anothers_source(stage: &Stage) {
    let guest = guest(stage);
    for host in super::DAEMONS {
        let heard = guest.is_heard(guest.host_v4(host), guest.host_v4("b"));
        assert!(!heard, "as {host}");
    }
}

fn impossible_sources(stage: &Stage) {
    let guest = guest(stage);
    let mut sources = [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
    ]
    .map(|text| text.parse::<IpAddr>().unwrap())
    .to_vec();
    sources.push(guest.gateway().into());
    for source in sources {
        assert!(!guest.is_heard(source, guest.host_v4("b")), "{source}");
    }
}

fn anothers_v6_source(stage: &Stage) {
    let guest = guest(stage);
    let mut sources = ["::", "::1", "fe80::1", "ff02::1", "2001:db8::1"]
        .map(|text| text.parse::<IpAddr>().unwrap())
        .to_vec();
    sources.extend([guest.host_v6("a"), guest.host_v6("c")]);
    for source in sources {
        assert!(!guest.is_heard(source, guest.host_v6("b")), "{source}");
    }
}

fn on(stage: &Stage, host: &str, script: &str) -> String {
    crate::common::run(&stage.lab, host, script)
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    ip.to_string().parse().unwrap()
}

fn arp_spoofing(stage: &Stage) {
    let guest = guest(stage);
    let lan: Ipv4Addr = lan_address(stage, "a");
    for ip in [
        guest.gateway(),
        v4(guest.host_v4("a")),
        v4(guest.host_v4("b")),
        lan,
    ] {
        for operation in [1, 2] {
            let own = (guest.mac, ip);
            for to in [(BROADCAST, ip), (GATEWAY_MAC, guest.gateway())] {
                let message = frames::arp(operation, own, to);
                guest
                    .tap
                    .send(&frames::ethernet(to.0, guest.mac, ARP, &message));
            }
        }
    }
    stage.assert_guest_reached();
    stage.assert_reached("a");
    let mac = guest.mac.map(|byte| format!("{byte:02x}")).join(":");
    let known = neighbours(stage);
    assert!(!known.contains(&mac), "{known}");
}

fn dhcp_spoofing(stage: &Stage) {
    let guest = guest(stage);
    let ears = super::DAEMONS.map(|host| listen(stage, host, 68));
    // BOOTREPLY, then nothing of interest: no client hears it.
    let mut offer = vec![0; 300];
    offer[..4].copy_from_slice(&[2, 1, 6, 0]);
    offer[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let everyone = IpAddr::from([255; 4]);
    for _ in 0..20 {
        for source in [guest.v4, guest.gateway().into()] {
            guest.udp(BROADCAST, (source, 67), (everyone, 68), &offer);
            guest.udp(GATEWAY_MAC, (source, 67), (everyone, 68), &offer);
        }
    }
    for (ear, host) in ears.iter().zip(super::DAEMONS) {
        assert!(!hears(ear, SILENCE), "{host}");
    }
    stage.assert_guest_reached();
}

/// The routes of the daemons' hosts, without what counts down in them.
fn routes(stage: &Stage) -> Vec<String> {
    let script = "ip -4 route; ip -6 route | sed 's/ expires [0-9]*sec//'";
    super::DAEMONS.map(|host| on(stage, host, script)).to_vec()
}

/// What the daemons' hosts know of their neighbours.
fn neighbours(stage: &Stage) -> String {
    super::DAEMONS
        .map(|host| on(stage, host, "ip neigh; ip -6 neigh"))
        .concat()
}

fn send_icmpv6(guest: &Guest<'_>, from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) {
    let packet = frames::icmpv6(from, to, message);
    let o = to.octets();
    let multicast = [0x33, 0x33, o[12], o[13], o[14], o[15]];
    for mac in [multicast, GATEWAY_MAC, BROADCAST] {
        guest
            .tap
            .send(&frames::ethernet(mac, guest.mac, IPV6, &packet));
    }
}

fn router_advertisements(stage: &Stage) {
    let guest = guest(stage);
    let before = routes(stage);
    // Type 134, hop limit 64, a day; a prefix of 64 bits with both flags.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([
        3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80, 0, 0, 0, 0,
    ]);
    let prefix: Ipv6Addr = "2001:db8:bad::".parse().unwrap();
    message.extend(prefix.octets());
    for from in ["fe80::1", "fe80::bad"] {
        let from: Ipv6Addr = from.parse().unwrap();
        for _ in 0..5 {
            send_icmpv6(&guest, from, "ff02::1".parse().unwrap(), &message);
        }
    }
    std::thread::sleep(SILENCE);
    let after = routes(stage);
    assert!(!after.concat().contains("2001:db8:bad"), "{after:?}");
    assert_eq!(after, before);
}

fn neighbour_advertisements(stage: &Stage) {
    let guest = guest(stage);
    let mac = guest.mac.map(|byte| format!("{byte:02x}")).join(":");
    for host in ["a", "b"] {
        let IpAddr::V6(of_host) = guest.host_v6(host) else {
            panic!("an IPv6 address");
        };
        // Type 136 with "override", and the guest's own link-layer address.
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(of_host.octets());
        message.extend([2, 1]);
        message.extend(guest.mac);
        for to in ["ff02::1".parse().unwrap(), of_host] {
            send_icmpv6(&guest, of_host, to, &message);
        }
    }
    std::thread::sleep(SILENCE);
    let known = neighbours(stage);
    assert!(!known.contains(&mac), "{known}");
    let heard = guest.is_heard(guest.v6, guest.host_v6("b"));
    assert!(heard, "its own packets pass no longer");
}

fn lan_address(stage: &Stage, host: &str) -> Ipv4Addr {
    let address = stage.lab.testbed().host(host).unwrap().address;
    address.to_string().parse().expect("an IPv4 address")
}

/// Sends to an address of `a` in every way that could reach its own stack; nothing is heard.
fn is_not_reached(stage: &Stage, addresses: &[IpAddr]) {
    let guest = guest(stage);
    let tap = on(stage, "a", "cat /sys/class/net/pv*/address");
    let bytes = |text: &str| -> Option<[u8; 6]> {
        let parts = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok());
        parts.collect::<Option<Vec<u8>>>()?.try_into().ok()
    };
    let own: Vec<[u8; 6]> = tap.split_whitespace().filter_map(bytes).collect();
    assert!(!own.is_empty(), "{tap}");
    let ear = listen(stage, "a", PORT);
    for address in addresses {
        for mac in own.iter().chain([&BROADCAST, &GATEWAY_MAC]) {
            let sources: Vec<IpAddr> = match address {
                IpAddr::V4(_) => vec![guest.v4, guest.gateway().into(), [0; 4].into(), *address],
                IpAddr::V6(_) => vec![guest.v6, *address],
            };
            for source in sources {
                guest.udp(*mac, (source, PORT), (*address, PORT), b"!");
            }
        }
    }
    assert!(!hears(&ear, SILENCE), "{addresses:?}");
    // The ear is not deaf.
    let to = (lan_address(stage, "a"), PORT);
    let knock = || UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"!", to));
    stage.lab.testbed().inside("a", knock).unwrap().unwrap();
    assert!(hears(&ear, SILENCE));
}

fn hosts_lan_address(stage: &Stage) {
    let everyone = IpAddr::from([255; 4]);
    is_not_reached(stage, &[lan_address(stage, "a").into(), everyone]);
}

fn metadata_address(stage: &Stage) {
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    on(stage, "a", "ip addr add 169.254.169.254/32 dev lo");
    is_not_reached(stage, &[metadata]);
    on(stage, "a", "ip addr del 169.254.169.254/32 dev lo");
}

fn loopback(stage: &Stage) {
    let all = ["127.0.0.1", "127.1.2.3", "::1"].map(|text| text.parse().unwrap());
    is_not_reached(stage, &all);
}

fn malformed_headers(stage: &Stage) {
    let guest = guest(stage);
    let seed = rand::random();
    let mut chance = StdRng::seed_from_u64(seed);
    let (kind, packet) = frames::udp((guest.v4, 1), (guest.host_v4("b"), 2), &[7; 1200]);
    let whole = frames::ethernet(GATEWAY_MAC, guest.mac, kind, &packet);
    let mut taken = 0;
    for _ in 0..20_000 {
        let mut header: Vec<u8> = (0..guest.tap.header_len())
            .map(|_| chance.random())
            .collect();
        if chance.random() {
            // Flags and kinds of offload that the kernel knows, and small sizes.
            header[0] = chance.random_range(0..4);
            header[1] = [0, 1, 3, 4, 5, 0x80][chance.random_range(0..6)];
            for field in [2, 4, 6, 8] {
                header[field + 1] = 0;
            }
        }
        let mut frame = whole.clone();
        frame.truncate(chance.random_range(14..=whole.len()));
        if chance.random() {
            let at = chance.random_range(0..frame.len());
            frame[at] = chance.random();
        }
        taken += usize::from(guest.tap.send_raw(&header, &frame));
    }
    assert!(taken > 100, "seed {seed}: the kernel took {taken}");
    stage.assert_guest_reached();
}

fn odd_frames(stage: &Stage) {
    let guest = guest(stage);
    let seed = rand::random();
    let mut chance = StdRng::seed_from_u64(seed);
    let none = vec![0; guest.tap.header_len()];
    let kinds = [IPV4, ARP, IPV6, 0x8100, 0x88a8, 0x8847, 0, 0xffff];
    let mut taken = 0;
    for n in 0..20_000 {
        let length = if n % 50 == 0 { 60_000 } else { 300 };
        let content: Vec<u8> = (0..chance.random_range(0..=length))
            .map(|_| chance.random())
            .collect();
        let mut frame = frames::ethernet(GATEWAY_MAC, guest.mac, kinds[n % kinds.len()], &content);
        if let Some(first) = frame.get_mut(14).filter(|_| n % 2 == 0) {
            *first = if n % kinds.len() == 2 { 0x60 } else { 0x45 };
        }
        taken += usize::from(guest.tap.send_raw(&none, &frame));
    }
    assert!(taken > 100, "seed {seed}: the kernel took {taken}");
    stage.assert_guest_reached();
}

/// What a flood by the guest leaves of its host: memory, and answers for others.
fn bears(stage: &Stage, flood: impl FnOnce(&Guest<'_>)) {
    let resident = || stage.lab.status("a").unwrap().resident_bytes;
    let (before, guest) = (resident(), guest(stage));
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            for _ in 0..10 {
                let answer = stage.honest.call(stage.id("a"), "clock", Vec::new());
                answer.expect("a member is answered");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        flood(&guest);
        honest.join().expect("a member is answered");
    });
    let left = resident().saturating_sub(before);
    assert!(left < LEFT, "{left} bytes of memory are left of it");
    stage.assert_guest_reached();
}

fn dns_flood(stage: &Stage) {
    let network = stage.rogue.network.name.clone();
    bears(stage, |guest| {
        for n in 0..5000u16 {
            let name = format!("{:x}-{n}.vm.{network}.p2p", rand::random::<u32>());
            let to = (guest.gateway().into(), 53);
            guest.udp(
                GATEWAY_MAC,
                (guest.v4, 1024 + n),
                to,
                &frames::question(&name),
            );
        }
    });
    // Another host's programs get their answers.
    let own = super::address(&stage.lab, "b");
    let found = dig(&stage.lab, "b", &own, &format!("web.vm.{network}.p2p"));
    assert_eq!(found, stage.web.address.parse().ok());
}

fn request_flood(stage: &Stage) {
    bears(stage, |guest| {
        let from = (guest.mac, v4(guest.v4));
        let ask = frames::arp(1, from, ([0; 6], guest.gateway()));
        let ask = frames::ethernet(BROADCAST, guest.mac, ARP, &ask);
        for _ in 0..20_000 {
            guest.tap.send(&ask);
            let (nobody, everyone) = ([0; 4].into(), [255; 4].into());
            guest.udp(BROADCAST, (nobody, 68), (everyone, 67), &[1; 300]);
        }
    });
}

fn packet_flood(stage: &Stage) {
    bears(stage, |guest| {
        let (b, c) = (guest.host_v4("b"), guest.host_v4("c"));
        for n in 0..50_000u16 {
            let to = if n % 2 == 0 { b } else { c };
            guest.udp(GATEWAY_MAC, (guest.v4, n), (to, 9), &[0; 1000]);
        }
    });
    let ping = stage.lab.ping("b", "c", 5, "100ms").unwrap();
    assert!(ping.rtts_ms.len() >= 4, "{ping:?}");
}

/// A guest that has broken QEMU has its uid: with it nothing is made or renamed there.
fn run_directory(stage: &Stage) {
    let qemu = Tap::of(&stage.lab, "a").qemu;
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let id = |kind: &str| -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(kind));
        let mut ids = line.expect("the process has one").split_whitespace();
        ids.next().expect("the real one").to_owned()
    };
    let (uid, gid) = (id("Uid:"), id("Gid:"));
    let dir = fs::read_link(format!("/proc/{qemu}/cwd")).unwrap();
    assert_ne!(uid, "0", "it runs as root");
    let script = "(: >made) 2>/dev/null && echo made; \
         ln -s /etc/shadow link 2>/dev/null && echo linked; \
         mv console.log other 2>/dev/null && echo moved; \
         rm -f console.log qemu.log 2>/dev/null && echo removed; \
         (: >>/etc/passwd) 2>/dev/null && echo written; \
         ls . >/dev/null 2>&1 && echo listed; \
         id -u";
    let output = Command::new("setpriv")
        .args([
            &format!("--reuid={}", uid),
            &format!("--regid={}", gid),
            "--clear-groups",
            "sh",
            "-c",
            script,
        ])
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.trim(), uid, "{output:?}");
    stage.assert_web_runs();
}
