//! The network of a chaos run: `b`, behind a NAT, is the host on which all events happen; `a` is
//! the founder; `c` has a LAN of its own and the provider's name server.

use super::{BACK, Cause, ChaosError, Outcome, Step};
use crate::{
    chain, conntrack,
    host_state::HostState,
    hosts::{self, Flow, InnerMachine, Program, flow::POLL, probe, tree},
    lab::{Lab, LabError},
    namespace,
    sites::Sites,
    testbed,
};
use p2pvm_api::VmView;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const SITES: &str = "seed = 1\n[default]\nrtt_ms = 10\nmbit = 500\n[[site]]\nname \
    = \"a\"\n[[site]]\nname = \"b\"\n\
                     nat = \"port-restricted\"\n[[site]]\nname = \"c\"\n";
const SETTINGS: &str = "cpus = 1\nupnp = false\nautonomic = false\n";
/// The LANs behind `b` and `c`.
const LAN_HERE: &str = "192.168.77";
const LAN_THERE: &str = "192.168.88";
/// The second uplink's and the other address of `b`, by their last octet.
const SECOND: u8 = 60;
const OTHER: u8 = 70;
/// How long a guest may take to boot before the run fails.
const BOOT: Duration = Duration::from_secs(120);
/// How long an address of the new network may take to answer before the run fails.
const SETTLE: Duration = Duration::from_secs(30);

/// Lets the run set the daemon's wall clock; its monotonic clock is left alone.
const CLOCK: [(&str, &str); 4] = [
    (
        "LD_PRELOAD",
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    ),
    ("FAKETIME_TIMESTAMP_FILE", "/var/lib/clock"),
    ("FAKETIME_CACHE_DURATION", "1"),
    ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
];
/// Removes what Docker and firewalld leave when they stop, which no other program may remove.
const PURGE: &str = "nft list tables | while read -r table; do case $table in *p2pvm*) ;; *) nft \
    delete $table ;; esac; done
ip link del docker0 2>/dev/null || true
sysctl -q net.ipv4.ip_forward=0
rm -rf /etc/docker /etc/firewalld.bak /run/docker
# A Docker that starts beside firewalld gives its bridges a zone there, for good.
rm -f /etc/firewalld/zones/docker.xml* /etc/firewalld/policies/docker-*.xml*";

pub(super) struct Stage {
    // Flows end before the lab under them.
    flows: Vec<Flow>,
    here: InnerMachine,
    there: InnerMachine,
    lab: Lab,
    environment: Vec<(String, String)>,
    before: HostState,
    running: Vec<Program>,
    guest: bool,
}

impl Stage {
    pub(super) fn raise(
        program: &Path,
        name: &str,
        image: Option<&Path>,
    ) -> Result<Self, ChaosError> {
        let tree = tree::get().map_err(ChaosError::NoTree)?;
        let mut lab = Lab::up(&Sites::parse(SITES)?, name, program)?;
        let host = lab.testbed().host("b")?.clone();
        let server = lab.testbed().host("c")?.address.to_string();
        let image = image
            .map(|image| image.canonicalize())
            .transpose()
            .map_err(|e| LabError::Io("the guest's image".into(), e))?;
        let binds: Vec<&Path> = image.iter().map(|image| image.as_path()).collect();
        hosts::settle(&mut lab, &["b"], &tree, &binds, &server)?;
        probe::ProbeSource::host(&lab, "c")?.serve_names(&server, "p2p")?;
        let here = InnerMachine::lan(&lab, "b", "lan0", LAN_HERE, false)?;
        let there = InnerMachine::lan(&lab, "c", "lan0", LAN_THERE, false)?;
        let site = &lab.testbed().plan().sites[host.site];
        second_uplink(&host.namespace, &site.namespace, &site.gateway.to_string())?;
        let gateway = site.gateway.octets();
        let at = |last: u8| format!("{}.{}.{}.{last}", gateway[0], gateway[1], gateway[2]);
        let environment = [
            ("DEV", "p2pvm0".to_owned()),
            ("ADDR", host.address.to_string()),
            ("OTHER", at(OTHER)),
            ("SECOND", at(SECOND)),
            ("GW", site.gateway.to_string()),
            ("SERVER", server),
            ("LAN_THERE", format!("{LAN_THERE}.0/24")),
            ("P2PVM", program.display().to_string()),
            ("NETWORK_B", "/var/lib/network-b".to_owned()),
        ];
        let environment = environment
            .into_iter()
            .chain(CLOCK.map(|(key, value)| (key, value.to_owned())));
        let environment = environment
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let before = HostState::default();
        let mut stage = Self {
            flows: Vec::new(),
            here,
            there,
            lab,
            environment,
            before,
            running: Vec::new(),
            guest: false,
        };
        stage.network()?;
        if let Some(image) = image {
            stage.boot(&image)?;
        }
        stage.flow()?;
        Ok(stage)
    }

