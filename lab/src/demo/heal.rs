//! The act in which nobody types anything: the plug of a protected VM's host is pulled, and the VM
//! goes on with its disk on another member. Then the host comes back, and its old copy gives way.

use super::{Demo, FOUNDER, HOME_A, HOME_B, MEMBERS, STRICT, seconds, words};
use crate::figures::Figure;
use p2pvm_api::{Doing, EventView, Failure, Kind, Outcome, VmStateView, VmView};
use std::time::{Duration, Instant};

/// The VM whose host is lost.
/// Reason: the voters of 'web' were chosen before a host lost its power; those of a new VM are
/// members that are there.
const VM: &str = "shop";
/// How long to wait for a protected VM with two heirs.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long to wait for the VM on an heir.
/// Reason: the host's lease and the silence after which it counts as lost are 30 s each, and the
/// guest boots without KVM.
const HEAL_LIMIT: Duration = Duration::from_secs(180);
/// How long to wait for what is told of the take-over.
const TOLD_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait until the host that came back has given the VM up.
const RETURN_LIMIT: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(500);

impl Demo {
    /// Pulls the plug of a protected VM's host and only watches.
    pub(super) fn heal(&mut self) -> Outcome<()> {
        let vm = self.protected()?;
        let lost = vm.host.clone();
        // The host that watches must not be the one that is lost.
        let watcher = if lost == STRICT { FOUNDER } else { STRICT };
        let heirs = vm.protection.map(|p| p.heirs.join(", "));
        let heirs = heirs.unwrap_or_default();
        self.say(&format!(
            "'{VM}' is protected, its heirs are {heirs}; the plug of {lost} is pulled, and nobody \
                types anything"
        ));
        let began = Instant::now();
        self.lab.testbed().kill(&lost).doing("pulling the plug")?;
        self.lab
            .wait_for_guest(watcher, &vm.address, HEAL_LIMIT)
            .doing(format_args!(
                "waiting for '{VM}', whose host {lost} lost its power and whose heirs are {heirs}"
            ))?;
        let took = began.elapsed();
        let (heir, left) = self.taken_over(&lost)?;
        let what = "healing, from the pulled plug to the first TCP answer";
        self.row(
            what,
            format!(
                "{:.1} s (on {heir}, nobody typed anything)",
                took.as_secs_f64()
            ),
            [
                seconds("heal", what, took, 1),
                words("heal-on", "the heir that started it", &heir),
            ],
        );
        let what = "healing, the VM came back with";
        self.row(what, &left, [words("heal-lost", what, &left)]);
        self.comes_back(&vm.address, &lost, watcher)
    }

    /// A new VM that is protected and has two heirs, on a home that has no other VM.
    fn protected(&self) -> Outcome<VmView> {
        let web = self.lab.vm(FOUNDER, "web").doing("looking for 'web'")?;
        let home = if web.host == HOME_B { HOME_A } else { HOME_B };
        self.say(&format!(
            "{home} creates and starts the VM '{VM}', whose disk goes to two other members every \
                2 s"
        ));
        let image = self.image.to_string_lossy().into_owned();
        let create = [
            "vm", "create", VM, "--image", &image, "--cpus", "1", "--memory", "128M", "--start",
        ];
        let made: VmView = self.lab.json(home, &create).doing("creating the VM")?;
        self.lab
            .wait_for_guest(STRICT, &made.address, Duration::from_secs(60))
            .doing("waiting for the guest")?;
        self.lab
            .p2pvm(home, &["vm", "protect", VM, "--replicate-every", "2s"])
            .doing("protecting the VM")?;
        let has_heirs = |vm: &VmView| {
            let protection = vm.protection.as_ref();
            vm.state == VmStateView::Running
                && protection.is_some_and(|p| p.protected && p.heirs.len() >= 2)
        };
        let what = "a protected VM with two heirs";
        let ready = self.lab.wait(what, READY_LIMIT, STEP, || {
            Ok(Some(self.lab.vm(home, VM)?).filter(has_heirs))
        });
        if ready.is_err()
            && let Ok(vm) = self.lab.vm(home, VM)
        {
            let why = vm.protection.map_or_else(String::new, |p| p.text);
            self.say(&format!("'{VM}' is {} on {}: {why}", vm.state, vm.host));
        }
        ready.doing(format_args!("waiting for the heirs of '{VM}'"))
    }

