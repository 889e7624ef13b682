//! The appliance's ISO on every firmware and medium, and in every place where an invite may be.
//! `make test-iso` runs it.

mod common;
mod iso_machine;

use iso_machine::{
    Firmware, MEMBER, Machine, cd, is_pinged, iso, plain_host, stick, with_command_line,
};
use p2pvm_lab::lab::Lab;
use p2pvm_overlay::UnixTime;
use std::{path::Path, process::Command};

/// Waits until a machine that was told nothing is a member of its own network and shows an invite
/// for others.
fn founds_its_own(machine: &mut Machine, name: &str) {
    machine.wait("founded a network of its own");
    let (_, after) = machine.wait(MEMBER);
    println!("{name}: member {} s after power on", after.as_secs());
    machine.wait("in MEMORY");
    machine.wait("forgotten at power-off");
    machine.wait("health   alone");
    let valid = machine.invite().check(UnixTime::now());
    assert!(valid.is_ok(), "{valid:?}");
}

#[test]
fn a_bios_machine_boots_from_cd_into_a_member_with_no_question_asked_and_the_key_j_leads_it_into_another_network()
 {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-bios-cd");
    let mut machine = Machine::on(
        dir.path(),
        "bios-cd",
        Firmware::Bios,
        &cd(&iso),
        Some((&lab, "b")),
    );
    founds_its_own(&mut machine, "bios-cd");
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
}

/// Waits until a machine that was given no name is a member and answers.
fn joins_under_a_name_of_its_own(lab: Lab, mut machine: Machine) {
    let (line, _) = machine.wait("admitted as ");
    let name = line.split("admitted as ").nth(1).unwrap().trim().to_owned();
    is_pinged(&lab, &mut machine, &name);
    drop(machine);
    lab.down().unwrap();
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
fn a_bios_machine_boots_from_a_usb_stick_and_joins_by_the_cloud_init_file_on_another() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
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
    is_pinged(&lab, &mut machine, "attic");
    drop(machine);
    lab.down().unwrap();
}

#[test]
fn a_uefi_machine_boots_from_cd_and_joins_by_its_smbios_serial() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
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
    joins_under_a_name_of_its_own(lab, machine);
}

#[test]
fn a_uefi_machine_boots_from_a_usb_stick_into_a_member_with_no_question_asked() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::on(dir.path(), "uefi-usb", Firmware::Uefi, &stick(&iso), None);
    founds_its_own(&mut machine, "uefi-usb");
}

#[test]
fn a_customized_iso_joins_a_plain_host_over_the_wide_area_and_is_pinged() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lab = plain_host("iso-customized");
    let made = dir.path().join("lab.iso");
    let invite = lab.invite("a", 2).unwrap();
    let (iso, made_text) = (iso.to_string_lossy(), made.to_string_lossy());
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
    joins_under_a_name_of_its_own(lab, machine);
}

#[test]
fn a_bad_invite_is_refused_on_the_console_with_the_reason_and_a_typed_one_leads_into_the_network() {
    let Some(iso) = iso() else { return };
    let dir = tempfile::tempdir().unwrap();
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
    machine.serial.type_keys("exit\r");
    machine.wait("r reboot");
    drop(machine);
    lab.down().unwrap();
}
