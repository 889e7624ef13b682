//! The stage of the rogue suite: a network of real daemons on the emulated wide area, and beside
//! them members without a daemon that send what each attempt needs.
//!
//! The hosts `a` (the founder's, which has the VM "web"), `b` and `c` run daemons. `r` (a member),
//! `d` (a delegate) and `p` (an honest member that measures what others get) have joined with
//! invites and then ended their daemons: [`Member`] speaks with their keys.
//!
//! An attempt is a row of a table. Each is played although others before it have failed, and after
//! each the daemons are looked at: the same processes, no panic, healthy.

pub mod chunks;
pub mod flood;
pub mod frames;
pub mod guest;
pub mod member;
pub mod membership;
pub mod records;
pub mod vms;
pub mod votes;

use super::common::{SETTINGS, address, image, lab, network, public_sites};
use member::Member;
use p2pvm_api::{Health, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use p2pvm_overlay::{MemberId, VmId};
use std::{
    any::Any,
    fs,
    net::{SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// The hosts with daemons.
pub const DAEMONS: [&str; 3] = ["a", "b", "c"];
/// How long a daemon may take to be healthy again after an attempt. Reason: VMs that were offered
/// and do not come are dropped after half a minute.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long a guest may take to boot where it runs translated.
const BOOT: Duration = Duration::from_secs(120);
/// How long a connection that is carried takes at most.
const REACH: Duration = Duration::from_secs(3);

/// An attempt: it fails where the attacked side does not do as it should.
pub type Attempt = (&'static str, fn(&Stage));

/// See the module.
pub struct Stage {
    pub rogue: Member,
    pub delegate: Member,
    pub honest: Member,
    /// The VM on `a`.
    pub web: VmView,
    /// The snapshot of it, as an id.
    pub snapshot: String,
    members: Vec<MemberId>,
    pids: Vec<String>,
    /// Each daemon's word of health before the first attempt.
    words: Vec<Health>,
    /// Last: the members' sockets are on its networks.
    pub lab: Lab,
}

impl Stage {
    /// Raises it, with the guest running and its snapshot on other members.
    pub fn raise(test: &str) -> Self {
        let lab = lab(test, &public_sites(&["a", "b", "c", "r", "p", "d"], 4.0));
        prepare_images(&lab);
        // The VM's voters and the keepers of its snapshot are the members that stay daemons.
        network(&lab, &DAEMONS);
        let web = boot(&lab);
        for name in ["idle", "busy"] {
            let words = ["vm", "create", name, "--image", image(), "--memory", "64M"];
            lab.p2pvm("a", &words).unwrap();
        }
        let taken: p2pvm_api::SnapshotTaken = lab
            .json("a", &["vm", "snapshot", "web", "--name", "kept"])
            .unwrap();
        let invite = lab.invite("a", 2).unwrap();
        for host in ["r", "p"] {
            lab.join(host, &invite).unwrap();
        }
        let delegate = lab.p2pvm("a", &["invite", "--delegate"]).unwrap();
        lab.join("d", &delegate).unwrap();
        let rogue = Member::take_over(&lab, "r", true);
        let delegate = Member::take_over(&lab, "d", false);
        let honest = Member::take_over(&lab, "p", false);
        let id = |host: &str| lab.status(host).unwrap().member.parse().unwrap();
        let members: Vec<MemberId> = DAEMONS.iter().map(|host| id(host)).collect();
        for member in [&rogue, &delegate, &honest] {
            member.wait_for(&members);
        }
        let pids = DAEMONS.iter().map(|host| pid(&lab, host)).collect();
        let word = |host: &&str| lab.status(host).unwrap().health.word;
        let words = DAEMONS.iter().map(word).collect();
        Self {
            snapshot: taken.checkpoint.to_string(),
            lab,
            rogue,
            delegate,
            honest,
            web,
            members,
            pids,
            words,
        }
    }

    /// Takes it down.
    pub fn down(self) {
        let Self {
            lab,
            rogue,
            delegate,
            honest,
            ..
        } = self;
        drop((rogue, delegate, honest));
        lab.down().unwrap();
    }

    /// The member of a daemon.
    pub fn id(&self, host: &str) -> MemberId {
        let at = DAEMONS.iter().position(|daemon| *daemon == host);
        self.members[at.expect("it runs a daemon")]
    }

    /// The VM "web".
    pub fn vm(&self) -> VmId {
        self.web.id.parse().expect("a VM's id")
    }

    /// Plays all attempts, then fails with the names of those that failed.
    pub fn play(&self, attempts: &[Attempt]) {
        let mut failed = Vec::new();
        for (name, attempt) in attempts {
            let began = Instant::now();
            let played = catch_unwind(AssertUnwindSafe(|| {
                attempt(self);
                self.assert_well();
            }));
            let took = began.elapsed().as_millis();
            match played {
                Ok(()) => println!("held: {name} ({took} ms)"),
                Err(why) => {
                    println!("FAILED: {name} ({took} ms): {}", said(&*why));
                    failed.push(format!("{name}: {}", said(&*why)));
                }
            }
        }
        let logs = |host: &&str| format!("--- {host}\n{}", self.lab.log_tail(host, 25));
        assert!(
            failed.is_empty(),
            "{} of {} attempts did not end as they should:\n{}\n{}",
            failed.len(),
            attempts.len(),
            failed.join("\n"),
            DAEMONS.iter().map(logs).collect::<Vec<_>>().join("\n")
        );
    }

    /// All daemons are the same processes, have not panicked, and are as healthy as before; the
    /// guest runs on the same host.
    pub fn assert_well(&self) {
        for (host, before) in DAEMONS.iter().zip(&self.pids) {
            assert_eq!(&pid(&self.lab, host), before, "{host} was restarted");
            let log = fs::read_to_string(self.lab.dir(host).unwrap().join("daemon.log"));
            let log = log.unwrap_or_default();
            let panic = log.lines().find(|line| line.contains("panicked at"));
            assert!(panic.is_none(), "{host}: {panic:?}");
        }
        let began = Instant::now();
        while let Some(ill) = self.ill() {
            assert!(began.elapsed() < RECOVERY, "{ill}");
            std::thread::sleep(Duration::from_millis(300));
        }
        self.assert_web_runs();
    }

    fn ill(&self) -> Option<String> {
        DAEMONS.iter().zip(&self.words).find_map(|(host, before)| {
            match self.lab.status(host).map(|status| status.health) {
                Ok(health) if health.word == Health::Ok || health.word == *before => None,
                Ok(health) => Some(format!("{host} is {}: {}", health.word, health.why)),
                Err(error) => Some(format!("{host} does not answer: {}", chain(&error))),
            }
        })
    }

    /// The VM "web" is as it was made.
    pub fn assert_web_runs(&self) {
        let now = self.lab.vm("b", "web").unwrap();
        let seen = |vm: &VmView| (vm.id.clone(), vm.host.clone(), vm.address.clone(), vm.epoch);
        assert_eq!(seen(&now), seen(&self.web));
        assert_eq!(now.state, VmStateView::Running);
    }

    /// Packets of a host reach this address and are answered, be it by a refusal.
    pub fn reaches(&self, from: &str, address: &str, port: u16) -> bool {
        let to: SocketAddr = format!("{address}:{port}").parse().unwrap();
        let tried = || match TcpStream::connect_timeout(&to, REACH) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        };
        self.lab.testbed().inside(from, tried).unwrap()
    }

    /// A host's address in the network is still its own, seen from the others.
    pub fn assert_reached(&self, host: &str) {
        let own = address(&self.lab, host);
        for from in DAEMONS.iter().filter(|from| **from != host) {
            // No program listens there: the host's kernel refuses, which is an answer.
            assert!(self.reaches(from, &own, 9), "{from} does not reach {host}");
        }
    }

    /// The guest's program answers, seen from `b` and `c`.
    pub fn assert_guest_reached(&self) {
        for from in ["b", "c"] {
            self.lab
                .wait_for_guest(from, &self.web.address, Duration::from_secs(10))
                .unwrap_or_else(|e| panic!("from {from}: {}", chain(&e)));
        }
    }
}

/// What a caught panic said.
fn said(why: &(dyn Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

fn pid(lab: &Lab, host: &str) -> String {
    fs::read_to_string(lab.dir(host).unwrap().join("daemon.pid")).unwrap()
}

/// `a` offers a directory with a real image, a link out of it and a FIFO.
fn prepare_images(lab: &Lab) {
    let dir = lab.dir("a").unwrap();
    let offered = dir.join("offered");
    fs::create_dir_all(&offered).unwrap();
    std::os::unix::fs::symlink(dir.join("root.key"), offered.join("link")).unwrap();
    nix::unistd::mkfifo(
        &offered.join("fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o644),
    )
    .unwrap();
    let offer = format!("[offer]\nimages = [\"{}\"]\n", offered.display());
    lab.configure("a", &format!("{SETTINGS}{offer}")).unwrap();
}

/// Makes "web" on `a`, and waits until its guest answers.
fn boot(lab: &Lab) -> VmView {
    let words = [
        "vm",
        "create",
        "web",
        "--image",
        image(),
        "--memory",
        "96M",
        "--start",
    ];
    let web: VmView = lab
        .json("a", &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 40)));
    lab.wait_for_guest("b", &web.address, BOOT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 40)));
    web
}
