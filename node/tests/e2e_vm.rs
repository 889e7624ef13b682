//! The life of a VM over several hosts, with real guests.

mod common;

use common::{assert_unbroken, image, lab, network, public_sites, refused, small::Small};
use p2pvm_api::{DrainAnswer, SnapshotState, SnapshotTaken, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab, sites::Properties};
use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn create(lab: &Lab, host: &str) -> String {
    create_from(lab, host, image())
}

fn create_from(lab: &Lab, host: &str, image: &str) -> String {
    let made: VmView = lab
        .json(
            host,
            &[
                "vm", "create", "web", "--image", image, "--memory", "128M", "--start",
            ],
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    let address = made.address;
    lab.wait_for_guest("a", &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    address
}

fn show(lab: &Lab, host: &str) -> VmView {
    lab.vm(host, "web").unwrap()
}

#[test]
fn a_vm_moves_live_and_is_found_by_name_everywhere() {
    let lab = lab("move", &public_sites(&["a", "b", "c"], 20.0));
    network(&lab, &["a", "b", "c"]);
    let address = create(&lab, "b");
    assert!(refused(&lab, "c", &["vm", "create", "web", "--image", image()], 5).contains("web"));
    let client = lab.client("a", &address, 10).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    // Asked of a member that does not have it: the request finds its way.
    let moved = lab
        .migrate("a", "web", "c")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(moved.host, "c");
    std::thread::sleep(Duration::from_secs(2));
    let seen = client.finish().unwrap();
    assert_unbroken(&seen);
    assert!(seen.replies > 100, "{seen:?}");
    let vm = show(&lab, "b");
    assert_eq!((vm.host.as_str(), vm.epoch), ("c", 2));
    let listed = lab.vms("a").unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");

    // And away from a host that is drained.
    let drained: DrainAnswer = lab.json("c", &["drain"]).unwrap();
    assert_eq!(drained.moved.len(), 1);
    assert_ne!(show(&lab, "a").host, "c");
    lab.wait_for_guest("a", &address, Duration::from_secs(10))
        .unwrap();
    let holder = show(&lab, "a").host;
    lab.p2pvm(&holder, &["vm", "stop", "web"]).unwrap();
    lab.p2pvm("a", &["vm", "delete", "web"]).unwrap();
    refused(&lab, "a", &["vm", "show", "web"], 3);
    lab.down().unwrap();
}

#[test]
fn a_killed_daemon_takes_its_running_guest_up_again() {
    let lab = lab("adopt", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let address = create(&lab, "b");
    // Somebody deletes the guest's interface just after it has booted: it is made anew on the
    // descriptor that QEMU holds.
    let taps = lab
        .testbed()
        .run("b", &["sh", "-c", "ls /sys/class/net | grep ^pv"])
        .unwrap();
    lab.testbed()
        .run("b", &["ip", "link", "del", taps.trim()])
        .unwrap();
    lab.wait_for_guest("a", &address, Duration::from_secs(15))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 30)));
    lab.kill_daemon("b").unwrap();
    lab.start("b").unwrap();
    lab.wait_for_guest("a", &address, Duration::from_secs(20))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let vm = show(&lab, "b");
    assert_eq!(
        (vm.state, vm.host.as_str(), vm.epoch),
        (VmStateView::Running, "b", 1)
    );
    lab.down().unwrap();
}

