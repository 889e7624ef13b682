//! A host that is overloaded sheds a VM by itself, and says why.

mod common;

use common::{image, lab, network, public_sites};
use p2pvm_api::{Explained, VmStateView, VmView};
use p2pvm_lab::chain;
use std::{
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn an_overloaded_host_moves_its_vm_to_an_idle_one_and_explains_it() {
    let lab = lab("hog", &public_sites(&["a", "b", "c"], 10.0));
    for host in ["a", "b", "c"] {
        lab.configure(host, "cpus = 1\nupnp = false\n").unwrap();
    }
    network(&lab, &["a", "b", "c"]);
    let made: VmView = lab
        .json(
            "b",
            &[
                "vm",
                "create",
                "web",
                "--image",
                image(),
                "--memory",
                "128M",
                "--start",
            ],
        )
        .unwrap();
    let address = made.address.as_str();
    lab.wait_for_guest("a", address, Duration::from_secs(90))
        .unwrap();
    let mut hog = Command::new("/bin/sh");
    hog.args(["-c", "while :; do :; done"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut hog = lab.testbed().spawn("b", &mut hog).unwrap();
    let moved = lab.wait(
        "the VM to leave the overloaded host",
        Duration::from_secs(90),
        Duration::from_millis(500),
        || {
            let vm = lab.vm("a", "web")?;
            Ok((vm.host != "b" && vm.state == VmStateView::Running).then_some(()))
        },
    );
    hog.kill().unwrap();
    hog.wait().unwrap();
    moved.unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    lab.wait_for_guest("a", address, Duration::from_secs(15))
        .unwrap();
    let why: Vec<Explained> = lab.json("a", &["explain", "web"]).unwrap();
    assert!(why.iter().any(|e| e.host == "b"), "{why:?}");
    lab.down().unwrap();
}