    /// Founds the network and records the state of `b` without p2pvm.
    fn network(&mut self) -> Result<(), LabError> {
        for host in ["a", "b", "c"] {
            let resolver = if host == "b" {
                "resolver = \"auto\"\n"
            } else {
                ""
            };
            self.lab.configure(host, &format!("{SETTINGS}{resolver}"))?;
        }
        self.lab.found("a", "lab")?;
        let invite = self.lab.invite("a", 2)?;
        ["b", "c"]
            .into_iter()
            .try_for_each(|host| self.lab.join(host, &invite).map(drop))?;
        self.lab.p2pvm("b", &["down"])?;
        self.script(
            "echo +0 >/var/lib/clock; mkdir -p $NETWORK_B
printf 'cpus = 1\\nupnp = false\\nautonomic = false\\nresolver = \"auto\"\\nport = \
4101\\nlink_port = 4102\\ndevice = \"p2pvm1\"\\n' >$NETWORK_B/node.toml
$P2PVM --dir $NETWORK_B init --network other >/dev/null",
        )?;
        // At their first start both make directories and set sysctls that stay.
        for program in [hosts::DOCKER, hosts::FIREWALLD] {
            program.start(&self.lab, "b")?;
            program.stop(&self.lab, "b")?;
        }
        self.script(PURGE)?;
        self.before = HostState::of(self.lab.testbed(), "b")?;
        self.script("$P2PVM up --detach")?;
        self.lab
            .p2pvm("b", &["route", "offer", &format!("{LAN_HERE}.0/24")])?;
        self.lab
            .p2pvm("c", &["route", "offer", &format!("{LAN_THERE}.0/24")])?;
        ["a", "b"]
            .into_iter()
            .try_for_each(|host| self.lab.p2pvm(host, &["route", "accept"]).map(drop))
    }

    /// Starts a guest on `b`.
    fn boot(&mut self, image: &Path) -> Result<(), LabError> {
        let image = image.display().to_string();
        let made: VmView = self.lab.json(
            "b",
            &[
                "vm", "create", "chaos", "--image", &image, "--memory", "128M", "--start",
            ],
        )?;
        self.lab.wait_for_guest("a", &made.address, BOOT)?;
        self.flows.push(Flow::pings(
            "guest",
            &probe::ProbeSource::host(&self.lab, "a")?,
            &made.address,
        )?);
        self.guest = true;
        Ok(())
    }

