//! The disk of a running guest is replicated to other members: a round sends what the guest wrote,
//! the recovery point is shown, a restart of the daemon costs one full scan, and a member that has
//! nothing of the VM brings back what was written.

mod common;

use common::{console::console, image, lab, network, public_sites, refused};
use p2pvm_api::{ReplicationView, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::time::Duration;

/// Generous: a round takes a second or two.
const LIMIT: Duration = Duration::from_secs(90);

/// Lets the guest write so many MiB that do not compress, and waits until they are on its disk.
fn writes(lab: &Lab, host: &str, at_mib: u32, mib: u32) {
    let line = format!(
        "dd if=/dev/urandom of=/dev/vda bs=1M seek={at_mib} count={mib} && sync && echo \
            wr''ote-{at_mib}"
    );
    console(lab, host, "web", &line, &format!("wrote-{at_mib}"));
}

fn replication(lab: &Lab, host: &str) -> Option<ReplicationView> {
    lab.vm(host, "web").unwrap().replication
}

/// Waits until a replica is whole at two members of which `is_it` holds.
fn until(lab: &Lab, what: &str, is_it: impl Fn(&ReplicationView) -> bool) -> ReplicationView {
    lab.wait(what, LIMIT, Duration::from_millis(300), || {
        let shown = lab.vm("b", "web")?.replication;
        Ok(shown.filter(|r| r.rpo_s.is_some() && r.copies == 2 && is_it(r)))
    })
    .unwrap_or_else(|e| {
        let shown = replication(lab, "b");
        panic!("{}: {shown:?}\n{}", chain(&e), lab.log_tail("b", 60))
    })
}

/// A VM on b that answers.
fn create(lab: &Lab) {
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
    lab.wait_for_guest("a", &made.address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
}

/// The VM's host dies, and another member has what was written last.
fn comes_back(lab: &Lab) {
    lab.testbed().kill("b").unwrap();
    let restored: VmView = lab
        .json("d", &["vm", "restore", "web@replica", "--force"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("d", 60)));
    assert_eq!(restored.state, VmStateView::Running);
    lab.wait_for_guest("a", &restored.address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("d", 60)));
    let line = "dd if=/dev/vda bs=1M skip=500 count=1 2>/dev/null | head -n 1";
    console(lab, "d", "web", line, "replica-is-forty-two");
}

#[test]
fn a_running_disk_is_replicated_and_comes_back_elsewhere() {
    let lab = lab("replica", &public_sites(&["a", "b", "c", "d"], 5.0));
    network(&lab, &["a", "b", "c", "d"]);
    create(&lab);
    assert_eq!(replication(&lab, "b"), None, "nobody asked for replicas");
    writes(&lab, "b", 300, 24);

    let every_flush = ["vm", "replicate", "web", "--every", "0s"];
    assert!(refused(&lab, "b", &every_flush, 5).contains("every flush"));
    // Asked of a member that does not have it: the request finds its way.
    let set: VmView = lab
        .json("a", &["vm", "replicate", "web", "--every", "2s"])
        .unwrap();
    assert_eq!(set.replication.map(|r| r.every_s), Some(2));
    let first = until(&lab, "the first replica", |_| true);
    assert!(first.new_bytes > 24 << 20, "all of the disk: {first:?}");
    assert!(first.text.starts_with("RPO "), "{first:?}");
    let listed = lab.p2pvm("c", &["vm", "list"]).unwrap();
    assert!(listed.contains("REPLICA"), "{listed}");
    assert!(listed.contains("RPO "), "{listed}");

    // What a round sends is what the guest wrote since.
    writes(&lab, "b", 400, 3);
    let written = |r: &ReplicationView| r.new_bytes >= first.new_bytes + (3 << 20);
    let second = until(&lab, "a replica of what was written", written);
    let sent = second.new_bytes - first.new_bytes;
    assert!(sent < 12 << 20, "{sent} bytes for 3 MiB: {second:?}");

    // The daemon's end takes the knowledge of the last round with it: one full scan, which sends
    // nothing that the holders have.
    lab.kill_daemon("b").unwrap();
    lab.start("b").unwrap();
    let line = "echo replica-is-fort''y-two | dd of=/dev/vda bs=1M seek=500 && sync && \
        echo do''ne-5";
    console(&lab, "b", "web", line, "done-5");
    let again = until(&lab, "replicas after a restart", |r| r.rounds >= 2);
    assert!(again.new_bytes < 12 << 20, "{again:?}");
    let figures = lab.p2pvm("b", &["metrics"]).unwrap();
    assert!(figures.contains("p2pvm_vm_rpo_seconds"), "{figures}");

    // Two rounds later all of it is in the newest replica; then the plug is pulled.
    let rounds = again.rounds + 2;
    until(&lab, "two more looks at the disk", |r| r.rounds >= rounds);
    comes_back(&lab);
    lab.down().unwrap();
}
