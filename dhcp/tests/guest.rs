//! A real guest's network stack against the responder: the kernel, busybox udhcpc and busybox
//! nslookup in a network namespace of their own, whose only interface is a TAP that the responder
//! answers on. Needs root, `ip` and busybox.

use async_trait::async_trait;
use p2pvm_dhcp::{
    NameEntry, NameKind, Names, PortConfig, Resolver, Responder, Subject, dns::Unavailable,
};
use p2pvm_overlay::VmId;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Command, Output},
    time::{Duration, Instant},
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

const MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
const MINE: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 9);
const DB: Ipv4Addr = Ipv4Addr::new(10, 77, 200, 1);

/// What a distribution's udhcpc script does, less files in /etc.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip link set "$interface" mtu "$mtu"
ip route add default via "$router"
echo "$dns $domain $lease $hostname"
"#;

/// A network namespace that is gone with this value, on failure too.
struct Namespace(String);

impl Namespace {
    fn run(&self, command: &str) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.0, "sh", "-c", command])
            .output()
            .unwrap()
    }

    fn text(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

struct Table;

#[async_trait]
impl Names for Table {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable> {
        let db = kind == NameKind::Vm && label == "db";
        Ok(db.then_some(NameEntry {
            subject: Subject::Vm(VmId([7; 32])),
            v4: DB,
            v6: None,
        }))
    }

    async fn reverse(&self, _: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        Ok(None)
    }
}

/// The daemon's side of the port; ends when the device is gone.
fn answer_on(device: SyncDevice, config: PortConfig) {
    let resolver = Resolver::new("lab.p2p", config.subnet).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut responder = Responder::new(config);
    let mut buffer = [0; 2048];
    while let Ok(length) = device.recv(&mut buffer) {
        let mut frames = responder.handle(Instant::now(), &buffer[..length]);
        if let Some(question) = responder.dns_question(&buffer[..length]) {
            let answer = runtime.block_on(resolver.answer(&question.query, &Table));
            frames.push(responder.dns_answer(&question, &answer));
        }
        for frame in frames {
            if device.send(&frame).is_err() {
                return;
            }
        }
    }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what} did not happen"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A guest whose port the responder answers on.
fn guest(config: PortConfig) -> Namespace {
    let tap = format!("pg{}", std::process::id());
    let namespace = Namespace(format!("p2pvm-dhcp-{}", std::process::id()));
    let device = DeviceBuilder::new()
        .name(&tap)
        .layer(Layer::L2)
        .mac_addr(MAC)
        .build_sync()
        .unwrap();
    for arguments in [
        ["netns", "add", &namespace.0].as_slice(),
        &["link", "set", &tap, "netns", &namespace.0],
    ] {
        let made = Command::new("ip").args(arguments).status().unwrap();
        assert!(made.success(), "{arguments:?}");
    }
    std::thread::spawn(move || answer_on(device, config));
    namespace.text(&format!(
        "ip link set lo up; ip link set {tap} name eth0; ip link set eth0 \
        address 02:11:22:33:44:55 up"
    ));
    namespace
}

fn check_lease(namespace: &Namespace) {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let told = namespace.text(&format!(
        "busybox udhcpc -i eth0 -n -q -f -t 10 -T 1 -O mtu -s {} 2>/dev/null",
        script.display()
    ));
    assert!(told.contains("10.77.0.1 vm.lab.p2p 3600 web"), "{told}");
    let addresses = namespace.text("ip addr show dev eth0");
    assert!(
        addresses.contains("inet 10.77.3.9/16") && addresses.contains("mtu 1340"),
        "{addresses}"
    );
}

fn check_v4(namespace: &Namespace) {
    assert!(
        namespace
            .run("busybox ping -c 1 -W 5 10.77.0.1")
            .status
            .success(),
        "the gateway answers pings"
    );
    namespace.run("busybox ping -c 1 -W 1 10.77.200.1");
    let neighbours = namespace.text("ip neigh show 10.77.200.1");
    assert!(
        neighbours.contains("02:70:32:70:76:6d"),
        "every other address is behind the gateway's MAC: {neighbours}"
    );

    let answer = namespace.text("busybox nslookup -type=a db.vm.lab.p2p 10.77.0.1");
    assert!(answer.contains("10.77.200.1"), "{answer}");
    assert!(
        !namespace
            .run("busybox nslookup -type=a nobody.vm.lab.p2p 10.77.0.1")
            .status
            .success()
    );
}

fn check_v6(namespace: &Namespace, v6: Ipv6Addr) {
    wait_for("SLAAC", || {
        namespace
            .text("ip -6 addr show dev eth0 scope global")
            .contains(&v6.to_string())
    });
    let routes = namespace.text("ip -6 route");
    assert!(routes.contains("default via fe80::1"), "{routes}");
    assert!(
        namespace
            .run("busybox ping -6 -c 1 -W 5 fe80::1%eth0")
            .status
            .success(),
        "the gateway answers IPv6 pings"
    );
    wait_for("IPv6 address free of conflict", || {
        !namespace
            .text("ip -6 addr show dev eth0")
            .contains("tentative")
    });
    assert!(
        !namespace
            .text("ip -6 addr show dev eth0")
            .contains("dadfailed")
    );
}

#[test]
fn a_real_guest_gets_its_address_gateway_names_and_mtu() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("NOT RUN: needs root to make a network namespace");
        return;
    }
    let config = PortConfig::new(
        MAC,
        MINE,
        "10.77.0.0/16".parse().unwrap(),
        "web",
        "lab.p2p",
        1340,
    )
    .with_v6("fd77:1:2:3::".parse().unwrap());
    let v6 = config.v6.unwrap().addr;
    let namespace = guest(config);
    check_lease(&namespace);
    check_v4(&namespace);
    check_v6(&namespace, v6);
}
