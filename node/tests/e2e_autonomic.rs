//! A host that is overloaded sheds a VM by itself, and says why.

mod common;

use common::{image, lab, network, overload, public_sites};
use p2pvm_api::{Explained, VmView};
use std::time::Duration;

#[test]
fn an_overloaded_host_moves_its_vm_away_and_explains_it() {
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
    overload(&lab, "b", "a");
    lab.wait_for_guest("a", address, Duration::from_secs(15))
        .unwrap();
    let why: Vec<Explained> = lab.json("a", &["explain", "web"]).unwrap();
    assert!(why.iter().any(|e| e.host == "b"), "{why:?}");
    lab.down().unwrap();
}
