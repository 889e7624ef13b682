//! A network of three members for one other program, what is asked of it, and what is said when
//! something fails.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod guest;

use crate::common::{SETTINGS, address, lab, network, public_sites};
use p2pvm_api::DoctorPage;
use p2pvm_lab::{
    chain,
    host_state::HostState,
    hosts::{
        self, BootError, BootedHost, DOCKER, InnerMachine, KUBERNETES, LIBVIRT, NETAVARK, Program,
        probe, tree,
    },
    lab::Lab,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A TCP port that hosts answer on; no firewall of the suite knows it.
const PORT: u16 = 5555;
/// The LAN behind `b`.
const LAN: &str = "192.168.77";

/// What firewalls are wont to break of [`Stage::broken`] and [`guest::Guest::broken`].
pub const TCP: &str = "TCP from a to b";
pub const TCP6: &str = "TCP over IPv6 from a to b";
pub const LAN_PING: &str = "ping from a to the LAN behind b";
pub const GUEST_TCP: &str = "TCP from the guest to b";
pub const LAN_TCP: &str = "TCP from a to the LAN behind b";

/// The network of a test.
pub struct Stage {
    /// The machine on the LAN behind `b`.
    pub lan: InnerMachine,
    /// The address of `a` outside the network, which containers of `b` reach as they reach the
    /// internet.
    pub outside: String,
    /// The addresses of `a` and `b` in the network.
    pub a: String,
    pub b: String,
    /// The IPv6 address of `b` in the network.
    pub b6: String,
    /// A program on `b` that looks names up by musl's C library, where there is one.
    musl: Option<PathBuf>,
    /// The hosts; what is on them ends before.
    pub lab: Lab,
}

/// The bridge of a program's containers, the address of one, its prefix, and its gateway.
pub fn bridge_of(program: Program) -> Option<(&'static str, &'static str, u8, &'static str)> {
    match program {
        DOCKER => Some(("docker0", "172.17.0.2", 16, "172.17.0.1")),
        LIBVIRT => Some(("virbr0", "192.168.122.50", 24, "192.168.122.1")),
        KUBERNETES => Some(("cni0", "10.244.0.7", 24, "10.244.0.1")),
        NETAVARK => Some(("podman0", "10.88.0.50", 16, "10.88.0.1")),
        _ => None,
    }
}

/// A container or guest of that program on `b`, if it has such.
pub fn container_of(program: Program, lab: &Lab) -> Option<InnerMachine> {
    let (bridge, address, bits, gateway) = bridge_of(program)?;
    Some(InnerMachine::bridged(lab, "b", bridge, address, bits, gateway).unwrap())
}

/// What does not work, and the findings by which `doctor` has to name the cause.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// What does not work, all of it: everything else does.
    pub broken: &'static [&'static str],
    /// Every finding about a firewall: the chain that drops, and the whole command that helps.
    pub findings: &'static [(&'static str, &'static str)],
}

fn settings_of(more: &str) -> String {
    format!("{SETTINGS}resolver = \"auto\"\n{more}")
}

impl Stage {
    /// Three members; p2pvm does not run on `b` yet. None, with the reason printed, where this
    /// machine cannot have it.
    pub fn raise(test: &str) -> Option<Self> {
        Self::with(test, "")
    }

    /// The same with further settings of `b`.
    pub fn with(test: &str, settings: &str) -> Option<Self> {
        Self::with_files(test, settings, &[])
    }

    /// The same with files of this machine that `b` sees, too.
    pub fn with_files(test: &str, settings: &str, files: &[&Path]) -> Option<Self> {
        let tree = match tree::get() {
            Ok(tree) => tree,
            Err(why) => {
                println!("NOT RUN: no Debian tree can be made here: {why}");
                return None;
            }
        };
        // Not the test's name: what doctor says of a program must not be the name of a directory.
        let number = hosts::PROGRAMS
            .iter()
            .position(|program| program.name == test)
            .map_or(test.to_owned(), |n| n.to_string());
        let mut lab = lab(
            &format!("host{number}"),
            &public_sites(&["a", "b", "c"], 4.0),
        );
        let server = lab.testbed().host("c").unwrap().address.to_string();
        let musl = tree::musl_lookup()
            .inspect_err(|why| println!("NOT RUN: musl's look-ups: {why}"))
            .ok();
        let binds: Vec<&Path> = musl
            .iter()
            .map(PathBuf::as_path)
            .chain(files.iter().copied())
            .collect();
        hosts::settle(&mut lab, &["b"], &tree, &binds, &server).unwrap();
        Some(Self::meet(lab, settings, musl))
    }

