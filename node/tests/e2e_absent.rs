//! VMs when hosts die, networks are cut, and hosts are emptied: what is listed, what is said, what
//! stays.

mod common;

use common::{image, lab, network, public_sites, refused};
use p2pvm_api::{
    ActivityView, DrainAnswer, Health, HealthView, OfferEnded, OfferView, SnapshotState,
    SnapshotTaken, Undrained,
    VmStateView::{self, Branch, Running, Stopped, Unreachable},
    VmView,
};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    process::Stdio,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(500);

fn create(lab: &Lab, host: &str, name: &str, more: &[&str]) -> VmView {
    let words = [
        &["vm", "create", name, "--image", image(), "--memory", "128M"],
        more,
    ]
    .concat();
    lab.json(host, &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)))
}

/// Each VM's name, state and host, as a member lists them.
fn listed(lab: &Lab, host: &str) -> Vec<(String, VmStateView, String)> {
    let vms = lab.vms(host).unwrap();
    vms.into_iter()
        .map(|vm| (vm.name, vm.state, vm.host))
        .collect()
}

fn three(name: &str, state: VmStateView, host: &str) -> (String, VmStateView, String) {
    (name.to_owned(), state, host.to_owned())
}

fn health(lab: &Lab, host: &str) -> HealthView {
    lab.status(host).unwrap().health
}

