//! A network of three members for one other program, what is asked of it, and what is said when something fails.

#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::common::{SETTINGS, lab, network, public_sites};
use p2pvm_tests::{
    host_state::HostState,
    hosts::{self, Behind, Booted, DOCKER, KUBERNETES, LIBVIRT, NotBooted, Program, probe, tree},
    lab::Lab,
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// A TCP port that hosts answer on; no firewall of the suite knows it.
const PORT: u16 = 5555;
/// The LAN behind `b`.
const LAN: &str = "192.168.77";

/// The network of a test.
pub struct Stage {
    /// The machine on the LAN behind `b`.
    pub lan: Behind,
    /// The address of `a` outside the network, which containers of `b` reach as they reach the internet.
    pub outside: String,
    /// The addresses of `a` and `b` in the network.
    pub a: String,
    pub b: String,
    /// The hosts; what is on them ends before.
    pub lab: Lab,
}

/// The bridge of a program's containers, the address of one, its prefix, and its gateway.
pub fn bridge_of(program: Program) -> Option<(&'static str, &'static str, u8, &'static str)> {
    match program {
        DOCKER => Some(("docker0", "172.17.0.2", 16, "172.17.0.1")),
        LIBVIRT => Some(("virbr0", "192.168.122.50", 24, "192.168.122.1")),
        KUBERNETES => Some(("cni0", "10.244.0.7", 24, "10.244.0.1")),
        _ => None,
    }
}

/// A container or guest of that program on `b`, if it has such.
pub fn container_of(program: Program, lab: &Lab) -> Option<Behind> {
    let (bridge, address, bits, gateway) = bridge_of(program)?;
    Some(Behind::bridged(lab, "b", bridge, address, bits, gateway).unwrap())
}

/// What a finding about that program has to name, so that its administrator knows where to look.
fn words_of(program: Program) -> &'static [&'static str] {
    match program.name {
        "docker" => &["DOCKER-USER", "FORWARD"],
        "firewalld" => &["firewall-cmd"],
        "ufw" => &["ufw"],
        "iptables-legacy" => &["iptables-legacy"],
        "iptables-nft" | "kubernetes" | "libvirt" => &["iptables", "nft"],
        _ => &["resolv"],
    }
}

impl Stage {
    /// Three members; p2pvm does not run on `b` yet. None, with the reason printed, where this machine cannot have it.
    pub fn raise(test: &str) -> Option<Self> {
        Self::with(test, "")
    }

    /// The same with further settings of `b`.
    pub fn with(test: &str, settings: &str) -> Option<Self> {
        let tree = match tree::get() {
            Ok(tree) => tree,
            Err(why) => {
                println!("NOT RUN: no Debian tree can be made here: {why}");
                return None;
            }
        };
        // Not the test's name: what doctor says of a program must not be the name of a directory.
        let number = hosts::PROGRAMS.iter().position(|program| program.name == test).map_or(test.to_owned(), |n| n.to_string());
        let mut lab = lab(&format!("host{number}"), &public_sites(&["a", "b", "c"], 4.0));
        let server = lab.testbed().host("c").unwrap().address.to_string();
        hosts::settle(&mut lab, &["b"], &tree, &[], &server).unwrap();
        Some(Self::meet(lab, settings))
    }

    /// The same with a Debian that is booted on `b`, after what `prepare` says for `b`'s address, its gateway and its name server.
    pub fn boot(test: &str, prepare: impl Fn(&str, &str, &str) -> String) -> Option<(Self, Booted)> {
        let not_run = |why: &dyn std::fmt::Display| println!("NOT RUN: {why}");
        let tree = tree::get().inspect_err(|why| not_run(why)).ok()?;
        let mut lab = lab(&format!("slow-{test}"), &public_sites(&["a", "b", "c"], 4.0));
        let (server, host) = (lab.testbed().host("c").unwrap().address.to_string(), lab.testbed().host("b").unwrap().clone());
        let gateway = lab.testbed().plan().sites[host.site].gateway.to_string();
        // The system on it sees to its uplink from now on.
        lab.testbed().run("b", &["ip", "addr", "flush", "dev", "eth0"]).unwrap();
        let prepare = prepare(&host.address.to_string(), &gateway, &server);
        let booted = match Booted::start(&mut lab, "b", &tree, &prepare) {
            Err(NotBooted::NoProgram) => {
                not_run(&NotBooted::NoProgram);
                return None;
            }
            booted => booted.unwrap(),
        };
        Some((Self::meet(lab, ""), booted))
    }

    /// Founds the network and ends p2pvm on `b`.
    fn meet(lab: Lab, settings: &str) -> Self {
        let server = lab.testbed().host("c").unwrap().address.to_string();
        lab.configure("b", &format!("{SETTINGS}resolver = \"auto\"\n{settings}")).unwrap();
        let from = |host: &str| probe::From::host(&lab, host).unwrap();
        from("c").serve_names(&server, "p2p").unwrap();
        let lan = Behind::lan(&lab, "b", "lan0", LAN, false).unwrap();
        lan.from().answer(PORT).unwrap();
        ["a", "b"].into_iter().for_each(|host| from(host).answer(PORT).unwrap());
        from("a").answer(80).unwrap();
        network(&lab, &["a", "b", "c"]);
        lab.p2pvm("a", &["route", "accept"]).unwrap();
        let address = |host: &str| lab.json(host, &["status"]).unwrap()["address"].as_str().unwrap().to_owned();
        let (a, b) = (address("a"), address("b"));
        let outside = lab.testbed().host("a").unwrap().address.to_string();
        let stage = Self { lan, outside, a, b, lab };
        stage.down();
        stage
    }