    /// The member that took the VM over, and what its event says was lost.
    /// Reason: the VM may have been moved on since, so that its present host did not do it.
    fn taken_over(&self, lost: &str) -> Outcome<(String, String)> {
        let list = ["events", "--vm", VM, "--kind", "vm-taken-over"];
        let what = "the event of the VM's new host";
        let told = self.lab.wait(what, TOLD_LIMIT, STEP, || {
            for host in std::iter::once(FOUNDER).chain(MEMBERS) {
                if host == lost {
                    continue;
                }
                // A host that lost its power in an earlier act has no daemon that answers.
                let mut events: Vec<EventView> = self.lab.json(host, &list).unwrap_or_default();
                if let Some(event) = events.pop() {
                    return Ok(Some((host.to_owned(), event.text)));
                }
            }
            Ok(None)
        });
        let (heir, told) = told.doing("asking what was lost")?;
        let lost = told.split_once(" was lost: ");
        let lost = lost.map_or(&*told, |(_, lost)| lost);
        Ok((heir, lost.trim_end_matches('.').to_owned()))
    }

    /// Gives the lost host its power back: its copy gives way, and one copy answers all the while.
    fn comes_back(&mut self, address: &str, lost: &str, watcher: &str) -> Outcome<()> {
        self.say(&format!(
            "{lost} has power again and starts with its old copy; a client at {watcher} counts \
                replies"
        ));
        let client = self
            .lab
            .client(watcher, address, 10)
            .doing("starting the client")?;
        self.lab
            .testbed()
            .revive(lost)
            .doing("giving the host its power back")?;
        self.lab.start(lost).doing("starting its daemon")?;
        let what = "an old copy that gave way to the one that runs";
        let gone = self.lab.wait(what, RETURN_LIMIT, STEP, || {
            Ok(copies(&self.lab.vms(lost)?, lost))
        });
        let copies = gone.doing(format_args!("asking {lost} for its copies of '{VM}'"))?;
        std::thread::sleep(Duration::from_secs(2));
        let seen = client.finish().doing("asking the client")?;
        if seen.doubled + seen.counter_gaps > 0 || seen.replies == 0 || seen.ended.is_some() {
            return Err(Failure::new(
                Kind::Failed,
                format!("not exactly one copy of '{VM}' answered: {seen:?}"),
            ));
        }
        let what = "healing, copies that run once the host is back";
        let one = Figure::new("heal-copies", what, "", [1.0]);
        self.row(what, copies, [one]);
        let count = |name, what, count: u64| Figure::new(name, what, "", [count as f64]);
        self.row(
            "healing, replies while it came back",
            format!(
                "{} of {}, {} doubled, {} counter gaps",
                seen.replies, seen.sent, seen.doubled, seen.counter_gaps
            ),
            [
                count("heal-replies", "replies to the TCP client", seen.replies),
                count("heal-sent", "questions of the TCP client", seen.sent),
                count("heal-doubled", "replies doubled", seen.doubled),
                count("heal-gaps", "gaps in the counter", seen.counter_gaps),
            ],
        );
        Ok(())
    }
}

/// In words, the one copy of the VM that runs and the one that the returned host has, once that has
/// given way; none before.
fn copies(all: &[VmView], lost: &str) -> Option<String> {
    let is_running = |vm: &&VmView| vm.name == VM && vm.state == VmStateView::Running;
    let is_old = |vm: &&VmView| vm.host == lost && vm.name.starts_with(VM);
    let running: Vec<&VmView> = all.iter().filter(is_running).collect();
    let old: Vec<&VmView> = all.iter().filter(is_old).collect();
    let ([one], [old]) = (&running[..], &old[..]) else {
        return None;
    };
    let gave_way = matches!(old.state, VmStateView::Branch | VmStateView::Leftover);
    let text = || {
        format!(
            "1, on {}; {} on {lost} is a {}",
            one.host, old.name, old.state
        )
    };
    gave_way.then(text)
}
