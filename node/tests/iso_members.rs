//! Appliances as members: installed on a disk, cloned with their state, and with guests that boot
//! in them and move out and in. `make test-iso` runs it.

mod common;
mod iso_machine;

use common::{lab, network, public_sites};
use iso_machine::{Firmware, MEMBER, Machine, is_pinged, iso, plain_host, with_command_line};
use p2pvm_api::{VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Both tell their own twice a minute; then the later one is invited and starts again, which takes
/// a while where QEMU translates.
const SETTLED: Duration = Duration::from_secs(400);

fn drive(disk: &Path) -> Vec<String> {
    vec![
        "-drive".into(),
        format!("if=virtio,format=raw,file={}", disk.display()),
    ]
}

/// The names of all members that `a` sees.
fn names(lab: &Lab) -> BTreeSet<String> {
    let peers = lab.peers("a").unwrap_or_default();
    peers.into_iter().map(|peer| peer.name).collect()
}

#[test]
fn a_machine_installs_unattended_by_command_line_boots_from_its_disk_as_the_same_member_and_a_clone_becomes_another()
 {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-install");
    let invite = lab.invite("a", 1).unwrap();
    let (disk, clone) = (dir.path().join("disk"), dir.path().join("clone"));
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    let words = format!("p2pvm.install=/dev/vda p2pvm.name=attic p2pvm.join={invite}");
    let medium = [with_command_line(&iso, dir.path(), &words), drive(&disk)].concat();
    let mut machine = Machine::on(
        dir.path(),
        "install",
        Firmware::Bios,
        &medium,
        Some((&lab, "b")),
    );
    machine.wait("boots by itself from now on");
    machine.wait("joining by p2pvm.join=");
    is_pinged(&lab, &mut machine, "attic");
    machine.off();

    // From the disk alone, under the other firmware, the invite long used up.
    let mut machine = Machine::on(
        dir.path(),
        "installed",
        Firmware::Uefi,
        &drive(&disk),
        Some((&lab, "b")),
    );
    machine.wait("identity and VMs are on /dev/vda3");
    machine.wait("this machine is a member already");
    is_pinged(&lab, &mut machine, "attic");
    machine.off();

    // A disk that was copied with the state on it: two machines say that they are attic.
    fs::copy(&disk, &clone).unwrap();
    let mut elder = Machine::on(
        dir.path(),
        "elder",
        Firmware::Bios,
        &drive(&disk),
        Some((&lab, "b")),
    );
    is_pinged(&lab, &mut elder, "attic");
    let mut later = Machine::on(
        dir.path(),
        "later",
        Firmware::Bios,
        &drive(&clone),
        Some((&lab, "c")),
    );
    later.wait("this machine is a member already");
    let began = Instant::now();
    let new = lab
        .wait(
            "the clone to be a member of its own",
            SETTLED,
            Duration::from_secs(2),
            || {
                let all = names(&lab);
                let new = all.iter().find(|name| name.starts_with("attic-"));
                Ok(new.filter(|_| all.contains("attic")).cloned())
            },
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}\n{:?}\n{}\n{}\n{}",
                chain(&e),
                names(&lab),
                lab.log_tail("a", 30),
                elder.serial.all(),
                later.serial.all()
            )
        });
    println!(
        "{new}: a member of its own {} s after the clone's daemon started",
        began.elapsed().as_secs()
    );
    later.wait(&format!(" {new} "));
    is_pinged(&lab, &mut later, &new);
    is_pinged(&lab, &mut elder, "attic");
    drop((elder, later));
    lab.down().unwrap();
}

/// A guest within an appliance within QEMU is translated twice: it boots in two to three minutes
/// where nothing else runs.
const GUEST_LIMIT: Duration = Duration::from_secs(900);
/// With 64M the guest image resets before its kernel's first word, over and over again, on any
/// host.
const GUEST_MEMORY: &str = "128M";
/// For a machine that has a guest as well. With one processor a guest that boots there gets no
/// further than its kernel's first steps: QEMU's own threads and the guest's keep each other
/// waiting.
const WITH_GUEST: [&str; 4] = ["-m", "1024", "-smp", "2"];
/// The guest image that every appliance has.
const GUEST_IMAGE: &str = "/usr/lib/p2pvm/guest.qcow2";

