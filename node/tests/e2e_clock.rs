//! A wall clock that is wrong, or jumps while the daemon runs: Debian's libfaketime shifts it for
//! one daemon, the monotonic clocks stay. Packets, names and leases survive, and nothing floods the
//! log.

mod common;

use common::{dig, lab, network, public_sites};
use p2pvm_lab::{chain, lab::Lab};
use std::{fs, path::Path, path::PathBuf, time::Duration};

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Lines that a daemon may say of one change.
const FEW_WARNINGS: usize = 8;

/// The file that says how the host's clock is wrong.
fn shift_file(lab: &Lab, host: &str) -> PathBuf {
    lab.dir(host).unwrap().join("clock-shift")
}

/// Runs `p2pvm WORDS` on a host whose clock is wrong.
fn shifted(lab: &Lab, host: &str, words: &[&str]) -> (i32, String) {
    let program = std::env::var("P2PVM_TEST_PROGRAM")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_p2pvm").to_owned());
    let file = format!(
        "FAKETIME_TIMESTAMP_FILE={}",
        shift_file(lab, host).display()
    );
    let preload = format!("LD_PRELOAD={FAKETIME}");
    let mut argv = vec![
        "env",
        &*preload,
        &*file,
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_NO_CACHE=1",
        "NO_FAKE_STAT=1",
    ];
    argv.extend([&*program, "--json"]);
    argv.extend(words);
    let output = lab.testbed().exec(host, &argv).unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), said)
}

fn set_clock(lab: &Lab, host: &str, shift: &str) {
    let file = shift_file(lab, host);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, format!("{shift}\n")).unwrap();
}

fn warnings(lab: &Lab, host: &str) -> usize {
    let log = fs::read_to_string(lab.dir(host).unwrap().join("daemon.log")).unwrap_or_default();
    log.lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
        .count()
}

fn address(lab: &Lab, host: &str) -> Option<String> {
    lab.status(host).ok()?.address
}

/// Packets both ways by address, and names both ways.
fn assert_whole(lab: &Lab, what: &str, own: &str, other: &str) {
    let logs = || {
        format!(
            "{what}\n-- wrong\n{}\n-- a\n{}",
            lab.log_tail("wrong", 30),
            lab.log_tail("a", 20)
        )
    };
    assert_eq!(address(lab, "wrong").as_deref(), Some(own), "{}", logs());
    for (from, to) in [("a", own), ("wrong", other)] {
        // After a start anew the other side notices within some seconds that its link is dead.
        lab.wait(
            &format!("an answer of {to} to {from}"),
            Duration::from_secs(15),
            Duration::from_millis(200),
            || {
                Ok(lab
                    .testbed()
                    .exec(from, &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", to])?
                    .status
                    .success()
                    .then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs()));
    }
    let found = |from: &str, server: &str, name: &str, wanted: &str| {
        lab.wait(
            &format!("{name} to be found from {from}"),
            Duration::from_secs(20),
            Duration::from_millis(500),
            || {
                Ok((dig(lab, from, server, name)
                    .map(|ip| ip.to_string())
                    .as_deref()
                    == Some(wanted))
                .then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs()));
    };
    found("a", other, "wrong.lab.p2p", own);
    found("wrong", own, "a.lab.p2p", other);
}

#[test]
fn a_wrong_or_jumping_clock_costs_no_packet_name_or_address() {
    if !Path::new(FAKETIME).exists() {
        panic!("{FAKETIME} is missing: apt-get install libfaketime");
    }
    let lab = lab("clock", &public_sites(&["a", "b", "wrong"], 10.0));
    network(&lab, &["a", "b"]);
    let invite = lab.invite("a", 1).unwrap();
    // A day ahead, the fresh invite has expired by the clock of the machine that joins.
    set_clock(&lab, "wrong", "+1d");
    let (code, said) = shifted(&lab, "wrong", &["join", &invite]);
    assert_eq!(code, 0, "{said}\n{}", lab.log_tail("wrong", 40));
    assert!(said.contains("is 1 d ahead of"), "{said}");
    let (own, other) = (
        address(&lab, "wrong").expect("an address"),
        address(&lab, "a").unwrap(),
    );
    assert_whole(&lab, "a day ahead", &own, &other);
    let before = [warnings(&lab, "wrong"), warnings(&lab, "a")];
    assert!(before[0] <= FEW_WARNINGS, "{}", lab.log_tail("wrong", 60));
    for shift in ["-1d", "+730d", "-20700d", "+0"] {
        set_clock(&lab, "wrong", shift);
        // What others remember of a name for a while has to be asked for anew.
        std::thread::sleep(Duration::from_secs(10));
        assert_whole(&lab, shift, &own, &other);
    }
    for (host, before) in ["wrong", "a"].iter().zip(before) {
        let new = warnings(&lab, host) - before;
        assert!(
            new <= FEW_WARNINGS,
            "{new} warnings on {host}\n{}",
            lab.log_tail(host, 80)
        );
    }
    lab.down().unwrap();
}

#[test]
fn a_member_years_ahead_is_heard_after_its_clock_is_corrected() {
    let lab = lab("ahead", &public_sites(&["a", "b", "wrong"], 10.0));
    network(&lab, &["a", "b"]);
    let invite = lab.invite("a", 1).unwrap();
    set_clock(&lab, "wrong", "+730d");
    let (code, said) = shifted(&lab, "wrong", &["join", &invite]);
    assert_eq!(code, 0, "{said}\n{}", lab.log_tail("wrong", 40));
    let (own, other) = (
        address(&lab, "wrong").expect("an address"),
        address(&lab, "a").unwrap(),
    );
    assert_whole(&lab, "two years ahead", &own, &other);
    for shift in ["+0", "-20700d", "+730d"] {
        shifted(&lab, "wrong", &["down"]);
        set_clock(&lab, "wrong", shift);
        let (code, said) = shifted(&lab, "wrong", &["up", "--detach"]);
        assert_eq!(code, 0, "{shift}: {said}\n{}", lab.log_tail("wrong", 40));
        assert_whole(&lab, shift, &own, &other);
    }
    lab.down().unwrap();
}
