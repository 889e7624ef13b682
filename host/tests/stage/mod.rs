//! A machine for the keeper: a network namespace of its own, which goes with its thread, and named
//! ones beside it for machines elsewhere. Needs root and ip.

#![allow(dead_code, reason = "each test binary uses its own part")]

use p2pvm_host::{Board, Keeper, Net, NetworkNeeds, journal::Journal, links::set_alias};
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// What somebody removed is back within this.
pub const BACK: Duration = Duration::from_secs(10);

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn works(script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .output()
        .unwrap()
        .status
        .success()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < BACK,
            "{what} took longer than {BACK:?}\n{}",
            snapshot()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a test in a network namespace of its own.
pub fn inside(test: impl FnOnce() + Send + 'static) {
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
pub struct Elsewhere(pub String);

impl Elsewhere {
    pub fn new(name: &str, here: &str, address: &str, there: &str) -> Self {
        let elsewhere = Self(format!("hn-{}-{name}", std::process::id()));
        let ns = &elsewhere.0;
        // `ip netns` mounts what it names: in this process's mount namespace, as every other.
        sh(&format!(
            "ip netns add {ns} && ip link add {here} type veth peer name eth0 netns {ns} && ip \
                addr add {address} dev {here} &&
             ip link set {here} up && ip -n {ns} link set lo up && ip -n {ns} addr add {there} \
             dev eth0 && ip -n {ns} link set eth0 up"
        ));
        // The kernel says some time later that the cable is plugged in.
        until("the cable to be plugged in", || {
            sh(&format!("ip -o link show {here}")).contains("state UP")
        });
        elsewhere
    }

    pub fn sh(&self, script: &str) -> String {
        sh(&format!("ip netns exec {} sh -c '{script}'", self.0))
    }

    pub fn works(&self, script: &str) -> bool {
        works(&format!("ip netns exec {} sh -c '{script}'", self.0))
    }

    pub fn inside<T: Send + 'static>(&self, action: impl FnOnce() -> T + Send + 'static) -> T {
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
pub fn snapshot() -> String {
    sh(
        "ip -d addr | grep -Ev 'valid_lft|fe80' | sed 's/ tentative//'; ip route show table all | \
            grep -v fe80; ip rule; nft list ruleset | sed 's/counter packets [0-9]* bytes \
            [0-9]*//' | grep -v fe80; \
        for t in iptables-legacy-save ip6tables-legacy-save; do $t 2>/dev/null | grep -v '^[#:]'; \
        done; \
        for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding \
        /proc/sys/net/ipv4/conf/*/rp_filter; do echo $f $(cat $f); done",
    )
}

/// An interface in the place of a network's TUN.
pub fn device(name: &str, address: &str) {
    sh(&format!(
        "ip link add {name} type veth peer name peer-{name} && ip addr add {address} dev {name} \
            && ip link set {name} up && ip link set peer-{name} up"
    ));
}

pub fn wanted(n: u16) -> NetworkNeeds {
    NetworkNeeds {
        device: format!("p2pvm{n}"),
        network: format!("network{n}"),
        link_port: 4002 + 10 * n,
        control_port: 4001 + 10 * n,
        overlay: Some(Net::new(Ipv4Addr::new(10, 90 + n as u8, 0, 0), 16)),
        open_firewalls: true,
        ..NetworkNeeds::default()
    }
}

pub fn nets(texts: &[&str]) -> BTreeSet<Net> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub struct Network {
    pub keeper: Keeper,
    pub board: Board,
    pub wanted: NetworkNeeds,
    _dir: tempfile::TempDir,
}

impl Network {
    pub fn start(n: u16) -> Self {
        let wanted = wanted(n);
        device(&wanted.device, &format!("10.{}.0.1/16", 90 + n));
        let index = nix::net::if_::if_nametoindex(wanted.device.as_str()).unwrap();
        set_alias(index, &wanted.mark().to_string()).unwrap();
        let (dir, board) = (tempfile::tempdir().unwrap(), Board::default());
        let keeper = Keeper::start(
            wanted.clone(),
            Journal::at(dir.path().join("undo.json")),
            board.clone(),
        )
        .unwrap();
        Self {
            keeper,
            board,
            wanted,
            _dir: dir,
        }
    }

    pub fn accept(&mut self, texts: &[&str]) {
        self.wanted.accepted = nets(texts);
        self.keeper.settle(self.wanted.clone());
    }

    /// Says of which accepted subnets no router answers.
    pub fn silence(&mut self, texts: &[&str]) {
        self.wanted.silent = nets(texts);
        self.keeper.settle(self.wanted.clone());
    }

    pub fn offer(&mut self, texts: &[&str]) {
        self.wanted.offered = nets(texts);
        let report = self.keeper.settle(self.wanted.clone());
        assert_eq!(report.forwarding, None);
    }

    pub fn end(self) {
        self.keeper.close();
        assert!(
            !self._dir.path().join("undo.json").exists(),
            "nothing is left to undo"
        );
        sh(&format!("ip link del {}", self.wanted.device));
    }
}

pub fn forwards(interface: &str) -> bool {
    sh(&format!(
        "cat /proc/sys/net/ipv4/conf/{interface}/forwarding"
    ))
    .trim()
        != "0"
}
