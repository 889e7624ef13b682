//! What others do to the TUN and to guests' interfaces is put back, and traffic goes on.

use crate::world::{Host, Nat, World, introduce, sh};
use std::{
    net::IpAddr,
    process::Output,
    time::{Duration, Instant},
};

/// Everything is put back within this.
const BACK: Duration = Duration::from_secs(10);

fn run(host: &Host, command: &str) -> Output {
    let output = host.exec(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Waits until one ping from a namespace comes back; how long that took.
fn back(namespace: &str, to: &str) -> Duration {
    let began = Instant::now();
    while !sh(&format!("ip netns exec {namespace} ping -n -c 1 -W 1 {to}")).status.success() {
        assert!(began.elapsed() < BACK, "{to} is not reached again within {BACK:?}");
    }
    began.elapsed()
}

/// What the device is like, as `ip` shows it, without what changes by itself.
fn device(host: &Host) -> String {
    let text = |command: &str| String::from_utf8_lossy(&host.exec(command).stdout).into_owned();
    let link = text("ip -o link show p2pvm0");
    // Without the index, and IPv6's link-local address, which is another each time.
    let link = link.split_once(": ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let (four, six) = (text("ip -4 -br addr show dev p2pvm0"), text("ip -6 -br addr show dev p2pvm0 scope global"));
    let routes = text("ip -4 route show dev p2pvm0") + &text("ip -6 route show dev p2pvm0 fd77::/64");
    // A TUN says UP instead of UNKNOWN once its carrier has changed.
    [link, four, six, routes].concat().replace("state UP", "state UNKNOWN").replace(" UP  ", " UNKNOWN  ").replace(' ', "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_changed_in_any_way_is_put_back_within_ten_seconds() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        let before = device(&a);
        for change in [
            "ip route flush dev p2pvm0",
            "ip -6 route flush dev p2pvm0",
            "ip addr flush dev p2pvm0",
            "ip link set p2pvm0 down",
            "ip link set p2pvm0 mtu 600",
            "ip link set p2pvm0 name gone0",
            "ip link set p2pvm0 alias mine",
            "ip link set p2pvm0 carrier off",
            "ip addr del 10.77.0.1/16 dev p2pvm0",
            "ip link del p2pvm0",
            "ip link del p2pvm0",
        ] {
            run(&a, change);
            let took = back(&a.namespace, &b.overlay());
            back(&b.namespace, &a.overlay());
            back(&a.namespace, &b.v6().to_string());
            let began = Instant::now();
            while device(&a) != before {
                assert!(began.elapsed() < BACK, "after {change}:\n{}\nbefore:\n{before}", device(&a));
                std::thread::sleep(Duration::from_millis(50));
            }
            eprintln!("{change}: back after {took:?}");
            assert!(a.plane.device_faults().is_empty());
            // So that each is told from those before as one of its own.
            std::thread::sleep(Duration::from_secs(1));
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_put_back_is_said_and_put_back_once_it_can_be() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        // Another interface has the name at the same moment.
        run(
            &a,
            "sh -c 'ip link add name other type veth peer name peer; printf \"link del p2pvm0\\nlink set other name p2pvm0\\n\" | ip -b -'",
        );
        let began = Instant::now();
        while a.plane.device_faults().is_empty() {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(a.plane.device_faults()[0].contains("p2pvm0"), "{:?}", a.plane.device_faults());
        let ended = run(&a, "ip link show p2pvm0");
        assert!(!String::from_utf8_lossy(&ended.stdout).contains("p2pvm/1"), "another's interface is left alone");
        run(&a, "ip link del p2pvm0");
        back(&a.namespace, &b.overlay());
        assert!(a.plane.device_faults().is_empty());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_changes_the_device_again_and_again_is_no_flood() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        for _ in 0..40 {
            run(&a, "ip link set p2pvm0 mtu 1200");
            std::thread::sleep(Duration::from_millis(100));
        }
        run(&a, "ip link set p2pvm0 mtu 1200");
        let began = Instant::now();
        while !device(&a).contains("mtu 1340") {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(100));
        }
        back(&a.namespace, &b.overlay());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ipv6_the_network_works_by_ipv4_and_gets_ipv6_when_it_is_switched_on() {
    let mut world = World::new(Duration::from_millis(2));
    let b = world.host(Nat::None);
    let off = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
    let a = world.host_after(Nat::None, off);
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        assert!(a.plane.device_faults().is_empty(), "{:?}", a.plane.device_faults());
        run(&a, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        back(&a.namespace, &b.v6().to_string());
        run(&a, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        back(&a.namespace, &b.overlay());
        assert!(a.plane.device_faults().is_empty(), "{:?}", a.plane.device_faults());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_interface_that_was_set_down_or_made_anew_carries_again() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let (guest, port) = world.guest(&a, "g", 9, 1);
    b.plane.set_route(IpAddr::V4(port.v4), p2pvm_overlay::plane::Route { member: a.member, epoch: p2pvm_overlay::Epoch(1) });
    tokio::task::block_in_place(|| {
        back(&guest, &b.overlay());
        run(&a, "ip link set tap9 down");
        back(&guest, &b.overlay());
        run(&a, "ip link del tap9");
        let began = Instant::now();
        while a.plane.device_faults().is_empty() {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(a.plane.device_faults()[0].contains("tap9"));
        world.wire_guest(&a, &guest, &port);
        back(&guest, &b.overlay());
        assert!(a.plane.device_faults().is_empty(), "{:?}", a.plane.device_faults());
    });
}
