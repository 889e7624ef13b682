//! A host's disk fills up while a guest writes: nothing of the guest is lost, everybody is told,
//! records are written, and it goes on by itself when there is room, here or on another member.

mod common;

use common::{console::console, image, lab, network, public_sites, refused, small::Small};
use p2pvm_api::{Health, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{fs, io::Write, path::Path, time::Duration};

/// Lets the guest write so many MiB that do not compress; it says so when all is written.
fn writes(lab: &Lab, host: &str, vm: &str, from_mib: u32, mib: u32) {
    let line = format!(
        "echo be''gun-{from_mib}; dd if=/dev/urandom of=/dev/vda bs=1M seek={from_mib} \
            count={mib} && sync && echo wr''ote-{from_mib}"
    );
    console(lab, host, vm, &line, &format!("begun-{from_mib}"));
}

fn create(lab: &Lab, host: &str, vm: &str) -> String {
    let words = [
        "vm",
        "create",
        vm,
        "--image",
        image(),
        "--memory",
        "128M",
        "--disk",
        "2G",
        "--start",
    ];
    let made: VmView = lab
        .json(host, &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    let address = made.address;
    lab.wait_for_guest("a", &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    address
}

fn is_still(vm: &VmView) -> bool {
    let still = vm.still.as_ref();
    still.is_some_and(|still| still.why == "host disk full")
}

fn until_full(lab: &Lab, host: &str, vm: &str) -> VmView {
    lab.wait(
        "the disk to be full",
        Duration::from_secs(60),
        Duration::from_millis(300),
        || {
            let shown = lab.vm(host, vm)?;
            Ok(is_still(&shown).then_some(shown))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)))
}

/// What nothing more fits beside.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
}

#[test]
fn a_guest_on_a_full_disk_pauses_with_reason_and_loses_nothing() {
    let lab = lab("fulldisk", &public_sites(&["a", "b", "c"], 5.0));
    let dir = lab.dir("b").unwrap();
    let small = Small::at(dir.clone(), 360);
    lab.configure("b", common::SETTINGS).unwrap();
    network(&lab, &["a", "b", "c"]);
    let filler = dir.join("filler");
    let address = create(&lab, "b", "fat");
    let room = nix::sys::statvfs::statvfs(&dir).unwrap();
    let free = room.blocks_available() * room.fragment_size();
    fs::write(
        &filler,
        vec![7; usize::try_from(free - (60 << 20)).unwrap()],
    )
    .unwrap();
    writes(&lab, "b", "fat", 300, 120);
    let shown = until_full(&lab, "b", "fat");
    assert_eq!(shown.state, VmStateView::Paused);
    assert!(
        shown
            .still
            .as_ref()
            .is_some_and(|still| still.needed_bytes > still.free_bytes),
        "{shown:?}"
    );

    // Everybody says so, also from elsewhere.
    for host in ["a", "b"] {
        assert!(
            lab.p2pvm(host, &["vm", "list"])
                .unwrap()
                .contains("paused: host disk full")
        );
        let text = lab.p2pvm(host, &["vm", "show", "fat"]).unwrap();
        assert!(
            text.contains("paused: host disk full") && text.contains("MiB are free at"),
            "{text}"
        );
    }
    let status = lab
        .wait(
            "health to say so",
            Duration::from_secs(10),
            Duration::from_millis(300),
            || {
                let status = lab.status("b")?;
                let is_told = status.health.why.contains("host disk full");
                Ok(is_told.then_some(status))
            },
        )
        .unwrap();
    assert_eq!(status.health.word, Health::Degraded);
    let (_, doctor, _) = lab.try_p2pvm("b", &["doctor"]).unwrap();
    assert!(
        doctor.contains("host disk full")
            && doctor.contains("fat")
            && doctor.contains("vm migrate"),
        "{doctor}"
    );

    // A start ends nothing and says what to do.
    let said = refused(&lab, "b", &["vm", "start", "fat"], 5);
    assert!(
        said.contains("nothing of it is lost") && said.contains("vm migrate fat"),
        "{said}"
    );

    // The daemon starts on the full disk, and votes.
    lab.kill_daemon("b").unwrap();
    lab.start("b")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    // It asks the guest, which it has taken up again, why it stands still.
    lab.wait(
        "the reason again",
        Duration::from_secs(10),
        Duration::from_millis(200),
        || {
            Ok(lab
                .vm("b", "fat")
                .map(|shown| is_still(&shown))?
                .then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let voters: VmView = lab
        .json(
            "a",
            &[
                "vm",
                "create",
                "thin",
                "--image",
                image(),
                "--memory",
                "64M",
            ],
        )
        .unwrap();
    assert!(voters.voters.iter().any(|voter| voter == "b"), "{voters:?}");
    lab.p2pvm("a", &["vm", "delete", "thin"]).unwrap();
    assert!(
        !lab.log_tail("b", 10_000).contains("panicked"),
        "{}",
        lab.log_tail("b", 60)
    );

    // With room it goes on by itself, and its write is whole.
    fs::remove_file(&filler).unwrap();
    console(&lab, "b", "fat", "", "wrote-300");
    let shown = lab.vm("b", "fat").unwrap();
    assert_eq!((shown.state, shown.still), (VmStateView::Running, None));

    // Moved away it goes on there.
    writes(&lab, "b", "fat", 500, 300);
    until_full(&lab, "b", "fat");
    fill(&filler);
    let moved = lab
        .migrate("b", "fat", "c")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(moved.host, "c");
    console(&lab, "c", "fat", "", "wrote-500");
    lab.wait_for_guest("a", &address, Duration::from_secs(10))
        .unwrap();
    lab.p2pvm("a", &["vm", "delete", "fat", "--force"]).unwrap();

    // One that stands still is stopped and deleted on the full disk.
    fs::remove_file(&filler).unwrap();
    create(&lab, "b", "fat");
    writes(&lab, "b", "fat", 300, 400);
    until_full(&lab, "b", "fat");
    fill(&filler);
    lab.p2pvm("b", &["vm", "stop", "fat"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    lab.p2pvm("b", &["vm", "delete", "fat"])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    assert_eq!(lab.vms("a").unwrap().len(), 0);
    for host in ["a", "b", "c"] {
        lab.p2pvm(host, &["down"]).unwrap();
    }
    drop(small);
    lab.down().unwrap();
}