#[test]
fn a_dead_hosts_vms_stay_listed_with_advice_until_it_returns() {
    let lab = lab("absent", &public_sites(&["a", "b", "c", "d"], 5.0));
    network(&lab, &["a", "b", "c", "d"]);
    create(&lab, "d", "web", &["--start"]);
    create(&lab, "d", "db", &[]);
    lab.json::<SnapshotTaken>("d", &["vm", "snapshot", "web", "--name", "safe"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("d", 60)));
    let before = listed(&lab, "a");
    assert_eq!(
        before,
        [three("db", Stopped, "d"), three("web", Running, "d")]
    );
    let ok = |host: &str| health(&lab, host).word == Health::Ok;
    lab.wait("a good health", LIMIT, STEP, || Ok(ok("a").then_some(())))
        .unwrap();

    lab.testbed().kill("d").unwrap();
    // At once, also while nobody has noticed the death: they never vanish.
    let died = Instant::now();
    let gone = [
        three("db", Unreachable, "d"),
        three("web", Unreachable, "d"),
    ];
    while died.elapsed() < Duration::from_secs(40) {
        for host in ["a", "b", "c"] {
            assert_eq!(
                listed(&lab, host),
                gone,
                "{host}, {:?} after the death",
                died.elapsed()
            );
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    for host in ["a", "b", "c"] {
        let HealthView { word, why } = health(&lab, host);
        assert!(
            word == Health::Degraded
                && why.starts_with("host d is dead since ")
                && why.ends_with("with VMs db, web"),
            "{host}: {word}: {why}"
        );
    }
    let said = lab.p2pvm("b", &["vm", "list"]).unwrap();
    let line = said
        .lines()
        .find(|line| line.starts_with("host d is dead since "))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains("(last seen)") && line.contains("p2pvm vm show db"),
        "{line}"
    );
    let screen = lab.p2pvm("a", &["top", "--once"]).unwrap();
    assert!(
        screen.contains("degraded: host d is dead since") && screen.contains("unreachable"),
        "{screen}"
    );
    let began = Instant::now();
    let web = lab.vm("c", "web").unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((&web.state, web.host.as_str()), (&Unreachable, "d"));
    let advises = |vm: &VmView, what| vm.advice.as_ref().unwrap().contains(what);
    assert!(
        web.last_seen.is_some() && advises(&web, "p2pvm vm restore web@safe --force"),
        "{web:?}"
    );
    let db = lab.vm("c", "db").unwrap();
    assert!(advises(&db, "it has no snapshot"), "{db:?}");
    let (code, _, said) = lab.try_p2pvm("a", &["vm", "start", "db"]).unwrap();
    assert!(
        code == 4 && said.contains("host d cannot be reached"),
        "{code} {said}"
    );

    lab.testbed().revive("d").unwrap();
    lab.start("d").unwrap();
    lab.wait("its VMs as they were", LIMIT, STEP, || {
        Ok((listed(&lab, "a") == before && listed(&lab, "d") == before).then_some(()))
    })
    .unwrap_or_else(|e| {
        panic!(
            "{}: {:?}\n{}",
            chain(&e),
            listed(&lab, "a"),
            lab.log_tail("d", 60)
        )
    });
    for host in ["a", "b", "c", "d"] {
        lab.wait("a good health again", LIMIT, STEP, || {
            Ok(ok(host).then_some(()))
        })
        .unwrap_or_else(|e| panic!("{}: {:?}", chain(&e), health(&lab, host)));
    }
    lab.down().unwrap();
}

#[test]
fn vms_of_one_name_from_two_halves_live_and_can_be_deleted() {
    let lab = lab("halves", &public_sites(&["a", "b", "c", "d"], 5.0));
    let hosts = ["a", "b", "c", "d"];
    network(&lab, &hosts);
    let pairs = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")];
    pairs
        .iter()
        .for_each(|(x, y)| lab.testbed().cut(x, y).unwrap());
    // Before the cut is noticed nothing can be agreed on, and nothing half-made stays.
    let (code, _, said) = lab
        .try_p2pvm(
            "a",
            &[
                "vm",
                "create",
                "early",
                "--image",
                image(),
                "--memory",
                "64M",
            ],
        )
        .unwrap();
    println!("created at once: {code} {said}");
    let made = |host: &str| {
        lab.wait("a VM in its half", Duration::from_secs(90), STEP, || {
            let (code, _, said) = lab.try_p2pvm(
                host,
                &["vm", "create", "dup", "--image", image(), "--memory", "64M"],
            )?;
            println!("{host}: {code} {said}");
            Ok((code == 0).then_some(()))
        })
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    };
    made("a");
    made("c");
    pairs
        .iter()
        .for_each(|(x, y)| lab.testbed().heal(x, y).unwrap());
    let names = |host: &str| {
        listed(&lab, host)
            .into_iter()
            .filter(|vm| !vm.0.starts_with("early"))
            .collect::<Vec<_>>()
    };
    let both = lab
        .wait(
            "one of them to have another name, everywhere",
            Duration::from_secs(180),
            STEP,
            || {
                let seen: Vec<_> = hosts.iter().map(|host| names(host)).collect();
                let settled = seen.iter().all(|vms| {
                    *vms == seen[0]
                        && vms.len() == 2
                        && vms[0].0 == "dup"
                        && vms[1].0.starts_with("dup-")
                });
                Ok(settled.then(|| seen[0].clone()))
            },
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}: {:?}\n{}\n{}",
                chain(&e),
                hosts.map(names),
                lab.log_tail("a", 60),
                lab.log_tail("c", 60)
            )
        });
    assert!(
        both.iter().all(|vm| vm.1 == Stopped),
        "nothing is arriving: {both:?}"
    );
    let note = lab.vm("b", &both[1].0).unwrap().note.unwrap();
    assert!(note.contains("was called dup"), "{note}");
    for host in hosts {
        assert!(
            listed(&lab, host).iter().all(|vm| vm.1 == Stopped),
            "{:?}",
            listed(&lab, host)
        );
    }
    // From a member that has neither, and by their names.
    for (name, ..) in &both {
        lab.p2pvm("b", &["vm", "delete", name]).unwrap();
    }
    lab.wait("both to be gone", LIMIT, STEP, || {
        Ok(names("d").is_empty().then_some(()))
    })
    .unwrap();
    create(&lab, "d", "dup", &[]);
    lab.down().unwrap();
}

