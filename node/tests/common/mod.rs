//! What the end-to-end tests share: a lab of a given shape, and how its hosts are set up.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod console;
pub mod measured;
pub mod small;
pub mod trouble;

use p2pvm_api::{AclAnswer, AclShow, VmStateView};
use p2pvm_lab::{
    Sites, chain, chaos,
    lab::{CountSummary, Lab, LabError},
};
use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Settings of every host: one processor each, no UPnP, no moves and restarts of VMs that a test
/// did not ask for.
pub const SETTINGS: &str = "cpus = 1\nupnp = false\nautonomic = false\nheal.protect = false\n";
/// The same without what the previous release does not know.
pub const FORMER_SETTINGS: &str = "cpus = 1\nupnp = false\nautonomic = false\n";

/// A testbed of `sites`, named after the test.
pub fn lab(test: &str, sites: &str) -> Lab {
    let sites = Sites::parse(sites).expect("the test's sites");
    // Another build, such as the release before, to see what it makes of the same test.
    let other = std::env::var("P2PVM_TEST_PROGRAM").ok();
    let settings = other.as_ref().map_or(SETTINGS, |_| FORMER_SETTINGS);
    let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_p2pvm").to_owned());
    let lab = Lab::up(
        &sites,
        &format!("e2e-{test}-{}", std::process::id()),
        Path::new(&program),
    )
    .expect("building the testbed");
    for host in &lab.testbed().plan().hosts {
        lab.configure(&host.name, settings).unwrap();
    }
    lab
}

/// Public hosts `a`, `b`, ... with `rtt_ms` between any two.
pub fn public_sites(hosts: &[&str], rtt_ms: f64) -> String {
    let mut text = format!("seed = 1\n[default]\nrtt_ms = {rtt_ms}\nmbit = 1000\n");
    for host in hosts {
        text.push_str(&format!("[[site]]\nname = \"{host}\"\n"));
    }
    text
}

/// Founds a network on the first host and lets the others join.
pub fn network(lab: &Lab, hosts: &[&str]) {
    lab.found(hosts[0], "lab").expect("founding");
    let invite = lab.invite(hosts[0], hosts.len() as u32).expect("inviting");
    for host in &hosts[1..] {
        lab.join(host, &invite)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 40)));
    }
    for host in hosts {
        lab.wait(
            &format!("{host} to be connected with all"),
            Duration::from_secs(20),
            Duration::from_millis(100),
            || {
                let connected = lab.status(host)?.connected;
                Ok((connected == hosts.len() - 1).then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 40)));
    }
}

/// Lets a host's router forward p2pvm's ports to it, as a person does on the router's own page.
pub fn forward_ports(lab: &Lab, host: &str) {
    let plan = lab.testbed().host(host).unwrap();
    let (inside, site) = (
        plan.address,
        lab.testbed().plan().sites[plan.site].name.clone(),
    );
    let rules = format!(
        "table ip by_hand {{ chain forwarded {{ type nat hook prerouting priority dstnat - 10; \
            policy accept;
            iifname wan udp dport {{ 4001, 4002 }} dnat to {inside};
            iifname wan tcp dport 4001 dnat to {inside};
        }}
        }}"
    );
    let done = lab
        .testbed()
        .inside_router(&site, || Command::new("nft").arg(&rules).output())
        .unwrap()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// The guest image; built if the test command has not yet.
pub fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        if let Ok(path) = std::env::var("P2PVM_TEST_IMAGE")
            && Path::new(&path).exists()
        {
            return path;
        }
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../guest-image/build.sh");
        let output = Command::new(&script)
            .output()
            .expect("running guest-image/build.sh");
        assert!(
            output.status.success(),
            "guest-image/build.sh: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("a path")
            .trim()
            .to_owned()
    })
}

/// A host's address in the network.
pub fn address(lab: &Lab, host: &str) -> String {
    let status = lab.status(host).unwrap();
    status.address.expect("an address")
}

/// Whether a host has a control connection with the member of this name.
pub fn is_connected(lab: &Lab, host: &str, name: &str) -> Result<bool, LabError> {
    let peers = lab.peers(host)?;
    Ok(peers.iter().any(|peer| peer.name == name && peer.connected))
}

