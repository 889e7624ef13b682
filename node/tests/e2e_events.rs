//! What happened is written down: a guest whose process is killed runs again by itself, the log
//! lists it, a reader that follows sees it, and the proof of it holds until a byte is changed.

mod common;

use common::{image, lab, network, public_sites, refused};
use p2pvm_api::{EventKind, EventView, RestartWord, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

/// The process of the VM's guest, by the id in its arguments; `None` if there is none.
fn guest_process(vm: &VmView) -> Option<i32> {
    let tag = format!("guest={}-{}", vm.name, &*vm.id);
    let found = fs::read_dir("/proc").unwrap().flatten().find(|process| {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&tag)
    });
    found?.file_name().to_str()?.parse().ok()
}

fn kill(pid: i32) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

/// The events of the VM on b, oldest first.
fn kinds(lab: &Lab) -> Vec<EventKind> {
    let events: Vec<EventView> = lab.json("b", &["events", "--vm", "web"]).unwrap();
    events.into_iter().map(|event| event.kind).collect()
}

/// Waits until the guest has another process than `old` and runs.
fn restarted(lab: &Lab, old: i32) -> i32 {
    lab.wait(
        "the guest to run again",
        Duration::from_secs(60),
        Duration::from_millis(200),
        || {
            let vm = lab.vm("b", "web")?;
            let process = guest_process(&vm).filter(|pid| *pid != old);
            Ok(process.filter(|_| vm.state == VmStateView::Running))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)))
}

/// A running VM on b.
fn create(lab: &Lab) -> VmView {
    let words = "vm create web --memory 128M --start --image";
    let words: Vec<_> = words.split(' ').chain([image()]).collect();
    lab.json("b", &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)))
}

#[test]
fn a_killed_guest_runs_again_and_its_history_is_proved() {
    let lab = lab("events", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let made = create(&lab);
    assert_eq!(made.restart, Some(RestartWord::OnFailure));
    let mut follow = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    follow
        .args(["--json", "events", "--follow", "--kind", "guest-restarted"])
        .env("P2PVM_DIR", lab.dir("b").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut follow = lab.testbed().spawn("b", &mut follow).unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first = guest_process(&made).expect("the guest runs");
    kill(first);
    restarted(&lab, first);
    // What follows ends with the first line: the event of the restart.
    let line = lines.map_while(Result::ok).next().expect("an event");
    let event: EventView = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (event.kind, event.name.as_deref()),
        (EventKind::GuestRestarted, Some("web"))
    );
    follow.kill().unwrap();
    follow.wait().unwrap();
    let seen = kinds(&lab);
    for kind in [
        EventKind::VmCreated,
        EventKind::GuestCrashed,
        EventKind::GuestRestarted,
    ] {
        assert!(seen.contains(&kind), "{kind}: {seen:?}");
    }
    the_log_survives_a_kill(&lab);
    the_proof_holds_until_it_is_changed(&lab);
    lab.down().unwrap();
}

fn the_log_survives_a_kill(lab: &Lab) {
    let before = kinds(lab);
    lab.kill_daemon("b").unwrap();
    lab.start("b").unwrap();
    let after = kinds(lab);
    assert_eq!(after[..before.len()], before[..]);
}

fn the_proof_holds_until_it_is_changed(lab: &Lab) {
    let file = lab.dir("b").unwrap().join("web.proof");
    let path = file.to_str().unwrap();
    lab.p2pvm("b", &["explain", "web", "--proof", path])
        .unwrap();
    // Another member of the network checks it, without its daemon.
    let said = lab.p2pvm("a", &["explain", "--verify", path]).unwrap();
    assert!(said.contains("guest-crashed"), "{said}");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    refused(lab, "a", &["explain", "--verify", path], 5);
}

#[test]
fn a_guest_that_is_never_to_be_restarted_stays_stopped() {
    let lab = lab("never", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let made = create(&lab);
    let set: VmView = lab
        .json("b", &["vm", "set", "web", "--restart", "never"])
        .unwrap();
    assert_eq!(set.restart, Some(RestartWord::Never));
    kill(guest_process(&made).expect("the guest runs"));
    lab.wait(
        "the VM to be stopped with the reason",
        Duration::from_secs(30),
        Duration::from_millis(200),
        || {
            let vm = lab.vm("b", "web")?;
            let told = vm
                .note
                .as_deref()
                .is_some_and(|note| note.contains("process ended"));
            Ok((vm.state == VmStateView::Stopped && told).then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert!(!kinds(&lab).contains(&EventKind::GuestRestarted));
    lab.down().unwrap();
}
