//! The appliance's ISO on every firmware and medium, and in every place where an invite may be.
//! `make test-iso` runs it.

mod common;
mod iso_machine;

use common::measured::seconds;
use iso_machine::{
    Firmware, MEMBER, Machine, Reached, cd, is_pinged, iso, measurement, memory, plain_host, sizes,
    stick, with_command_line,
};
use p2pvm_lab::{figures::Figure, lab::Lab};
use p2pvm_overlay::UnixTime;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Waits until a machine that was told nothing is a member of its own network and shows an invite
/// for others; gives how long it took from power on to member.
fn founds_its_own(machine: &mut Machine, name: &str) -> Duration {
    machine.wait("founded a network of its own");
    let (_, after) = machine.wait(MEMBER);
    println!("{name}: member {} s after power on", after.as_secs());
    machine.wait("in MEMORY");
    machine.wait("forgotten at power-off");
    machine.wait("health   alone");
    let valid = machine.invite().check(UnixTime::now());
    assert!(valid.is_ok(), "{valid:?}");
    after
}

/// How long a boot took.
fn boot(name: &str, what: &str, took: Duration) -> Figure {
    let what = format!("power on to member, {what}");
    seconds(&format!("boot-{name}"), &what, &[took])
}

#[test]
fn a_cd_boots_into_a_member_unasked_and_j_joins_another_network() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-bios-cd");
    let mut machine = Machine::on(
        dir.path(),
        "bios-cd",
        Firmware::Bios,
        &cd(&iso),
        Some((&lab, "b")),
    );
    let booted = founds_its_own(&mut machine, "bios-cd");
    let (line, _) = machine.wait(" founded a network of its own");
    let name = line
        .split(", ")
        .nth(1)
        .unwrap_or_else(|| panic!("no name: {line}"))
        .to_owned();

    machine.serial.type_keys("j");
    machine.wait("Join a network");
    machine.serial.type_keys("p2pvm1nonsense\r");
    machine.wait("this is no invite");
    // Control and U empties the line.
    let invite = lab.invite("a", 1).unwrap();
    machine.serial.type_keys(&format!("\x15{invite}\r"));
    machine.wait("Leave it and join 'lab'?");
    machine.serial.type_keys("y");
    machine.wait(&format!("{name} in lab"));
    is_pinged(&lab, &mut machine, &name);
    drop(machine);
    lab.down().unwrap();
    measurement.end(&[boot("bios-cd", "BIOS from CD", booted)]);
}

/// Waits until a machine that was given no name is a member and answers.
fn joins_under_a_name_of_its_own(lab: Lab, mut machine: Machine) -> Reached {
    let (line, _) = machine.wait("admitted as ");
    let name = line.split("admitted as ").nth(1).unwrap().trim().to_owned();
    let reached = is_pinged(&lab, &mut machine, &name);
    drop(machine);
    lab.down().unwrap();
    reached
}

/// A small FAT volume with a label and one file, as a person writes it to a stick.
fn volume(dir: &Path, label: &str, file: &str, text: &str) -> String {
    let (at, content) = (dir.join(label), dir.join(file));
    std::fs::write(&content, text).unwrap();
    std::fs::File::create(&at)
        .unwrap()
        .set_len(1440 << 10)
        .unwrap();
    let run = |command: &mut Command| {
        let output = command
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}: apt-get install dosfstools mtools"));
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(Command::new("/usr/sbin/mkfs.vfat")
        .args(["-n", label])
        .arg(&at));
    run(Command::new("mcopy")
        .arg("-i")
        .arg(&at)
        .arg(&content)
        .arg(format!("::{file}")));
    at.to_string_lossy().into_owned()
}

#[test]
fn a_bios_machine_boots_a_usb_stick_and_joins_by_cloud_init() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-bios-usb");
    let text = format!(
        "#cloud-config\np2pvm:\n  join: {}\n  name: attic\n",
        lab.invite("a", 1).unwrap()
    );
    let drive = format!(
        "if=none,id=seed,format=raw,readonly=on,file={}",
        volume(dir.path(), "CIDATA", "user-data", &text)
    );
    let seed = ["-drive", &drive, "-device", "usb-storage,drive=seed"].map(str::to_owned);
    let medium = [stick(&iso), seed.into()].concat();
    let mut machine = Machine::on(
        dir.path(),
        "bios-usb",
        Firmware::Bios,
        &medium,
        Some((&lab, "b")),
    );
    machine.wait("joining by user-data on the volume CIDATA");
    let reached = is_pinged(&lab, &mut machine, "attic");
    drop(machine);
    lab.down().unwrap();
    let what = "BIOS from USB stick, joining by user-data on another";
    measurement.end(&[boot("bios-usb", what, reached.member)]);
}