    /// Starts p2pvm on `b`.
    pub fn up(&self) {
        self.lab.json("b", &["up", "--detach"]).unwrap_or_else(|e| panic!("{e}\n{}", self.lab.log_tail("b", 40)));
    }

    /// Ends p2pvm on `b`.
    pub fn down(&self) {
        self.lab.p2pvm("b", &["down"]).unwrap_or_else(|e| panic!("{e}\n{}", self.lab.log_tail("b", 40)));
    }

    /// Offers the LAN behind `b`.
    pub fn offer(&self) {
        self.lab.p2pvm("b", &["route", "offer", &format!("{LAN}.0/24")]).unwrap();
    }

    /// No longer offers it.
    pub fn withdraw(&self) {
        self.lab.p2pvm("b", &["route", "withdraw", &format!("{LAN}.0/24")]).unwrap();
    }

    /// What `b` is like now.
    pub fn state(&self) -> HostState {
        HostState::of(self.lab.testbed(), "b").unwrap()
    }

    /// What `b` is like now but for its processes, of which a whole system has some that come and go.
    pub fn lasting_state(&self) -> HostState {
        self.state().without("processes")
    }

    /// Whether `b` finds names that are not the network's.
    pub fn finds_other_names(&self) -> bool {
        probe::look_up(&self.lab, "b", "elsewhere.example.net").first().is_some_and(|found| found == "192.0.2.77")
    }

    /// What of the network's promises does not hold within the limit.
    pub fn broken(&self, limit: Duration) -> Vec<String> {
        let from = |host: &str| probe::From::host(&self.lab, host).unwrap();
        let (a, b) = (from("a"), from("b"));
        let finds = |name: &str, address: &str| probe::look_up(&self.lab, "b", name).first().is_some_and(|found| found == address);
        let lan = &self.lan.address;
        let checks: [(&str, &dyn Fn() -> bool); 8] = [
            ("ping from b to a", &|| b.pings(&self.a)),
            ("ping from a to b", &|| a.pings(&self.b)),
            ("TCP from b to a", &|| b.connects(&self.a, PORT)),
            ("TCP from a to b", &|| a.connects(&self.b, PORT)),
            ("ping from a to the LAN behind b", &|| a.pings(lan)),
            ("TCP from a to the LAN behind b", &|| a.connects(lan, PORT)),
            ("the network's names on b", &|| finds("a.lab.p2p", &self.a)),
            ("other names on b", &|| finds("elsewhere.example.net", "192.0.2.77")),
        ];
        // One limit for all: they come back together or not at all.
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        checks.into_iter().filter(|(_, works)| probe::within(left(), works).is_none()).map(|(what, _)| what.to_owned()).collect()
    }

    /// What does not work within the limit and is not told by `doctor` either, with words that lead to that program.
    pub fn silent(&self, program: Program, limit: Duration) -> Vec<String> {
        let broken = self.broken(limit);
        if broken.is_empty() {
            return broken;
        }
        let (_, out, said) = self.lab.try_p2pvm("b", &["doctor"]).unwrap();
        let told = format!("{out}\n{said}");
        println!("beside {}: {broken:?}; doctor:\n{told}", program.name);
        // A name that is not found is never some firewall's fault here, and pings pass each of them.
        let is_told = |what: &String| !what.starts_with("ping from b") && words_of(program).iter().any(|word| told.contains(word));
        broken.into_iter().filter(|what| !is_told(what)).collect()
    }

    /// What is good to know when something fails.
    pub fn report(&self) -> String {
        let ask = |words: &[&str]| {
            let said = self.lab.testbed().exec("b", words);
            said.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned()).unwrap_or_else(|e| e.to_string())
        };
        let resolv = fs::read_to_string(self.lab.testbed().files("b").unwrap().join("etc/resolv.conf")).unwrap_or_else(|e| e.to_string());
        let program = env!("CARGO_BIN_EXE_p2pvm");
        let mut text = format!("--- resolv.conf of b\n{resolv}\n");
        for words in [
            &["ip", "-br", "addr"][..],
            &["ip", "rule"],
            &["sh", "-c", "ip route show table all | grep -vE '^(broadcast|multicast|local|fe80)'"],
            &["nft", "list", "ruleset"],
            &["sh", "-c", "[ ! -d /run/systemd/system ] || journalctl --no-pager -n 40 -o cat"],
            &[program, "doctor"],
            &[program, "route", "list"],
        ] {
            text.push_str(&format!("--- b: {}\n{}\n", words.join(" ").replace(program, "p2pvm"), ask(words)));
        }
        text.push_str(&format!("--- log of b\n{}\n", self.lab.log_tail("b", 40)));
        if let Some(directory) = std::env::var_os("P2PVM_TEST_REPORTS") {
            let file = Path::new(&directory).join(format!("{}.txt", self.lab.testbed().plan().name));
            let _ = fs::write(file, &text);
        }
        text
    }
}
