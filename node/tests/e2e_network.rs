//! Addresses, names and paths on the emulated wide area.

mod common;

use common::{dig, lab, network, public_sites};
use p2pvm_lab::chain;
use std::{
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn members_get_addresses_talk_over_them_and_are_found_by_name() {
    let lab = lab("names", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a", "b", "c"]);
    let address = |host: &str| common::address(&lab, host);
    let (a, b, c) = (address("a"), address("b"), address("c"));
    assert!(a != b && b != c && a != c);
    lab.testbed()
        .run("a", &["ping", "-n", "-c", "3", "-W", "3", &c])
        .unwrap();
    lab.testbed()
        .run("b", &["ping", "-n", "-c", "3", "-W", "3", &c])
        .unwrap();
    let v6 = lab.status("b").unwrap().address_v6;
    lab.testbed()
        .run("a", &["ping", "-n", "-c", "3", "-W", "3", &v6])
        .unwrap();
    assert_eq!(
        dig(&lab, "a", &a, "b.lab.p2p").map(|ip| ip.to_string()),
        Some(b)
    );
    assert_eq!(dig(&lab, "a", &a, "nobody.lab.p2p"), None);
    lab.down().unwrap();
}

#[test]
fn a_killed_daemon_returns_with_its_address_without_its_bootstrap() {
    let lab = lab("restart", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a", "b", "c"]);
    let before = lab.status("c").unwrap();
    lab.wait(
        "c to know b",
        Duration::from_secs(10),
        Duration::from_millis(200),
        || Ok(common::is_connected(&lab, "c", "b")?.then_some(())),
    )
    .unwrap();
    // The cache of peers is written within the second.
    std::thread::sleep(Duration::from_secs(1));
    lab.kill_daemon("c").unwrap();
    lab.testbed().kill("a").unwrap();
    let after = lab.start("c").unwrap();
    assert_eq!(before.address, after.address);
    assert_eq!(before.member, after.member);
    assert!(!lab.ping("c", "b", 3, "200ms").unwrap().rtts_ms.is_empty());
    lab.down().unwrap();
}

#[test]
fn ctrl_c_while_a_member_is_waited_for_leaves_no_daemon_behind() {
    let lab = lab("calloff", &public_sites(&["a", "b"], 10.0));
    network(&lab, &["a", "b"]);
    lab.p2pvm("b", &["down"]).unwrap();
    lab.testbed().cut("a", "b").unwrap();
    let mut command = Command::new(lab.program());
    command
        .args(["up", "--detach"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut up = lab.testbed().spawn("b", &mut command).unwrap();
    lab.wait(
        "the daemon",
        Duration::from_secs(10),
        Duration::from_millis(20),
        || Ok((lab.try_p2pvm("b", &["status"])?.0 == 0).then_some(())),
    )
    .unwrap();
    let pid = nix::unistd::Pid::from_raw(up.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut said = String::new();
    up.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("the daemon was ended before it was up"),
        "{said}"
    );
    let (code, _, said) = lab.try_p2pvm("b", &["status"]).unwrap();
    assert!(code != 0 && said.contains("p2pvm up"), "{code} {said}");
    lab.testbed().heal("a", "b").unwrap();

    // Two at once start one daemon, and both wait until it is up.
    let starts = std::thread::scope(|scope| {
        let start = || lab.try_p2pvm("b", &["up", "--detach"]).unwrap();
        let both = [scope.spawn(start), scope.spawn(start)];
        both.map(|started| started.join().unwrap())
    });
    assert!(
        starts
            .iter()
            .all(|(code, out, _)| *code == 0 && out.contains("b in lab")),
        "{starts:?}"
    );
    lab.down().unwrap();
}

#[test]
fn each_kind_of_pair_finds_the_path_that_its_nats_allow() {
    let lab = lab(
        "nats",
        r#"
        seed = 3
        [default]
        rtt_ms = 20
        mbit = 1000
        [[site]]
        name = "pub1"
        [[site]]
        name = "pub2"
        [[site]]
        name = "cone"
        nat = "full-cone"
        [[site]]
        name = "port1"
        nat = "port-restricted"
        [[site]]
        name = "port2"
        nat = "port-restricted"
        [[site]]
        name = "sym"
        nat = "symmetric"
        [[site]]
        name = "noudp"
        udp = false
        "#,
    );
    network(
        &lab,
        &["pub1", "pub2", "cone", "port1", "port2", "sym", "noudp"],
    );
    let path = |from: &str, to: &str, wanted: &str| {
        lab.wait(
            &format!("{from} to {to} by a {wanted} path"),
            Duration::from_secs(25),
            Duration::from_millis(500),
            || {
                let pinged = lab.ping(from, to, 3, "200ms")?;
                Ok(pinged.path.starts_with(wanted).then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(from, 40)));
    };
    path("pub1", "pub2", "direct");
    path("pub2", "cone", "direct");
    path("pub1", "port1", "direct");
    path("port1", "port2", "direct");
    path("pub2", "sym", "direct");
    path("cone", "sym", "direct");
    path("port1", "sym", "relayed via pub");
    path("noudp", "pub1", "stream");
    assert!(
        !lab.ping("noudp", "port1", 4, "300ms")
            .unwrap()
            .rtts_ms
            .is_empty()
    );
    let nat = |host: &str| lab.status(host).unwrap().nat;
    assert_eq!(nat("pub1"), "none");
    assert!(nat("sym").contains("symmetric"), "{}", nat("sym"));
    lab.down().unwrap();
}
