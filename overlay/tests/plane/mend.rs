//! What others do to the TUN and to guests' interfaces is put back, and traffic goes on.

use crate::{
    measured::{Measurement, seconds},
    world::{Host, Nat, World, introduce, sh, within},
};
use p2pvm_overlay::{Epoch, VmId, plane::GuestPort};
use std::{
    fs::File,
    io::Read,
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    process::Output,
    time::{Duration, Instant},
};

/// Everything is put back within this.
const BACK: Duration = Duration::from_secs(10);

fn run(host: &Host, command: &str) -> Output {
    let output = host.exec(command);
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits until one ping from a namespace comes back; how long that took.
fn back(namespace: &str, to: &str) -> Duration {
    let began = Instant::now();
    while !sh(&format!("ip netns exec {namespace} ping -n -c 1 -W 1 {to}"))
        .status
        .success()
    {
        assert!(
            began.elapsed() < BACK,
            "{to} is not reached again within {BACK:?}"
        );
    }
    began.elapsed()
}

/// What the device is like, as `ip` shows it, without what changes by itself.
fn device(host: &Host) -> String {
    let text = |command: &str| String::from_utf8_lossy(&host.exec(command).stdout).into_owned();
    let link = text("ip -o link show p2pvm0");
    // Without the index, and IPv6's link-local address, which is another each time.
    let link = link
        .split_once(": ")
        .map(|(_, rest)| rest.to_owned())
        .unwrap_or_default();
    let (four, six) = (
        text("ip -4 -br addr show dev p2pvm0"),
        text("ip -6 -br addr show dev p2pvm0 scope global"),
    );
    let routes =
        text("ip -4 route show dev p2pvm0") + &text("ip -6 route show dev p2pvm0 fd77::/64");
    // A TUN says UP instead of UNKNOWN once its carrier has changed.
    [link, four, six, routes]
        .concat()
        .replace("state UP", "state UNKNOWN")
        .replace(" UP  ", " UNKNOWN  ")
        .replace(' ', "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_change_of_the_device_is_put_back_within_ten_seconds() {
    let (measurement, mut times) = (Measurement::begin(), Vec::new());
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let elsewhere = world.namespace("elsewhere");
    let (moved, renamed) = (
        format!("ip link set p2pvm0 netns {elsewhere}"),
        format!("ip link set p2pvm0 netns {elsewhere} name other0"),
    );
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        let before = device(&a);
        for change in [
            moved.as_str(),
            renamed.as_str(),
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
            times.push(back(&a.namespace, &b.overlay()));
            back(&b.namespace, &a.overlay());
            back(&a.namespace, &b.v6().to_string());
            let began = Instant::now();
            while device(&a) != before {
                assert!(
                    began.elapsed() < BACK,
                    "after {change}:\n{}\nbefore:\n{before}",
                    device(&a)
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(a.plane.device_faults().is_empty());
            // So that each is told from those before as one of its own.
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let what = "a change of p2pvm0 to the next answered ping";
    measurement.end(&[seconds("mended", what, &times)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_put_back_is_told_and_retried() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        // Another interface takes the name before the plane has its own again.
        run(&a, "ip link add name other type veth peer name peer");
        let began = Instant::now();
        let taken = "sh -c 'printf \"link del p2pvm0\\nlink set other name p2pvm0\\n\" | ip -b -'";
        while !a.exec(taken).status.success() {
            assert!(began.elapsed() < BACK, "the plane is too fast");
            std::thread::sleep(Duration::from_millis(200));
        }
        let began = Instant::now();
        while a.plane.device_faults().is_empty() {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            a.plane.device_faults()[0].contains("p2pvm0"),
            "{:?}",
            a.plane.device_faults()
        );
        let ended = run(&a, "ip link show p2pvm0");
        assert!(
            !String::from_utf8_lossy(&ended.stdout).contains("p2pvm/1"),
            "another's interface is left alone"
        );
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
        while !device(&a).contains("mtu1340") {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(100));
        }
        back(&a.namespace, &b.overlay());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_works_without_ipv6_and_takes_it_once_switched_on() {
    let mut world = World::new(Duration::from_millis(2));
    let b = world.host(Nat::None);
    let off = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
    let a = world.host_after(Nat::None, off);
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        assert!(
            a.plane.device_faults().is_empty(),
            "{:?}",
            a.plane.device_faults()
        );
        run(&a, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        back(&a.namespace, &b.v6().to_string());
        run(&a, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        back(&a.namespace, &b.overlay());
        assert!(
            a.plane.device_faults().is_empty(),
            "{:?}",
            a.plane.device_faults()
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_interface_that_was_set_down_or_made_anew_carries_again() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    let (guest, port) = world.guest(&a, "g", 9, 1);
    b.plane.set_route(
        IpAddr::V4(port.v4),
        p2pvm_overlay::plane::Route {
            member: a.member,
            epoch: p2pvm_overlay::Epoch(1),
        },
    );
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
        assert!(
            a.plane.device_faults().is_empty(),
            "{:?}",
            a.plane.device_faults()
        );
    });
}

/// Opens a TAP as a hypervisor does, in the calling thread's network namespace.
fn open_tap(name: &str) -> File {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("root opens it");
    // SAFETY: all zeros is a value of the plain C structure, which lives across the call.
    let made = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request
            .ifr_name
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request)
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    tap
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_past_the_device_is_no_fault_of_the_device() {
    let mut world = World::new(Duration::from_millis(2));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    tokio::task::block_in_place(|| {
        back(&a.namespace, &b.overlay());
        run(&a, "ip rule add pref 50 to 10.0.0.0/8 prohibit");
        let began = Instant::now();
        while a.plane.ways_elsewhere().is_empty() {
            assert!(began.elapsed() < BACK);
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = a.plane.ways_elsewhere()[0].to_string();
        assert!(said.contains("instead of p2pvm0"), "{said}");
        assert!(
            a.plane.device_faults().is_empty(),
            "its route was not replaced: {:?}",
            a.plane.device_faults()
        );
        run(&a, "ip rule del pref 50");
        back(&a.namespace, &b.overlay());
        while !a.plane.ways_elsewhere().is_empty() {
            assert!(began.elapsed() < 3 * BACK);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// A guest's port on `tap7`.
fn port_on_tap7() -> GuestPort {
    GuestPort {
        vm: VmId([7; 32]),
        ifname: "tap7".into(),
        mac: [2, 0, 0, 0, 1, 7],
        gateway_mac: [2, 0, 0, 0, 0, 1],
        gateway: [10, 255, 255, 254].into(),
        v4: [10, 77, 1, 7].into(),
        v6: Vec::new(),
        epoch: Epoch(1),
        bits_per_second: None,
    }
}

/// Waits until a frame with `what` in it, sent to the guest again and again, comes out of its TAP.
fn receives(host: &Host, port: &GuestPort, mut tap: &File, what: &str, deadline: Instant) {
    let frame = [
        &port.mac[..],
        &port.gateway_mac[..],
        &[0x88, 0xb5],
        what.as_bytes(),
        &[0; 60],
    ]
    .concat();
    let mut read = [0; 2048];
    loop {
        host.plane.send_to_guest(port.vm, frame.clone());
        std::thread::sleep(Duration::from_millis(50));
        while let Ok(len) = tap.read(&mut read) {
            if read[..len]
                .windows(what.len())
                .any(|window| window == what.as_bytes())
            {
                return;
            }
        }
        assert!(
            Instant::now() < deadline,
            "{what}: {:?}",
            host.plane.device_faults()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_or_moved_tap_is_made_again_on_its_guests_descriptor() {
    let mut world = World::new(Duration::from_millis(2));
    let a = world.host(Nat::None);
    let elsewhere = world.namespace("elsewhere");
    tokio::task::block_in_place(|| {
        let tap = within(&a.namespace, || open_tap("tap7"));
        run(&a, "ip link set tap7 mtu 1340 up");
        // Another process holds it too; QEMU is the only one that does.
        let mut holder = std::process::Command::new("sleep")
            .arg("60")
            .stdin(tap.try_clone().expect("a copy"))
            .spawn()
            .expect("it runs");
        let port = port_on_tap7();
        within(&a.namespace, || a.plane.attach_port(port.clone())).expect("the port opens");
        let deadline = Instant::now() + 2 * BACK;
        receives(&a, &port, &tap, "before", deadline);
        // The plane has to have found the process that holds it.
        std::thread::sleep(Duration::from_secs(1));
        for (n, removal) in [
            "ip link del tap7".to_owned(),
            format!("ip link set tap7 netns {elsewhere} name else7"),
        ]
        .iter()
        .enumerate()
        {
            run(&a, removal);
            receives(&a, &port, &tap, &format!("after {n}"), deadline);
            std::thread::sleep(Duration::from_secs(1));
        }
        let left = String::from_utf8_lossy(&sh(&format!("ip -n {elsewhere} -br link")).stdout)
            .into_owned();
        assert!(!left.contains("else7"), "{left}");
        let link = String::from_utf8_lossy(&run(&a, "ip link show tap7").stdout).into_owned();
        assert!(link.contains("mtu 1340") && link.contains(",UP"), "{link}");
        assert!(
            a.plane.device_faults().is_empty(),
            "{:?}",
            a.plane.device_faults()
        );
        holder.kill().and_then(|()| holder.wait()).expect("it ends");
    });
}
