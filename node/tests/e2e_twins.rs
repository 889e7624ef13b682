//! A state directory that was copied: both daemons run at once, one of them takes an identity of
//! its own. A restart is no copy.

mod common;

use common::{image, lab, network, public_sites};
use p2pvm_api::{MemberIdText, RevokeAnswer, Status, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

/// Each tells its own every half minute; then the later one stops its guests, is invited and starts
/// again.
const SETTLED: Duration = Duration::from_secs(180);

fn member(lab: &Lab, host: &str) -> MemberIdText {
    lab.status(host).unwrap().member
}

fn address(lab: &Lab, host: &str) -> Option<String> {
    lab.status(host).ok()?.address
}

fn logs(lab: &Lab) -> String {
    ["a", "b", "c"]
        .map(|host| format!("--- {host}\n{}", lab.log_tail(host, 40)))
        .join("\n")
}

/// Copies a host's whole state, as a cloned disk has it, and starts its daemon on the other host.
/// Not before the state says where `knows` is: a copy that knows nobody is alone.
fn clone_state(lab: &Lab, from: &str, to: &str, knows: &str) {
    let (peers, known) = (
        lab.dir(from).unwrap().join("peers.json"),
        member(lab, knows),
    );
    lab.wait(
        "the address book to be written",
        Duration::from_secs(20),
        Duration::from_millis(200),
        || {
            let kept: serde_json::Value =
                serde_json::from_slice(&fs::read(&peers).unwrap_or_default()).unwrap_or_default();
            let at = kept
                .as_array()
                .into_iter()
                .flatten()
                .find(|kept| kept["member"] == *known);
            Ok(at
                .and_then(|kept| kept["addresses"].as_array())
                .filter(|addresses| !addresses.is_empty())
                .map(drop))
        },
    )
    .unwrap();
    let (from, target) = (lab.dir(from).unwrap(), lab.dir(to).unwrap());
    let copied = Command::new("cp")
        .args(["-a", "-T"])
        .arg(&from)
        .arg(&target)
        .status()
        .unwrap();
    assert!(
        copied.success(),
        "copying {} to {}",
        from.display(),
        target.display()
    );
    lab.start(to)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(lab)));
}

/// Waits until the host is another member than `before`, with an address.
fn becomes_another(lab: &Lab, host: &str, before: &str) -> (MemberIdText, String) {
    lab.wait(
        &format!("{host} to be a member of its own"),
        SETTLED,
        Duration::from_secs(1),
        || {
            // Between the two its daemon does not answer.
            let Ok(status) = lab.status(host) else {
                return Ok(None);
            };
            let Status {
                member, address, ..
            } = status;
            Ok(address
                .filter(|_| member.as_str() != before)
                .map(|address| (member, address)))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(lab)))
}

/// Waits until a host sees both members.
fn sees_both(lab: &Lab, host: &str, one: &str, other: &str) {
    lab.wait(
        &format!("{host} to see both"),
        Duration::from_secs(60),
        Duration::from_secs(1),
        || {
            let peers = lab.peers(host)?;
            let sees = |member: &str| peers.iter().any(|p| p.member.as_str() == member);
            Ok((sees(one) && sees(other)).then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(lab)));
}

#[test]
fn of_two_daemons_with_one_state_the_later_gets_its_own_identity() {
    let lab = lab("twins", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b"]);
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
    let guest = made.address;
    lab.wait_for_guest("a", &guest, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(&lab)));
    let (before, at) = (member(&lab, "b"), address(&lab, "b").unwrap());

    let began = Instant::now();
    clone_state(&lab, "b", "c", "a");
    let (new, its_address) = becomes_another(&lab, "c", &before);
    println!(
        "the copy is a member of its own after {} s",
        began.elapsed().as_secs()
    );

    assert_eq!(
        (member(&lab, "b"), address(&lab, "b")),
        (before.clone(), Some(at.clone())),
        "the elder goes on as it was"
    );
    assert_ne!(its_address, at);
    sees_both(&lab, "a", &before, &new);
    for of in [&at, &its_address] {
        let split = Instant::now();
        lab.wait(
            &format!("{of} to answer a directly"),
            Duration::from_secs(60),
            Duration::from_secs(1),
            || {
                Ok(lab
                    .ping("a", of, 1, "1s")
                    .ok()
                    .filter(|seen| seen.path.starts_with("direct")))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(&lab)));
        println!("{of}: direct after {} s", split.elapsed().as_secs());
    }
    // The VM runs once, where it was.
    let at_c = lab.vms("c").unwrap();
    assert!(
        at_c.iter()
            .any(|vm| vm.name == "web-branch-e1" && vm.state == VmStateView::Branch),
        "{at_c:?}"
    );
    lab.wait_for_guest("a", &guest, Duration::from_secs(60))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(&lab)));
    assert_eq!(lab.vm("a", "web").unwrap().host, "b");

    // A member that grew out of a copy of its state falls with it.
    let name = lab.status("c").unwrap().name;
    let said: RevokeAnswer = lab.json("a", &["revoke", &before]).unwrap();
    assert_eq!(said.with, [name]);
    lab.wait(
        "both to be out",
        Duration::from_secs(60),
        Duration::from_secs(1),
        || {
            let peers = lab.peers("a")?;
            let seen = peers.iter().any(|p| p.member == before || p.member == new);
            let ended = ["b", "c"].iter().all(|host| lab.status(host).is_err());
            Ok((!seen && ended).then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), logs(&lab)));
    assert!(
        lab.log_tail("c", 20).contains("has been revoked"),
        "{}",
        logs(&lab)
    );
    lab.down().unwrap();
}

#[test]
fn a_copied_founder_becomes_a_new_member_and_restarts_change_nobody() {
    let lab = lab("twin-root", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b"]);
    let before = member(&lab, "a");
    clone_state(&lab, "a", "c", "b");
    let (new, its_address) = becomes_another(&lab, "c", &before);
    assert_eq!(member(&lab, "a"), before);
    assert_ne!(Some(its_address), address(&lab, "a"));
    sees_both(&lab, "b", &before, &new);
    // A daemon that is killed and starts again, beside what it said before, stays who it is.
    for host in ["a", "c"] {
        lab.kill_daemon(host).unwrap();
        lab.start(host).unwrap();
    }
    std::thread::sleep(Duration::from_secs(75));
    assert_eq!(
        (member(&lab, "a"), member(&lab, "c")),
        (before, new),
        "{}",
        logs(&lab)
    );
    lab.down().unwrap();
}