/// Switches an appliance on that is told its network and name on the kernel command line.
fn joining(lab: &Lab, dir: &Path, iso: &Path, (name, at): (&str, &str), invite: &str) -> Machine {
    let at_kernel = dir.join(name);
    fs::create_dir(&at_kernel).unwrap();
    let mut arguments = with_command_line(
        iso,
        &at_kernel,
        &format!("p2pvm.name={name} p2pvm.join={invite}"),
    );
    arguments.extend(WITH_GUEST.map(str::to_owned));
    Machine::on(dir, name, Firmware::Bios, &arguments, Some((lab, at)))
}

fn moved(lab: &Lab, to: &str) {
    let began = Instant::now();
    let done = lab
        .migrate("a", "web", to)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 60)));
    assert_eq!(done.host, to, "{done:?}");
    println!(
        "web: on {to} after {:.1} s, down {} ms",
        began.elapsed().as_secs_f64(),
        done.downtime_ms
    );
}

#[test]
fn two_appliances_join_and_a_guest_that_is_started_in_one_from_outside_moves_out_and_back_while_a_client_counts()
 {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = lab("iso-guest", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a"]);
    let invite = lab.invite("a", 2).unwrap();
    let mut attic = joining(&lab, dir.path(), &iso, ("attic", "b"), &invite);
    let mut cellar = joining(&lab, dir.path(), &iso, ("cellar", "c"), &invite);
    is_pinged(&lab, &mut attic, "attic");
    is_pinged(&lab, &mut cellar, "cellar");
    assert_ne!(
        attic.wait(MEMBER).0,
        cellar.wait(MEMBER).0,
        "each has an address of its own"
    );

    // A VM's voters are three of the members that its first host is connected with, for its whole
    // life.
    lab.wait(
        "attic to be connected with both others",
        Duration::from_secs(120),
        Duration::from_secs(1),
        || {
            let figures = lab.p2pvm("a", &["metrics", "--all"])?;
            Ok(figures
                .lines()
                .any(|line| line == "p2pvm_control_connections{member=\"attic\"} 2")
                .then_some(()))
        },
    )
    .unwrap_or_else(|e| {
        panic!(
            "{}\n{:?}\n{}",
            chain(&e),
            lab.p2pvm("a", &["metrics", "--all"]),
            attic.serial.all()
        )
    });

    // Made and started there from outside, out of what the appliance has.
    let began = Instant::now();
    let words = [
        "vm",
        "create",
        "web",
        "--on",
        "attic",
        "--image",
        GUEST_IMAGE,
        "--memory",
        GUEST_MEMORY,
        "--start",
    ];
    let made: VmView = lab
        .json("a", &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), attic.serial.all()));
    let found = (made.host.as_str(), &made.state);
    assert_eq!(found, ("attic", &VmStateView::Running), "{made:?}");
    assert_eq!(made.voters.len(), 3, "{made:?}");
    let address = made.address;
    lab.wait_for_guest("a", &address, GUEST_LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), attic.serial.all()));
    println!(
        "web: answers {} s after 'vm create' in an appliance",
        began.elapsed().as_secs()
    );

    // Translated twice, it answers some three lines a second at best: with more than one the
    // backlog would be what counts.
    let client = lab.client("a", &address, 1000).unwrap();
    for to in ["a", "attic"] {
        std::thread::sleep(Duration::from_secs(5));
        moved(&lab, to);
    }
    std::thread::sleep(Duration::from_secs(15));
    let seen = client.finish().unwrap();
    println!("web: {seen:?}");
    assert_eq!(
        (seen.lost, seen.doubled, seen.counter_gaps, &seen.ended),
        (0, 0, 0, &None),
        "{seen:?}"
    );
    assert!(seen.replies > 30, "{seen:?}");

    // Between two emulated machines memory crosses at less than 1 MB/s, for minutes in which the
    // guest hardly answers (docs/appliance.md).
    moved(&lab, "cellar");
    lab.wait_for_guest("a", &address, GUEST_LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), cellar.serial.all()));
    drop((attic, cellar));
    lab.down().unwrap();
}
