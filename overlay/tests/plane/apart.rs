//! What a guest sends is heard by its port alone, whatever this machine's own stack is set to.

use super::world::{Host, Nat, World, sh, within};
use p2pvm_overlay::{
    Epoch, VmId,
    plane::{GuestPort, PlaneEvent},
};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

const PORT: u16 = 5555;
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 254);

nix::ioctl_write_int!(tunsetiff, b'T', 202);

/// A TAP in the host's namespace, as a guest has one, and its descriptor.
fn tap(host: &Host, name: &str) -> File {
    let tap = within(&host.namespace, || {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .expect("the TUN device");
        // SAFETY: ifreq is plain data, of which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads one ifreq, which outlives the call.
        unsafe {
            tunsetiff(
                tun.as_raw_fd(),
                &raw const request as nix::sys::ioctl::ioctl_param_type,
            )
        }
        .expect("a TAP");
        tun
    });
    assert!(
        host.exec(&format!("ip link set {name} up"))
            .status
            .success()
    );
    tap
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A UDP datagram in an Ethernet frame to every station.
fn datagram(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let said = b"guest";
    let mut ip = vec![0x45, 0, 0, 28 + said.len() as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(from.octets().iter().chain(&to.octets()));
    let sum = sum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    ip.extend([&[0x15, 0xb4], &PORT.to_be_bytes()[..]].concat());
    ip.extend([0, 8 + said.len() as u8, 0, 0]);
    ip.extend(said);
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 1, 9]].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame
}

/// Whether a listener on all addresses of the host hears what the guest sends. What is sent to it
/// afterwards from the host itself ends the wait: the kernel takes frames in the order they come.
fn hears(host: &Host, mut tap: &File, frame: &[u8]) -> bool {
    within(&host.namespace, || {
        let listener = UdpSocket::bind(("0.0.0.0", PORT)).expect("a listener");
        listener
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a limit");
        tap.write_all(frame).expect("the guest sends");
        let own = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        own.send_to(b"end", ("127.0.0.1", PORT)).expect("sent");
        let mut heard = [0; 16];
        let length = listener.recv(&mut heard).expect("at least the end");
        &heard[..length] == b"guest"
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_own_stack_hears_nothing_of_a_guest() {
    let mut world = World::new(Duration::from_millis(1));
    let mut a = world.host(Nat::None);
    let off = "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0";
    assert!(a.exec(off).status.success());
    let shown = sh(&format!("ip -n {} -4 -o addr show wan", a.namespace));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let address = shown.split_whitespace().nth(3).expect("an address");
    let lan: Ipv4Addr = address.split('/').next().unwrap().parse().expect("IPv4");
    let overlay: Ipv4Addr = a.overlay().parse().expect("IPv4");

    let tap = tap(&a, "tap9");
    // Not from its own address to the host's in the network: the port carries that.
    let another = Ipv4Addr::new(192, 0, 2, 99);
    let tries = [
        (GUEST, lan),
        (GUEST, Ipv4Addr::BROADCAST),
        (another, lan),
        (another, overlay),
    ];
    tokio::task::block_in_place(|| {
        assert!(
            hears(&a, &tap, &datagram(GUEST, lan)),
            "a bare TAP is heard"
        );
    });
    let port = GuestPort {
        vm: VmId([9; 32]),
        ifname: "tap9".to_owned(),
        mac: [2, 0, 0, 0, 1, 9],
        gateway_mac: [2, 0, 0, 0, 0, 1],
        gateway: GATEWAY,
        v4: GUEST,
        v6: Vec::new(),
        epoch: Epoch(1),
        bits_per_second: None,
    };
    within(&a.namespace, || a.plane.attach_port(port)).expect("the port opens");
    // Nor what a guest without an address says to all, where the kernel has a filter of either
    // kind.
    let has_filters = within(&a.namespace, || p2pvm_overlay::keep_apart("tap9")).is_ok();
    let unaddressed = datagram(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    tokio::task::block_in_place(|| {
        for (from, to) in tries {
            assert!(!hears(&a, &tap, &datagram(from, to)), "{from} to {to}");
        }
        assert_eq!(hears(&a, &tap, &unaddressed), !has_filters);
    });
    // Its port hears it: a question to its gateway goes to the daemon.
    let question = datagram(GUEST, GATEWAY);
    (&tap).write_all(&question).expect("the guest sends");
    let heard = async {
        loop {
            match a.events.recv().await.expect("the plane runs") {
                PlaneEvent::GuestFrame { frame, .. } if frame == question => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(super::PATIENCE, heard)
        .await
        .expect("the port takes the guest's frame");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_filters_the_interfaces_settings_keep_a_guest_from_the_hosts_stack() {
    let mut world = World::new(Duration::from_millis(1));
    let a = world.host(Nat::None);
    let off = "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0";
    assert!(a.exec(off).status.success());
    let overlay: Ipv4Addr = a.overlay().parse().expect("IPv4");
    let tap = tap(&a, "tap9");
    tokio::task::block_in_place(|| {
        assert!(hears(&a, &tap, &datagram(GUEST, overlay)));
        // As in a kernel that has none: where it has, they are taken away again.
        let _ = within(&a.namespace, || p2pvm_overlay::keep_apart("tap9"));
        a.exec("tc qdisc del dev tap9 clsact");
        a.exec("nft delete table netdev p2pvm_guest_tap9");
        assert!(!hears(&a, &tap, &datagram(GUEST, overlay)));
        assert!(!hears(&a, &tap, &datagram(GUEST, Ipv4Addr::BROADCAST)));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_traffic_control_nftables_keeps_a_guest_from_the_hosts_stack() {
    let mut world = World::new(Duration::from_millis(1));
    let a = world.host(Nat::None);
    let tap = tap(&a, "tap9");
    if !a.exec("nft add table netdev test").status.success() {
        return eprintln!("skipped: this kernel has no nftables either");
    }
    let unaddressed = datagram(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    tokio::task::block_in_place(|| {
        assert!(hears(&a, &tap, &unaddressed), "a bare TAP is heard");
        for _ in 0..2 {
            within(&a.namespace, || p2pvm_host::apart::drop_by_nftables("tap9")).expect("a table");
        }
        assert!(!hears(&a, &tap, &unaddressed));
    });
    // A guest that starts again at once has another interface of that name.
    drop(tap);
    let tap = self::tap(&a, "tap9");
    tokio::task::block_in_place(|| {
        within(&a.namespace, || p2pvm_host::apart::drop_by_nftables("tap9")).expect("a table");
        assert!(!hears(&a, &tap, &unaddressed));
    });
    let there = "nft list table netdev p2pvm_guest_tap9";
    within(&a.namespace, || p2pvm_host::apart::let_go("tap9"));
    assert!(a.exec(there).status.success(), "the interface is there");
    drop(tap);
    within(&a.namespace, || p2pvm_host::apart::let_go("tap9"));
    assert!(
        !a.exec(there).status.success(),
        "it goes with the interface"
    );
}