#[test]
fn a_uefi_machine_boots_from_cd_and_joins_by_its_smbios_serial() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-uefi-cd");
    let serial = format!("type=1,serial={}", lab.invite("a", 1).unwrap());
    let medium = [cd(&iso), vec!["-smbios".into(), serial]].concat();
    let mut machine = Machine::on(
        dir.path(),
        "uefi-cd",
        Firmware::Uefi,
        &medium,
        Some((&lab, "b")),
    );
    machine.wait("joining by the SMBIOS serial");
    let reached = joins_under_a_name_of_its_own(lab, machine);
    let what = "UEFI from CD, joining by the SMBIOS serial";
    measurement.end(&[boot("uefi-cd", what, reached.member)]);
}

#[test]
fn a_uefi_machine_boots_from_a_usb_stick_without_questions() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let mut machine = Machine::on(dir.path(), "uefi-usb", Firmware::Uefi, &stick(&iso), None);
    let booted = founds_its_own(&mut machine, "uefi-usb");
    machine.off();
    measurement.end(&[boot("uefi-usb", "UEFI from USB stick", booted)]);
}

#[test]
fn a_customized_iso_joins_a_host_over_the_wide_area() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-customized");
    let made = dir.path().join("lab.iso");
    let invite = lab.invite("a", 2).unwrap();
    let (iso, made_text) = (iso.to_string_lossy(), made.to_string_lossy());
    let began = Instant::now();
    lab.p2pvm(
        "a",
        &[
            "iso",
            "customize",
            &iso,
            "--join",
            &invite,
            "-o",
            &made_text,
        ],
    )
    .unwrap();
    let customized = began.elapsed();
    // An ordinary serial is no invite.
    let medium = [
        cd(&made),
        vec!["-smbios".into(), "type=1,serial=4711".into()],
    ]
    .concat();
    let machine = Machine::on(
        dir.path(),
        "customized",
        Firmware::Bios,
        &medium,
        Some((&lab, "b")),
    );
    let reached = joins_under_a_name_of_its_own(lab, machine);
    let round_trip = "round trip to a host 10 ms away over the overlay, through QEMU's NAT";
    let direct = "member to three pings over a direct path";
    measurement.end(&[
        seconds("customize", "writing an invite into an ISO", &[customized]).digits(1),
        boot("customized", "customized ISO from CD, BIOS", reached.member),
        Figure::new("round-trip", round_trip, "ms", reached.rtts_ms).digits(1),
        seconds("direct", direct, &[reached.direct]).of("customized ISO"),
    ]);
}

#[test]
fn the_console_refuses_a_bad_invite_and_joins_by_a_typed_one() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let measurement = measurement();
    let lab = plain_host("iso-refused");
    let medium = with_command_line(
        &iso,
        dir.path(),
        "p2pvm.shell p2pvm.name=attic p2pvm.join=p2pvm1nonsense",
    );
    let mut machine = Machine::on(
        dir.path(),
        "refused",
        Firmware::Bios,
        &medium,
        Some((&lab, "b")),
    );
    machine.wait("Refused: p2pvm.join= on the kernel command line: this is no invite");
    machine.wait("paste another invite");
    assert!(
        !machine.serial.all().contains("founded a network"),
        "it must not found a network instead"
    );
    machine.serial.type_keys("p2pvm1worse\r");
    machine.wait_line("the reason on a line of its own", |line| {
        line.starts_with("this is no invite")
    });
    let invite = lab.invite("a", 1).unwrap();
    machine.serial.type_keys(&format!("{invite}\r"));
    machine.wait("admitted as attic");
    is_pinged(&lab, &mut machine, "attic");

    // The command line also says that a person at the console may have a shell.
    machine.serial.type_keys("s");
    machine.wait("'exit' leads back to the status screen.");
    machine.serial.type_keys("echo $((6 * 7)) of $(hostname)\r");
    machine.wait("42 of attic");
    let memory = memory(&mut machine);
    machine.serial.type_keys("exit\r");
    machine.wait("r reboot");
    drop(machine);
    lab.down().unwrap();
    let figures: Vec<Figure> = sizes(&iso, dir.path()).into_iter().chain(memory).collect();
    measurement.end(&figures);
}