#[test]
fn a_restored_vm_leaves_a_branch_to_delete_only_if_it_ran() {
    let lab = lab("orderly", &public_sites(&["a", "b", "c", "d"], 5.0));
    network(&lab, &["a", "b", "c", "d"]);
    let address = create(&lab, "d", "deb", &["--start"]).address;
    lab.wait_for_guest("a", &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("d", 60)));
    let taken: SnapshotTaken = lab
        .json("d", &["vm", "snapshot", "deb", "--name", "w1"])
        .unwrap();
    assert_eq!(taken.state, SnapshotState::Durable, "{taken:?}");
    lab.p2pvm("d", &["vm", "stop", "deb"]).unwrap();
    let back: VmView = lab
        .json("c", &["vm", "restore", "deb@w1"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("c", 60)));
    assert_eq!((back.host.as_str(), back.state), ("c", Running));
    std::thread::sleep(Duration::from_secs(30));
    for host in ["a", "c", "d"] {
        assert_eq!(listed(&lab, host), [three("deb", Running, "c")], "{host}");
    }
    let metrics = lab.p2pvm("a", &["metrics", "--all"]).unwrap();
    assert!(
        !metrics.contains("state=\"branch\""),
        "the alert is for two that ran: {metrics}"
    );
    lab.wait_for_guest("a", &address, Duration::from_secs(30))
        .unwrap();

    // Now a true conflict: its host is cut off, runs on, and another takes the VM over.
    lab.testbed().isolate("c").unwrap();
    let forced: VmView = lab
        .json("b", &["vm", "restore", "deb@w1", "--force"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(forced.host, "b");
    lab.testbed().rejoin("c").unwrap();
    let branch = lab
        .wait(
            "the copy to be fenced and shown where it lies",
            LIMIT,
            STEP,
            || {
                Ok(listed(&lab, "a")
                    .into_iter()
                    .find(|vm| vm.1 == Branch && vm.2 == "c")
                    .map(|vm| vm.0))
            },
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}: {:?}\n{}",
                chain(&e),
                listed(&lab, "a"),
                lab.log_tail("c", 60)
            )
        });
    assert!(
        lab.p2pvm("a", &["metrics", "--all"])
            .unwrap()
            .contains("state=\"branch\"")
    );
    lab.p2pvm("a", &["vm", "delete", &branch]).unwrap();
    assert_eq!(listed(&lab, "d"), [three("deb", Running, "b")]);
    refused(&lab, "a", &["vm", "delete", &branch], 3);
    lab.down().unwrap();
}

/// A host's owner bounds what guests of others send and receive: what is more is dropped and
/// counted.
fn an_offer_bounds_bandwidth(lab: &Lab, host: &str) {
    let set = |rate: &str| -> OfferView {
        let words = ["offer", "set", "--bandwidth", rate];
        lab.json(host, &words).unwrap()
    };
    let vms = lab.vms(host).unwrap();
    let vm = vms.iter().find(|vm| vm.host == host && vm.state == Running);
    let vm = vm.expect("a guest of another member runs there");
    assert_eq!(vm.bandwidth, None, "{vm:?}");
    assert_eq!(set("1 Mbit").bits_per_second, Some(1_000_000));
    lab.wait("packets that are too many", LIMIT, STEP, || {
        // At once more than the bucket holds.
        let flood = format!("ping -n -l 300 -c 300 -i 0.01 -s 1200 -w 3 {}", vm.address);
        lab.testbed().exec("a", &["sh", "-c", &flood])?;
        let bound = lab.vm(host, &vm.name)?.bandwidth;
        assert_eq!(bound.map(|bound| bound.bits_per_second), Some(1_000_000));
        Ok(bound.filter(|bound| bound.dropped_bytes > 0))
    })
    .unwrap();
    assert_eq!(set("0").bits_per_second, None);
    assert_eq!(lab.vm(host, &vm.name).unwrap().bandwidth, None);
}