/// Waits until pings of one host to another take a direct path.
pub fn until_direct(lab: &Lab, from: &str, to: &str, limit: Duration) {
    lab.wait(
        &format!("a direct path from {from} to {to}"),
        limit,
        Duration::from_millis(300),
        || {
            let path = lab.ping(from, to, 3, "200ms")?.path;
            Ok(path.starts_with("direct").then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(from, 40)));
}

/// Keeps a host's processors busy until the VM "web", as `asked` shows it, runs on another.
pub fn overload(lab: &Lab, host: &str, asked: &str) {
    let mut hog = Command::new("/bin/sh");
    hog.args(["-c", "while :; do :; done"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut hog = lab.testbed().spawn(host, &mut hog).unwrap();
    let left = lab.wait(
        "the VM to leave the busy host",
        Duration::from_secs(90),
        Duration::from_millis(500),
        || {
            let vm = lab.vm(asked, "web")?;
            Ok((vm.host != host && vm.state == VmStateView::Running).then_some(()))
        },
    );
    hog.kill().unwrap();
    hog.wait().unwrap();
    left.unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
}

/// Fails if a counting client lost a reply, got one twice or lost its connection.
pub fn assert_unbroken(seen: &CountSummary) {
    assert_eq!(
        (seen.lost, seen.doubled, seen.counter_gaps, &seen.ended),
        (0, 0, 0, &None),
        "{seen:?}"
    );
}

/// A run of random events on a host, without a guest, that goes on after a step that failed.
pub fn chaos_options(test: &str, seed: u64, minutes: u64) -> chaos::Options {
    chaos::Options {
        seed,
        minutes,
        only: Vec::new(),
        events: Vec::new(),
        list: false,
        image: None,
        name: format!("{test}-{}", std::process::id()),
        keep_going: true,
        program: None,
    }
}

/// Plays the events; `None`, with a note, where no Debian tree for the host can be made.
pub fn play_chaos(options: &chaos::Options) -> Option<chaos::Report> {
    let program = Path::new(env!("CARGO_BIN_EXE_p2pvm"));
    match chaos::run(options, program, &options.name, |line| println!("{line}")) {
        Err(chaos::ChaosError::NoTree(why)) => {
            println!("NOT RUN: no Debian tree can be made here: {why}");
            None
        }
        report => Some(report.unwrap()),
    }
}

/// Waits until something is so; gives how long that took. Otherwise fails with each host's health,
/// rules and last words.
pub fn until(lab: &Lab, what: &str, limit: Duration, is_so: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    lab.wait(what, limit, Duration::from_millis(100), || {
        Ok(is_so().then_some(()))
    })
    .unwrap_or_else(|e| {
        let report = |host: &str| {
            let status = lab.status(host).map(|s| (s.health, s.findings));
            let words = ["sh", "-c", "ip rule; ip -s link"];
            let rules = lab.testbed().run(host, &words);
            let log = lab.log_tail(host, 30);
            format!(
                "--- {host}: {status:?}\n{}\n{log}\n",
                rules.unwrap_or_default()
            )
        };
        let hosts = &lab.testbed().plan().hosts;
        let reports: String = hosts.iter().map(|host| report(&host.name)).collect();
        panic!("{}\n{reports}", chain(&e))
    });
    began.elapsed()
}

/// Runs a script of the shell on a host; gives what it printed.
pub fn run(lab: &Lab, host: &str, text: &str) -> String {
    lab.testbed()
        .run(host, &["sh", "-c", text])
        .unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Runs a command that must be refused; gives what it said.
pub fn refused(lab: &Lab, host: &str, words: &[&str], code: i32) -> String {
    let (got, out, said) = lab.try_p2pvm(host, words).unwrap();
    assert_eq!(got, code, "p2pvm {}: {out} {said}", words.join(" "));
    said
}

/// Writes a policy to a file of the host, for `acl set`.
pub fn write_policy(lab: &Lab, host: &str, text: &str) -> PathBuf {
    let file = lab.dir(host).unwrap().join("policy.toml");
    fs::write(&file, text).unwrap();
    file
}

/// The policy in force on a host.
pub fn policy_on(lab: &Lab, host: &str) -> Result<AclShow, LabError> {
    lab.json(host, &["acl", "show"])
}

/// Puts a policy in force and waits until every host has it.
pub fn set_policy(lab: &Lab, by: &str, hosts: &[&str], text: &str) {
    let file = write_policy(lab, by, text);
    let set: AclAnswer = lab
        .json(by, &["acl", "set", file.to_str().unwrap()])
        .unwrap();
    for host in hosts {
        lab.wait(
            &format!("{host} to have the policy"),
            Duration::from_secs(10),
            Duration::from_millis(50),
            || Ok((policy_on(lab, host)?.version == Some(set.version)).then_some(())),
        )
        .unwrap();
    }
}

/// A machine on a host's LAN, 192.168.77.9: a namespace of its own behind a second interface of the
/// host.
pub struct Lan(String);

impl Lan {
    /// Lays its cable and gives both ends their addresses.
    pub fn new(lab: &Lab, host: &str) -> Self {
        let namespace = format!("lan-{host}-{}", std::process::id());
        let host = &lab.testbed().host(host).unwrap().namespace;
        let lan = Self(namespace.clone());
        let script = format!(
            "ip netns add {namespace} && ip -n {namespace} link set lo up && \
             ip link add name lan0 netns {host} type veth peer name eth0 netns {namespace} && \
             ip -n {host} addr add 192.168.77.1/24 dev lan0 && ip -n {host} link set lan0 up && \
             ip -n {namespace} addr add 192.168.77.9/24 dev eth0 && ip -n {namespace} link set \
             eth0 up"
        );
        let made = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        lan
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Asks the resolver at `server` for an A record and gives the answer's last four bytes as an
/// address.
pub fn dig(lab: &Lab, from: &str, server: &str, name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let server = format!("{server}:53");
    lab.testbed()
        .inside(from, || {
            let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
            socket.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
            socket.send_to(&query, server).ok()?;
            let mut answer = [0u8; 512];
            let n = socket.recv(&mut answer).ok()?;
            let answers = u16::from_be_bytes([answer[6], answer[7]]);
            (answers > 0)
                .then(|| Ipv4Addr::new(answer[n - 4], answer[n - 3], answer[n - 2], answer[n - 1]))
        })
        .unwrap()
}
