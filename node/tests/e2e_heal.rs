//! A VM whose host loses its power, or hangs and is cut off, goes on by itself on a member that has
//! a replica of its disk; of the two guests one executes at a time.

mod common;

use common::{FORMER_SETTINGS, console::console, image, lab, network, public_sites};
use p2pvm_api::{Explained, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{fs, path::Path, process::Command, time::Duration};

const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
/// Generous: what is waited for takes a minute, and the machine is busy.
const LIMIT: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_millis(500);

/// Four members that protect VMs, with a running one on b, of which two others are heirs.
fn protected(test: &str) -> (Lab, VmView) {
    let lab = lab(test, &public_sites(&HOSTS, 2.0));
    for host in HOSTS {
        lab.configure(host, FORMER_SETTINGS).unwrap();
    }
    network(&lab, &HOSTS);
    let words = [
        "vm",
        "create",
        "web",
        "--image",
        image(),
        "--memory",
        "128M",
        "--disk",
        "1G",
        "--start",
    ];
    let made: VmView = lab
        .json("b", &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    lab.wait_for_guest("a", &made.address, LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let words = ["vm", "protect", "web", "--replicate-every", "2s"];
    let set: VmView = lab
        .json("a", &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(set.replication.map(|r| r.every_s), Some(2));
    lab.wait("a protected VM with two heirs", LIMIT, STEP, || {
        let found = lab.vm("b", "web")?.protection;
        Ok(found.filter(|p| p.protected && p.heirs.len() == 2))
    })
    .unwrap_or_else(|e| {
        let shown = lab.vm("b", "web").unwrap().protection;
        panic!("{}: {shown:?}\n{}", chain(&e), lab.log_tail("b", 60))
    });
    (lab, made)
}

/// Writes to the guest's disk, and waits until that is in a replica.
fn write_down(lab: &Lab) {
    let line = "echo healed-is-fort''y-two | dd of=/dev/vda bs=1M seek=500 conv=sync && sync && \
        echo do''ne-5";
    console(lab, "b", "web", line, "done-5");
    let rounds = |lab: &Lab| lab.vm("b", "web").unwrap().replication.map(|r| r.rounds);
    let before = rounds(lab).unwrap_or_default();
    lab.wait("a replica of what was written", LIMIT, STEP, || {
        let shown = lab.vm("b", "web")?.replication;
        let is_later = |r: &p2pvm_api::ReplicationView| r.rounds >= before + 2 && r.copies == 2;
        Ok(shown.filter(is_later))
    })
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
}

/// Waits until the VM runs on another member than b; gives that one.
fn heir(lab: &Lab, vm: &VmView) -> String {
    let others = ["a", "c", "d"];
    let found = lab.wait("the VM elsewhere", LIMIT, STEP, || {
        let runs = |host: &&&str| {
            let shown = lab.vms(host).unwrap_or_default();
            shown
                .iter()
                .any(|one| one.name == "web" && one.host == **host && is_running(one))
        };
        Ok(others.iter().find(runs).map(|host| (*host).to_owned()))
    });
    let heir = found.unwrap_or_else(|e| {
        let logs = others.map(|host| lab.log_tail(host, 40));
        panic!("{}\n{}", chain(&e), logs.join("\n--\n"))
    });
    lab.wait_for_guest("a", &vm.address, LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(&heir, 60)));
    heir
}

fn is_running(vm: &VmView) -> bool {
    vm.state == VmStateView::Running
}

/// Waits until b has no more than a branch of the VM.
fn until_branch(lab: &Lab) {
    lab.wait("a branch on b", LIMIT, STEP, || {
        let shown = lab.vms("b")?;
        let on_b: Vec<_> = shown.iter().filter(|vm| vm.host == "b").collect();
        let is_branch = |vm: &&VmView| {
            vm.name.starts_with("web-branch-")
                && matches!(vm.state, VmStateView::Branch | VmStateView::Leftover)
        };
        Ok((!on_b.is_empty() && on_b.iter().all(is_branch)).then_some(()))
    })
    .unwrap_or_else(|e| {
        let shown = lab.p2pvm("b", &["vm", "list"]).unwrap_or_default();
        panic!("{}\n{shown}\n{}", chain(&e), lab.log_tail("b", 60))
    });
}

#[test]
fn a_dead_hosts_vm_goes_on_by_itself_with_its_disk() {
    let (lab, vm) = protected("heal");
    write_down(&lab);
    lab.testbed().kill("b").unwrap();
    let heir = heir(&lab, &vm);
    let line = "dd if=/dev/vda bs=1M skip=500 count=1 2>/dev/null | head -n 1";
    console(&lab, &heir, "web", line, "healed-is-forty-two");
    let told: Vec<Explained> = lab.json(&heir, &["explain", "web"]).unwrap();
    let said = told.iter().any(|one| one.text.contains("disk as of"));
    assert!(said, "{told:?}");
    // The host is back: its copy is a branch, and the VM stays where it went.
    lab.testbed().revive("b").unwrap();
    lab.start("b").unwrap();
    until_branch(&lab);
    let shown = lab.vm("c", "web").unwrap();
    assert_eq!((shown.host, shown.state), (heir, VmStateView::Running));
    lab.down().unwrap();
}

/// The processes of guests on a host.
fn guests(lab: &Lab, host: &str) -> Vec<i32> {
    let all = lab.testbed().processes(host).unwrap();
    let is_guest = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains("qemu-system")
    };
    all.into_iter().filter(is_guest).collect()
}

/// Whether a process executes nothing: its control group is frozen, or it was stopped.
fn stands(pid: i32) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let stopped = read("status").lines().any(|line| {
        line.strip_prefix("State:")
            .is_some_and(|state| state.trim_start().starts_with(['T', 't']))
    });
    let group = read("cgroup");
    let group = group.lines().find_map(|line| line.strip_prefix("0::"));
    let frozen = group.is_some_and(|group| {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .any(|root| {
                let file = Path::new(root)
                    .join(group.trim_start_matches('/'))
                    .join("cgroup.events");
                fs::read_to_string(file).is_ok_and(|text| text.contains("frozen 1"))
            })
    });
    stopped || frozen
}

fn signal(lab: &Lab, host: &str, signal: &str) {
    let file = lab.dir(host).unwrap().join("daemon.pid");
    let pid = fs::read_to_string(file).unwrap();
    let sent = Command::new("kill").args([signal, pid.trim()]).status();
    assert!(sent.unwrap().success(), "kill {signal} {pid}");
}

#[test]
fn a_hung_and_cut_off_hosts_guest_is_frozen_before_another_runs() {
    let (lab, vm) = protected("heal-hung");
    let guest = guests(&lab, "b");
    assert_eq!(guest.len(), 1, "{guest:?}");
    signal(&lab, "b", "-STOP");
    lab.testbed().isolate("b").unwrap();
    lab.wait("a frozen guest", LIMIT, STEP, || {
        let elsewhere = ["a", "c", "d"]
            .iter()
            .any(|host| !guests(&lab, host).is_empty());
        assert!(stands(guest[0]) || !elsewhere, "two guests at once");
        Ok(stands(guest[0]).then_some(()))
    })
    .unwrap();
    let heir = heir(&lab, &vm);
    assert!(stands(guest[0]), "it stays so");
    lab.testbed().rejoin("b").unwrap();
    signal(&lab, "b", "-CONT");
    until_branch(&lab);
    let running = ["a", "c", "d"].map(|host| guests(&lab, host).len());
    assert_eq!(running.iter().sum::<usize>(), 1, "{running:?}");
    let shown = lab.vm("c", "web").unwrap();
    assert_eq!((shown.host, shown.state), (heir, VmStateView::Running));
    lab.down().unwrap();
}