    /// Starts the flows.
    fn flow(&mut self) -> Result<(), LabError> {
        let address =
            |host: &str| Ok::<_, LabError>(self.lab.status(host)?.address.unwrap_or_default());
        let (a, b) = (
            probe::ProbeSource::host(&self.lab, "a")?,
            probe::ProbeSource::host(&self.lab, "b")?,
        );
        let (address_a, address_b) = (address("a")?, address("b")?);
        let reached = |from: &probe::ProbeSource, to: &str| {
            probe::within(SETTLE, || from.pings(to)).ok_or_else(|| LabError::TimedOut {
                what: format!("an answer of {to}"),
                seconds: SETTLE.as_secs(),
            })
        };
        reached(&a, &address_b)?;
        reached(&a, &self.here.address)?;
        reached(&b, &self.there.address)?;
        let more = [
            Flow::stream("stream", &a, &b, &address_b, 6000)?,
            Flow::pings("LAN here", &a, &self.here.address)?,
            Flow::pings("LAN there", &b, &self.there.address)?,
            Flow::names(
                "names",
                self.lab.testbed(),
                "b",
                &[
                    ("a.lab.p2p", &address_a),
                    ("elsewhere.example.net", "192.0.2.77"),
                ],
            )?,
        ];
        self.flows.extend(more);
        Ok(())
    }

    pub(super) fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// Runs a script on `b`.
    fn script(&self, text: &str) -> Result<(), testbed::Error> {
        // Only p2pvm is under the changed clock, not the shell and its tools.
        let mut command = Command::new("sh");
        let own = self
            .environment
            .iter()
            .filter(|(key, _)| !CLOCK.iter().any(|(name, _)| name == key));
        let clock: Vec<String> = CLOCK
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        command
            .args(["-uc", text])
            .envs(own.map(|(key, value)| (key, value)));
        let program = self
            .environment
            .iter()
            .find(|(key, _)| key == "P2PVM")
            .map(|(_, value)| value.clone())
            .unwrap_or_default();
        command.env("P2PVM", format!("env {} {program}", clock.join(" ")));
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let child = self.lab.testbed().spawn("b", &mut command)?;
        let output = child
            .wait_with_output()
            .map_err(|e| testbed::Error::Io("wait for a script".into(), e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(testbed::Error::Command {
            host: "b".into(),
            line: text.into(),
            status: output.status,
            said,
        })
    }

    /// Runs the event of a step and waits until all flows are back.
    pub(super) fn play(&mut self, step: &Step) -> Result<Outcome, ChaosError> {
        self.happen(step.event.cause)?;
        let end = Instant::now();
        let (mut back, mut missing) = (Vec::new(), Vec::new());
        let mut waiting: Vec<&Flow> = self.flows.iter().collect();
        // All are checked in turn: the time of a flow must not include the wait for another.
        while !waiting.is_empty() {
            let is_over = end.elapsed() > BACK;
            waiting.retain(|flow| {
                match flow.back(end) {
                    Ok(Some(after)) => back.push((flow.name().to_owned(), after.as_secs_f64())),
                    Ok(None) if is_over => missing.push(flow.overdue(BACK)),
                    Ok(None) => return true,
                    Err(why) => missing.push(why),
                }
                false
            });
            std::thread::sleep(POLL);
        }
        Ok(Outcome {
            number: step.number,
            event: step.event.name,
            back,
            missing,
        })
    }

    fn happen(&mut self, cause: Cause) -> Result<(), ChaosError> {
        match cause {
            Cause::Once(script) => self.script(script)?,
            Cause::Lasting(script, seconds, end) => {
                self.script(script)?;
                std::thread::sleep(Duration::from_secs(seconds));
                self.script(end)?;
            }
            Cause::Toggle(program) => {
                if let Some(at) = self.running.iter().position(|running| *running == program) {
                    self.running.remove(at);
                    program.stop(&self.lab, "b")?;
                } else {
                    self.running.push(program);
                    program.start(&self.lab, "b")?;
                }
            }
            Cause::RouterForgets => {
                let flushed = self.lab.testbed().inside_router("b", conntrack::flush)?;
                flushed
                    .map_err(|e| testbed::Error::Io("flush the router's connections".into(), e))?;
            }
            Cause::Cut(seconds) => {
                self.lab.testbed().cut("a", "b")?;
                std::thread::sleep(Duration::from_secs(seconds));
                self.lab.testbed().heal("a", "b")?;
            }
        }
        Ok(())
    }

    fn log(&self) -> String {
        let file = self.lab.dir("b").map(|dir| dir.join("daemon.log"));
        file.ok()
            .and_then(|file| fs::read_to_string(file).ok())
            .unwrap_or_default()
    }

    /// Warnings and errors in the log of `b`.
    pub(super) fn warnings(&self) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
            .count()
    }

    /// The state of the hosts, to explain a step that failed.
    pub(super) fn report(&self) -> String {
        let mut text = String::new();
        for line in [
            "ip -br addr",
            "ip rule",
            "ip route show table all | grep -vE '^(broadcast|multicast|local|fe80)'",
            "nft list ruleset",
            "cat /etc/resolv.conf",
            "$P2PVM doctor",
        ] {
            let line = line.replace(
                "$P2PVM",
                self.environment
                    .iter()
                    .find(|(key, _)| key == "P2PVM")
                    .map_or("", |(_, value)| value),
            );
            let said = self
                .lab
                .testbed()
                .exec("b", &["timeout", "20", "sh", "-c", &line]);
            let said =
                said.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned());
            text.push_str(&format!(
                "--- b: {line}\n{}\n",
                said.unwrap_or_else(|e| chain(&e))
            ));
        }
        for host in ["a", "b", "c"] {
            let peers = self
                .lab
                .p2pvm(host, &["peers"])
                .unwrap_or_else(|e| chain(&e));
            text.push_str(&format!(
                "--- {host}: p2pvm peers\n{peers}\n--- log of {host}\n{}\n",
                self.lab.log_tail(host, 30)
            ));
        }
        text
    }