    /// The same with a Debian that is booted on `b`, after what `prepare` says for `b`'s address,
    /// its gateway and its name server.
    pub fn boot(
        test: &str,
        prepare: impl Fn(&str, &str, &str) -> String,
    ) -> Option<(Self, BootedHost)> {
        let not_run = |why: &dyn std::fmt::Display| println!("NOT RUN: {why}");
        let tree = tree::get().inspect_err(|why| not_run(why)).ok()?;
        let mut lab = lab(
            &format!("slow-{test}"),
            &public_sites(&["a", "b", "c"], 4.0),
        );
        let (server, host) = (
            lab.testbed().host("c").unwrap().address.to_string(),
            lab.testbed().host("b").unwrap().clone(),
        );
        let gateway = lab.testbed().plan().sites[host.site].gateway.to_string();
        // The system on it sees to its uplink from now on.
        lab.testbed()
            .run("b", &["ip", "addr", "flush", "dev", "eth0"])
            .unwrap();
        let prepare = prepare(&host.address.to_string(), &gateway, &server);
        let booted = match BootedHost::start(&mut lab, "b", &tree, &prepare) {
            Err(BootError::NoProgram) => {
                not_run(&BootError::NoProgram);
                return None;
            }
            booted => booted.unwrap(),
        };
        Some((Self::meet(lab, "", None), booted))
    }

    /// Founds the network and ends p2pvm on `b`.
    fn meet(lab: Lab, settings: &str, musl: Option<PathBuf>) -> Self {
        let server = lab.testbed().host("c").unwrap().address.to_string();
        lab.configure("b", &settings_of(settings)).unwrap();
        let from = |host: &str| probe::ProbeSource::host(&lab, host).unwrap();
        from("c").serve_names(&server, "p2p").unwrap();
        let lan = InnerMachine::lan(&lab, "b", "lan0", LAN, false).unwrap();
        lan.from().answer(PORT).unwrap();
        ["a", "b"]
            .into_iter()
            .for_each(|host| from(host).answer(PORT).unwrap());
        from("a").answer(80).unwrap();
        network(&lab, &["a", "b", "c"]);
        lab.p2pvm("a", &["route", "accept"]).unwrap();
        let (a, b) = (address(&lab, "a"), address(&lab, "b"));
        let b6 = lab.status("b").unwrap().address_v6;
        let outside = lab.testbed().host("a").unwrap().address.to_string();
        let stage = Self {
            lan,
            outside,
            a,
            b,
            b6,
            musl,
            lab,
        };
        stage.down();
        stage
    }

    /// Other settings of `b` from its next start on.
    pub fn configure(&self, settings: &str) {
        self.lab.configure("b", &settings_of(settings)).unwrap();
    }