#[test]
fn a_raw_image_boots_and_its_console_shows_and_takes_text() {
    let lab = lab("console", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let raw = lab.dir("b").unwrap().join("guest.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "raw", image()])
        .arg(&raw)
        .status()
        .unwrap();
    assert!(converted.success());
    create_from(&lab, "b", raw.to_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .args(["vm", "console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // From a member that does not run it.
    let mut console = lab.testbed().spawn("a", &mut command).unwrap();
    let (mut keys, mut screen) = (
        console.stdin.take().unwrap(),
        console.stdout.take().unwrap(),
    );
    let reader = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (String::new(), [0u8; 1024]);
        while let Ok(n @ 1..) = screen.read(&mut buffer) {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if seen.contains("answer-42") {
                break;
            }
        }
        seen
    });
    let began = Instant::now();
    while !reader.is_finished() && began.elapsed() < Duration::from_secs(20) {
        keys.write_all(b"\necho answer-$((40+2))\n").unwrap();
        std::thread::sleep(Duration::from_millis(700));
    }
    console.kill().unwrap();
    console.wait().unwrap();
    let seen = reader.join().unwrap();
    assert!(seen.contains("answer-42"), "{seen}");
    lab.down().unwrap();
}

/// Starts `p2pvm vm migrate web --to c` on b and gives the running command.
fn begin_move(lab: &Lab) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .args(["vm", "migrate", "web", "--to", "c"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    lab.testbed().spawn("b", &mut command).unwrap()
}

fn ended(child: std::process::Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_move_that_fails_leaves_the_vm_and_its_connections_whole() {
    let lab = lab("giveup", &public_sites(&["a", "b", "c", "d"], 10.0));
    network(&lab, &["a", "b", "c", "d"]);
    let address = create(&lab, "b");
    // So slow that RAM is under way for a long time.
    let slow = Properties {
        rtt_ms: Some(10.0),
        mbit: Some(30.0),
        ..Properties::default()
    };
    lab.testbed().reshape("b", "c", slow).unwrap();
    let client = lab.client("a", &address, 10).unwrap();

    let given_up = begin_move(&lab);
    std::thread::sleep(Duration::from_secs(5));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(given_up.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let (code, said) = ended(given_up);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cancelled"), "{said}");
    lab.wait(
        "the VM to be free again",
        Duration::from_secs(15),
        Duration::from_millis(300),
        || {
            let vm = lab.vm("b", "web")?;
            let is_at_rest = vm.state == VmStateView::Running && vm.activity.is_none();
            Ok((vm.host == "b" && is_at_rest).then_some(()))
        },
    )
    .unwrap();

    let killed = begin_move(&lab);
    std::thread::sleep(Duration::from_secs(5));
    lab.testbed().kill("c").unwrap();
    let (code, said) = ended(killed);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("still runs on b"), "{said}");

    let moved = lab
        .migrate("b", "web", "d")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(moved.host, "d");
    std::thread::sleep(Duration::from_secs(1));
    let seen = client.finish().unwrap();
    assert_unbroken(&seen);
    lab.down().unwrap();
}

#[test]
fn a_dead_hosts_vm_is_restored_and_its_old_copy_is_fenced() {
    let lab = lab("restore", &public_sites(&["a", "b", "c", "d"], 10.0));
    network(&lab, &["a", "b", "c", "d"]);
    let address = create(&lab, "b");
    let snapshot: SnapshotTaken = lab
        .json("b", &["vm", "snapshot", "web", "--name", "safe"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(snapshot.state, SnapshotState::Durable, "{snapshot:?}");
    assert!(
        refused(&lab, "c", &["vm", "restore", "web@safe"], 5).contains("web"),
        "a running VM is not restored over"
    );

    // The host is cut off, not dead: its guest runs on, and nobody can know.
    lab.testbed().isolate("b").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let (code, _, said) = lab.try_p2pvm("c", &["vm", "restore", "web@safe"]).unwrap();
    assert!(code != 0 && said.contains("--force"), "{code} {said}");
    let restored: VmView = lab
        .json("c", &["vm", "restore", "web@safe", "--force"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("c", 60)));
    assert_eq!((restored.address.as_str(), restored.epoch), (&*address, 2));
    lab.wait_for_guest("a", &address, Duration::from_secs(30))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("c", 60)));

    lab.testbed().rejoin("b").unwrap();
    let branch = lab
        .wait(
            "the old copy to be fenced",
            Duration::from_secs(60),
            Duration::from_millis(500),
            || {
                let listed = lab.vms("b")?;
                Ok(listed
                    .into_iter()
                    .find(|vm| vm.state == VmStateView::Branch))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(branch.name, "web-branch-e1");
    // The one that counts still answers, at the same address.
    lab.wait_for_guest("a", &address, Duration::from_secs(5))
        .unwrap();
    assert_eq!(show(&lab, "a").host, "c");
    lab.down().unwrap();
}

#[test]
fn an_unusable_disk_is_refused_with_the_reason_and_leaves_nothing() {
    let lab = lab("images", &public_sites(&["a", "b"], 5.0));
    let _small = Small::at(lab.dir("b").unwrap(), 96);
    lab.configure("b", common::SETTINGS).unwrap();
    network(&lab, &["a", "b"]);
    let dir = lab.dir("a").unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let half = std::fs::read(image()).unwrap();
    let pipe = dir.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let images = || std::fs::read_dir(dir.join("images")).unwrap().count();
    for (path, said) in [
        (
            file("page.qcow2", b"<!DOCTYPE html><title>404</title>"),
            "web page",
        ),
        (file("packed.qcow2", b"\xfd7zXZ\0xxxxxxxxxxx"), "unxz"),
        (file("half.qcow2", &half[..half.len() / 2]), "not whole"),
        (file("empty.raw", b""), "empty"),
        (pipe.to_str().unwrap().to_owned(), "pipe"),
        ("/dev/zero".to_owned(), "device"),
        ("/nowhere.qcow2".to_owned(), "no image file"),
    ] {
        let (code, out, words) = lab
            .try_p2pvm("a", &["vm", "create", "bad", "--image", &path])
            .unwrap();
        assert!(
            code != 0 && words.contains(said),
            "{path}: {code} {out} {words}"
        );
        assert_eq!(images(), 0, "{path} left an image");
    }
    let said = refused(
        &lab,
        "a",
        &["vm", "create", "bad", "--image", image(), "--disk", "10M"],
        5,
    );
    assert!(said.contains("--disk 49M"), "{said}");
    assert_eq!((images(), lab.vms("a").unwrap().len()), (0, 0));
    let _ = create(&lab, "a");
    // The name is taken now; what came for the VM that is not made is still the other's.
    refused(&lab, "a", &["vm", "create", "web", "--image", image()], 5);
    assert_eq!(images(), 1);

    // A member whose disk is nearly full says so before anything is sent, with the figures.
    let began = Instant::now();
    let (code, _, said) = lab
        .try_p2pvm("a", &["vm", "migrate", "web", "--to", "b"])
        .unwrap();
    assert!(
        code != 0 && said.contains("MiB are needed") && said.contains("MiB are free"),
        "{code}: {said}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "refused late: {:?}",
        began.elapsed()
    );
    assert_eq!(show(&lab, "b").host, "a");
    lab.p2pvm("a", &["vm", "delete", "web", "--force"]).unwrap();
    for host in ["a", "b"] {
        lab.p2pvm(host, &["down"]).unwrap();
    }
    drop(_small);
    lab.down().unwrap();
}