    /// Ends everything; returns what p2pvm left on the host.
    pub(super) fn end(mut self) -> Result<Vec<String>, ChaosError> {
        self.flows.clear();
        if self.guest {
            self.lab.p2pvm("b", &["vm", "stop", "chaos"])?;
            self.lab.p2pvm("b", &["vm", "delete", "chaos"])?;
        }
        for program in std::mem::take(&mut self.running) {
            program.stop(&self.lab, "b")?;
        }
        self.lab.p2pvm("b", &["down"])?;
        let gone = HostState::of(self.lab.testbed(), "b")?;
        let sections = [
            "links",
            "routes",
            "rules",
            "nft",
            "legacy",
            "files",
            "processes",
        ];
        // The runtime directory with its locks stays until the host boots again, as the systemd
        // unit has it.
        let is_left = |line: &&String| line.contains("p2pvm") && *line != "/run/p2pvm";
        let own = sections
            .iter()
            .flat_map(|section| gone.section(section))
            .filter(is_left);
        let mut left: Vec<String> = own.cloned().collect();
        self.script(PURGE)?;
        left.extend(
            self.before
                .difference(&HostState::of(self.lab.testbed(), "b")?)
                .0,
        );
        self.lab.down()?;
        Ok(left)
    }
}

/// Gives the host a second cable to its router.
fn second_uplink(host: &str, router: &str, gateway: &str) -> Result<(), testbed::Error> {
    let net = gateway.rsplit_once('.').map_or(gateway, |(net, _)| net);
    namespace::run(
        "ip",
        &[
            "link", "add", "name", "eth1", "netns", host, "type", "veth", "peer", "name", "second",
            "netns", router,
        ],
        "",
    )?;
    namespace::run(
        "ip",
        &["-n", router, "-batch", "-"],
        "link set second master lan\nlink set second up\n",
    )?;
    // A host route only: the network itself stays eth0's.
    let batch = format!(
        "addr add {net}.{SECOND}/32 dev eth1\nlink set eth1 up\nroute add {gateway}/32 dev eth1 \
            metric 900\n"
    );
    namespace::run("ip", &["-n", host, "-batch", "-"], &batch)
}