    /// Starts p2pvm on `b`.
    pub fn up(&self) {
        self.lab
            .start("b")
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), self.lab.log_tail("b", 40)));
    }

    /// Ends p2pvm on `b`.
    pub fn down(&self) {
        self.lab
            .p2pvm("b", &["down"])
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), self.lab.log_tail("b", 40)));
    }

    /// Offers the LAN behind `b`.
    pub fn offer(&self) {
        self.try_offer()
            .unwrap_or_else(|said| panic!("{said}\n{}", self.report()));
    }

    /// The same on a machine that may not forward; an error is what was said.
    pub fn try_offer(&self) -> Result<(), String> {
        let (code, _, said) = self
            .lab
            .try_p2pvm("b", &["route", "offer", &format!("{LAN}.0/24")])
            .unwrap();
        if code == 0 { Ok(()) } else { Err(said) }
    }

    /// Whether `a` has heard of an offer of that LAN.
    pub fn is_offered(&self) -> bool {
        self.lab
            .p2pvm("a", &["route", "list"])
            .unwrap()
            .contains(LAN)
    }

    /// No longer offers it.
    pub fn withdraw(&self) {
        self.lab
            .p2pvm("b", &["route", "withdraw", &format!("{LAN}.0/24")])
            .unwrap();
    }

    /// What `b` is like now.
    pub fn state(&self) -> HostState {
        // nft gives up without a word where the rules change while it lists them.
        let look = || HostState::of(self.lab.testbed(), "b");
        for _ in 0..20 {
            match look() {
                Ok(state) => return state,
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        look().unwrap()
    }

    /// What `b` is like now but for its processes, of which a whole system has some that come and
    /// go.
    pub fn lasting_state(&self) -> HostState {
        self.state().without("processes")
    }

    /// Whether `b` finds names that are not the network's.
    pub fn finds_other_names(&self) -> bool {
        probe::look_up(&self.lab, "b", "elsewhere.example.net")
            .first()
            .is_some_and(|found| found == "192.0.2.77")
    }

    /// What of the network's promises does not hold within the limit.
    pub fn broken(&self, limit: Duration) -> Vec<String> {
        let from = |host: &str| probe::ProbeSource::host(&self.lab, host).unwrap();
        let (a, b) = (from("a"), from("b"));
        let finds = |name: &str, address: &str| {
            probe::look_up(&self.lab, "b", name)
                .first()
                .is_some_and(|found| found == address)
        };
        let by_musl = |name: &str, address: &str| {
            self.musl.as_ref().is_none_or(|program| {
                let found = probe::look_up_by(&self.lab, "b", &[&program.to_string_lossy()], name);
                found.first().is_some_and(|found| found == address)
            })
        };
        let lan = &self.lan.address;
        let off = self
            .lab
            .testbed()
            .inside("b", || {
                fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6")
            })
            .unwrap();
        let has_v6 = off.is_ok_and(|off| off.trim() == "0");
        let checks: [(&str, &dyn Fn() -> bool); 11] = [
            ("ping from b to a", &|| b.pings(&self.a)),
            ("ping from a to b", &|| a.pings(&self.b)),
            ("TCP from b to a", &|| b.connects(&self.a, PORT)),
            (TCP, &|| a.connects(&self.b, PORT)),
            (TCP6, &|| !has_v6 || a.connects(&self.b6, PORT)),
            (LAN_PING, &|| a.pings(lan)),
            (LAN_TCP, &|| a.connects(lan, PORT)),
            ("the network's names on b", &|| finds("a.lab.p2p", &self.a)),
            ("other names on b", &|| {
                finds("elsewhere.example.net", "192.0.2.77")
            }),
            ("the network's names on b by musl", &|| {
                by_musl("a.lab.p2p", &self.a)
            }),
            ("other names on b by musl", &|| {
                by_musl("elsewhere.example.net", "192.0.2.77")
            }),
        ];
        // One limit for all: they come back together or not at all.
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        checks
            .into_iter()
            .filter(|(_, works)| probe::within(left(), works).is_none())
            .map(|(what, _)| what.to_owned())
            .collect()
    }

    /// What `doctor` says of other firewalls: what it found, and the command that helps.
    pub fn firewall_findings(&self) -> Vec<(String, String)> {
        let (_, out, said) = self.lab.try_p2pvm("b", &["--json", "doctor"]).unwrap();
        let page: DoctorPage =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("doctor: {e}: {out}{said}"));
        let about = page
            .checks
            .into_iter()
            .filter(|check| check.check == "firewall");
        about.map(|check| (check.found, check.advice)).collect()
    }

    /// Holds the host to what is expected of it: all works and `doctor` blames no firewall, or
    /// exactly what is named does not work and `doctor` says exactly why and what helps.
    pub fn hold(&self, named: Option<Named>, limit: Duration) -> Result<(), String> {
        self.hold_all(named, limit, self.broken(limit))
    }

    /// The same of what was found broken.
    pub fn hold_all(
        &self,
        named: Option<Named>,
        limit: Duration,
        broken: Vec<String>,
    ) -> Result<(), String> {
        let expected = named.unwrap_or(Named {
            broken: &[],
            findings: &[],
        });
        if broken != expected.broken {
            return Err(format!(
                "{broken:?} does not work, {:?} was expected not to",
                expected.broken
            ));
        }
        let is_named = |(found, advice): &(String, String), (chain, command): &(&str, &str)| {
            found.starts_with(&format!("{chain} (")) && advice == command
        };
        let mut said = Vec::new();
        let agrees = probe::within(limit, || {
            said = self.firewall_findings();
            let all = expected
                .findings
                .iter()
                .all(|named| said.iter().any(|said| is_named(said, named)));
            all && said.len() == expected.findings.len()
        });
        agrees.map(drop).ok_or_else(|| {
            format!(
                "doctor says {said:#?}, expected was {:#?}",
                expected.findings
            )
        })
    }

    /// Runs on `b` what `doctor` advises about other firewalls.
    pub fn follow_advice(&self) {
        for (found, advice) in self.firewall_findings() {
            println!("{found}: {advice}");
            self.lab
                .testbed()
                .run("b", &["sh", "-euc", &advice])
                .unwrap_or_else(|e| panic!("{found}: {e}"));
        }
    }

    /// What is good to know when something fails.
    pub fn report(&self) -> String {
        let ask = |words: &[&str]| {
            let said = self.lab.testbed().exec("b", words);
            said.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned())
                .unwrap_or_else(|e| chain(&e))
        };
        let resolv = fs::read_to_string(
            self.lab
                .testbed()
                .files("b")
                .unwrap()
                .join("etc/resolv.conf"),
        )
        .unwrap_or_else(|e| e.to_string());
        let program = env!("CARGO_BIN_EXE_p2pvm");
        let mut text = format!("--- resolv.conf of b\n{resolv}\n");
        for words in [
            &["ip", "-br", "addr"][..],
            &["ip", "rule"],
            &[
                "sh",
                "-c",
                "ip route show table all | grep -vE '^(broadcast|multicast|local|fe80)'",
            ],
            &["nft", "list", "ruleset"],
            &[
                "sh",
                "-c",
                "[ ! -d /run/systemd/system ] || journalctl --no-pager -n 40 -o cat",
            ],
            &[program, "doctor"],
            &[program, "route", "list"],
        ] {
            text.push_str(&format!(
                "--- b: {}\n{}\n",
                words.join(" ").replace(program, "p2pvm"),
                ask(words)
            ));
        }
        text.push_str(&format!("--- log of b\n{}\n", self.lab.log_tail("b", 40)));
        if let Some(directory) = std::env::var_os("P2PVM_TEST_REPORTS") {
            let file =
                Path::new(&directory).join(format!("{}.txt", self.lab.testbed().plan().name));
            let _ = fs::write(file, &text);
        }
        text
    }
}