/// The offer of a host ends: its guests go, it takes no more, and it may offer again.
fn an_offer_ends(lab: &Lab, host: &str) {
    an_offer_bounds_bandwidth(lab, host);
    let shown = || -> OfferView { lab.json(host, &["offer", "show"]).unwrap() };
    let before = shown();
    assert!(
        before.closed.is_none() && before.used.vms >= 2,
        "{before:?}"
    );
    let ended: OfferEnded = lab
        .json(host, &["offer", "off"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    assert_eq!(ended.moved.len() as u64, before.used.vms, "{ended:?}");
    assert!(
        ended.stopped.is_empty() && ended.kept.is_empty(),
        "{ended:?}"
    );
    let after = shown();
    assert!(after.off && after.tenants.is_empty(), "{after:?}");
    let image = "/usr/lib/p2pvm/guest.qcow2";
    let create = ["vm", "create", "late", "--on", host, "--image", image];
    let (code, _, said) = lab.try_p2pvm("a", &create).unwrap();
    assert!(
        code == 5 && said.contains("its offer is off"),
        "{code} {said}"
    );
    let on: OfferView = lab.json(host, &["offer", "on"]).unwrap();
    assert!(!on.off && on.closed.is_none(), "{on:?}");
}

#[test]
fn draining_moves_two_vms_at_once_and_ctrl_c_lets_them_arrive() {
    let lab = lab("empty", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let names = ["v1", "v2", "v3", "v4", "v5"];
    for name in names {
        create(&lab, "c", name, &["--start"]);
    }
    create(&lab, "c", "off", &[]);
    // Stopped by Ctrl-C while the first move: the rest stays, and is said to.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .args(["--json", "drain"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = lab.testbed().spawn("c", &mut command).unwrap();
    lab.wait("a move", LIMIT, STEP, || {
        let vms = lab.vms("c")?;
        Ok(vms
            .iter()
            .any(|vm| vm.activity == Some(ActivityView::Migrating))
            .then_some(()))
    })
    .unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let done: Undrained =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let (moved, stayed) = (done.answer.moved.len(), &done.answer.stayed);
    assert!(
        (1..=2).contains(&moved) && stayed.len() == names.len() - moved,
        "{done:?}\n{said}"
    );
    assert!(
        stayed
            .iter()
            .all(|vm| vm.why == "not begun: the drain was stopped")
            && done.answer.cancelled,
        "{done:?}"
    );
    assert!(said.contains("'p2pvm drain' goes on with them"), "{said}");
    // Again: what is left goes, what is stopped stays and is named, and a third time finds nothing
    // to do.
    let began = Instant::now();
    let done: DrainAnswer = lab
        .json("c", &["drain"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("c", 60)));
    println!("{} VMs left in {:?}", names.len() - moved, began.elapsed());
    assert_eq!(
        (done.moved.len(), done.stopped[0].as_str()),
        (names.len() - moved, "off"),
        "{done:?}"
    );
    let said = lab.p2pvm("c", &["drain"]).unwrap();
    assert!(said.ends_with("no VM runs here any more"), "{said}");
    let on = |host: &str| {
        listed(&lab, "a")
            .iter()
            .filter(|vm| vm.2 == host && vm.1 == Running)
            .count()
    };
    assert!(
        on("a") >= 2 && on("b") >= 2 && on("c") == 0,
        "spread: {:?}",
        listed(&lab, "a")
    );
    an_offer_ends(&lab, "b");

    // Nobody takes anything: each VM stays with its reason, and the exit code tells.
    for host in ["a", "b"] {
        let names: Vec<_> = listed(&lab, host)
            .into_iter()
            .filter(|vm| vm.2 == host && vm.1 == Running)
            .map(|vm| vm.0)
            .collect();
        for name in names.iter().skip(1) {
            lab.p2pvm(host, &["vm", "delete", name, "--force"]).unwrap();
        }
    }
    lab.p2pvm("b", &["down"]).unwrap();
    lab.p2pvm("c", &["down"]).unwrap();
    let (code, out, said) = lab.try_p2pvm("a", &["drain"]).unwrap();
    assert!(
        code == 1 && out.contains("stays: ") && said.contains("1 VM stays here"),
        "{code} {out} {said}"
    );
    lab.down().unwrap();
}
