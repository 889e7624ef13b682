//! Appliances as members: installed on a disk, cloned with their state, and with guests that boot
//! in them and move out and in. `make test-iso` runs it.

mod common;
mod iso_machine;

use common::{assert_unbroken, lab, measured::seconds, network, public_sites};
use iso_machine::{
    Firmware, MEMBER, Machine, is_pinged, iso, measurement, plain_host, with_command_line,
};
use p2pvm_api::{VmStateView, VmView};
use p2pvm_lab::{
    chain,
    figures::Figure,
    lab::{CountSummary, Lab},
};
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

/// Waits until the later of two machines with one state is a member of its own; gives its name.
fn becomes_another(lab: &Lab, elder: &Machine, later: &Machine) -> String {
    lab.wait(
        "the clone to be a member of its own",
        SETTLED,
        Duration::from_secs(2),
        || {
            let all = names(lab);
            let new = all.iter().find(|name| name.starts_with("attic-"));
            Ok(new.filter(|_| all.contains("attic")).cloned())
        },
    )
    .unwrap_or_else(|e| {
        panic!(
            "{}\n{:?}\n{}\n{}\n{}",
            chain(&e),
            names(lab),
            lab.log_tail("a", 30),
            elder.serial.all(),
            later.serial.all()
        )
    })
}

#[test]
fn a_machine_installs_unattended_and_its_clone_becomes_another_member() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-install");
    let (b, c) = (Some((&lab, "b")), Some((&lab, "c")));
    let invite = lab.invite("a", 1).unwrap();
    let (disk, clone) = (dir.path().join("disk"), dir.path().join("clone"));
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    let words = format!("p2pvm.install=/dev/vda p2pvm.name=attic p2pvm.join={invite}");
    let medium = [with_command_line(&iso, dir.path(), &words), drive(&disk)].concat();
    let mut machine = Machine::on(dir.path(), "install", Firmware::Bios, &medium, b);
    machine.wait("boots by itself from now on");
    machine.wait("joining by p2pvm.join=");
    let installed = is_pinged(&lab, &mut machine, "attic").member;
    machine.off();

    // From the disk alone, under the other firmware, the invite long used up.
    let mut machine = Machine::on(dir.path(), "installed", Firmware::Uefi, &drive(&disk), b);
    machine.wait("identity and VMs are on /dev/vda3");
    machine.wait("this machine is a member already");
    let booted = is_pinged(&lab, &mut machine, "attic").member;
    machine.off();

    // A disk that was copied with the state on it: two machines say that they are attic.
    fs::copy(&disk, &clone).unwrap();
    let mut elder = Machine::on(dir.path(), "elder", Firmware::Bios, &drive(&disk), b);
    is_pinged(&lab, &mut elder, "attic");
    let mut later = Machine::on(dir.path(), "later", Firmware::Bios, &drive(&clone), c);
    later.wait("this machine is a member already");
    let began = Instant::now();
    let new = becomes_another(&lab, &elder, &later);
    let cloned = began.elapsed();
    later.wait(&format!(" {new} "));
    is_pinged(&lab, &mut later, &new);
    is_pinged(&lab, &mut elder, "attic");
    drop((elder, later));
    lab.down().unwrap();
    let install = "power on to member, installing on a disk on the way";
    let from_disk = "power on to member, UEFI from that disk";
    let clone = "a clone of that disk, from its daemon's start to an identity of its own";
    measurement.end(&[
        seconds("install", install, &[installed]),
        seconds("boot-installed", from_disk, &[booted]),
        seconds("clone", clone, &[cloned]),
    ]);
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

/// Moves the guest; how long that took, and how long the guest was stopped.
fn moved(lab: &Lab, to: &str, name: &str, what: &str) -> [Figure; 2] {
    let began = Instant::now();
    let done = lab
        .migrate("a", "web", to)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 60)));
    assert_eq!(done.host, to, "{done:?}");
    let (stopped, stop) = (format!("{name}-stopped"), format!("{what}: guest stopped"));
    [
        seconds(name, what, &[began.elapsed()]),
        Figure::new(&stopped, &stop, "ms", [done.downtime_ms as f64]),
    ]
}

/// Waits until a VM's first host is connected with both others: its voters are three of the members
/// that this host is connected with, for its whole life.
fn attic_is_connected(lab: &Lab, attic: &Machine) {
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
}

/// Makes a guest in an appliance and starts it, from outside and out of what the appliance has;
/// gives its address once it answers.
fn guest_of_attic(lab: &Lab, attic: &Machine) -> String {
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
    lab.wait_for_guest("a", &made.address, GUEST_LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), attic.serial.all()));
    made.address
}

/// What a client saw of the guest during its moves.
fn client_figures(seen: &CountSummary) -> [Figure; 4] {
    let count = |name: &str, what: &str, count: u64| {
        let what = format!("a client of the guest during both moves: {what}");
        Figure::new(name, &what, "", [count as f64])
    };
    let silence = "a client of the guest during both moves: longest silence";
    [
        count("client-sent", "lines", seen.sent),
        count("client-replies", "replies", seen.replies),
        count("client-doubled", "doubled replies", seen.doubled),
        Figure::new(
            "client-silence",
            silence,
            "s",
            [seen.longest_gap_ms / 1000.0],
        )
        .digits(1),
    ]
}

#[test]
fn a_guest_moves_between_two_appliances_while_a_client_counts() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
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
    attic_is_connected(&lab, &attic);
    let began = Instant::now();
    let address = guest_of_attic(&lab, &attic);
    let start = "a guest of 128 MiB made in an appliance from outside, to its first answer";
    let mut figures = vec![seconds("guest-start", start, &[began.elapsed()])];

    // Translated twice, it answers some three lines a second at best: with more than one the
    // backlog would be what counts.
    let client = lab.client("a", &address, 1000).unwrap();
    for (to, name, what) in [
        ("a", "move-out", "it moves to the plain host"),
        ("attic", "move-back", "and back into the appliance"),
    ] {
        std::thread::sleep(Duration::from_secs(5));
        figures.extend(moved(&lab, to, name, what));
    }
    std::thread::sleep(Duration::from_secs(15));
    let seen = client.finish().unwrap();
    println!("web: {seen:?}");
    assert_unbroken(&seen);
    assert!(seen.replies > 30, "{seen:?}");
    figures.extend(client_figures(&seen));

    // Between two emulated machines memory crosses at less than 1 MB/s, for minutes in which the
    // guest hardly answers (docs/appliance.md).
    let what = "on into the other appliance";
    figures.extend(moved(&lab, "cellar", "move-on", what));
    lab.wait_for_guest("a", &address, GUEST_LIMIT)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), cellar.serial.all()));
    drop((attic, cellar));
    lab.down().unwrap();
    measurement.end(&figures);
}
