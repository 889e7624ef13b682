//! What a newcomer meets: a command that lacks something says what and spends nothing, names come
//! out usable, every command ends in time, and health says what is so.

mod common;

use common::{SETTINGS, lab, public_sites, refused};
use p2pvm_api::{Health, Joined, Status, VmStateView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

/// The program under test.
const P2PVM: &str = env!("CARGO_BIN_EXE_p2pvm");

/// Runs shell text on a host, where `p2pvm` is the program under test; gives its exit code and all
/// that it said.
fn shell(lab: &Lab, host: &str, text: &str) -> (i32, String) {
    let text = format!("p2pvm() {{ {P2PVM} \"$@\"; }}\n{text}");
    let output = lab.testbed().exec(host, &["sh", "-c", &text]).unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Runs shell text that must be refused with what it lacks; the state directory must be as it was.
fn spends_nothing(lab: &Lab, host: &str, text: &str, lacks: &[&str]) {
    let (code, said) = shell(lab, host, text);
    assert_eq!(code, 5, "{text}: {said}");
    for what in lacks {
        assert!(
            said.contains(what),
            "'{what}' is not in what '{text}' said: {said}"
        );
    }
    let dir = lab.dir(host).unwrap();
    let left: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["node.toml"], "{text} left something");
}

fn health(lab: &Lab, host: &str) -> (Health, Status) {
    let status = lab.status(host).unwrap();
    (status.health.word.clone(), status)
}

fn is_shown(lab: &Lab, by: &str, name: &str) -> bool {
    let peers = lab.peers(by).unwrap();
    peers.iter().any(|peer| peer.name == name)
}

#[test]
fn joining_is_checked_before_the_invite_is_used_and_names_become_usable() {
    let lab = lab("needs", &public_sites(&["a", "b", "c", "d", "e"], 5.0));
    let founded = lab.found("a", "lab").unwrap();
    let invite = lab.invite("a", 1).unwrap();
    let join = format!("p2pvm join {invite}");

    spends_nothing(
        &lab,
        "b",
        &format!("setpriv --reuid 65534 --regid 65534 --clear-groups {P2PVM} join {invite}"),
        &["joining needs root"],
    );
    spends_nothing(
        &lab,
        "b",
        &format!("mount -t tmpfs none /dev/net && {join}"),
        &["there is no /dev/net/tun", "mknod"],
    );
    let nodev = "mount -t tmpfs -o nodev none /dev/net && mknod /dev/net/tun c 10 200";
    spends_nothing(
        &lab,
        "b",
        &format!("{nodev} && {join}"),
        &["/dev/net, which is mounted with nodev", "remount"],
    );
    spends_nothing(
        &lab,
        "b",
        &format!("mount --bind /dev/null /dev/net/tun && {join}"),
        &["not the TUN device"],
    );
    let weak =
        format!("setpriv --bounding-set=-net_admin --inh-caps=-net_admin {P2PVM} join {invite}");
    spends_nothing(
        &lab,
        "b",
        &weak,
        &[
            "CAP_NET_ADMIN",
            "Operation not permitted",
            "--cap-add NET_ADMIN",
        ],
    );
    let held = lab
        .testbed()
        .inside("b", || {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4002)).unwrap()
        })
        .unwrap();
    let by = format!("(process {})", std::process::id());
    spends_nothing(
        &lab,
        "b",
        &join,
        &[
            "UDP port 4002 cannot be bound (used by",
            &by,
            "Address already in use",
        ],
    );
    drop(held);
    let inside = founded.subnet.replace(".0.0/16", ".7.1/24");
    lab.testbed()
        .run(
            "b",
            &[
                "sh",
                "-c",
                &format!(
                    "ip link add lan7 type veth peer name lan7b && ip link \
            set lan7b up && ip addr add {inside} dev lan7 && ip link set lan7 up"
                ),
            ],
        )
        .unwrap();
    spends_nothing(&lab, "b", &join, &["overlaps", "--subnet"]);
    lab.testbed()
        .run("b", &["ip", "link", "del", "lan7"])
        .unwrap();

    // After all that the invite's only use is still there.
    let joined = lab.join("b", &invite).unwrap();
    assert_eq!(joined.status.name, "b");
    let said = refused(&lab, "b", &["join", &invite, "--name", "vault"], 5);
    assert!(
        said.contains("called b") && said.contains("keeps that name"),
        "{said}"
    );
    let again = lab.json::<Joined>("b", &["join", &invite, "--name", "b"]);
    assert_eq!(again.unwrap().status.member, joined.status.member);

    let many = lab.invite("a", 5).unwrap();
    let (code, said) = shell(
        &lab,
        "c",
        &format!("printf ÄÖÜ > /proc/sys/kernel/hostname; p2pvm join {many}"),
    );
    assert!(
        code == 0 && said.contains("aou is a member of lab"),
        "{said}"
    );
    assert!(
        said.contains("note: this machine is called aou in the network, as its host name is 'ÄÖÜ'"),
        "{said}"
    );
    let (code, said) = shell(
        &lab,
        "d",
        &format!("printf äöü > /proc/sys/kernel/hostname; p2pvm join {many}"),
    );
    assert!(
        code == 0 && said.contains("the name aou is taken") && said.contains("aou-"),
        "{said}"
    );
    let festive = "printf 🎉 > /proc/sys/kernel/hostname; p2pvm join";
    let (code, said) = shell(&lab, "e", &format!("{festive} {many} --name aou"));
    assert!(
        code == 5 && said.contains("taken"),
        "a name that was given is not changed: {said}"
    );
    let (code, said) = shell(&lab, "e", &format!("{festive} {many}"));
    assert!(
        code == 0
            && said.contains("note: this machine is called host-")
            && said.contains("its host name is '🎉'"),
        "{said}"
    );
    let said = refused(
        &lab,
        "a",
        &["--dir", "/tmp/never-made", "init", "--network", "a b"],
        2,
    );
    assert!(
        said.contains("'a b' cannot be a network's name") && said.contains("--network"),
        "{said}"
    );
    assert!(!Path::new("/tmp/never-made").exists());
    lab.down().unwrap();
}

#[test]
fn health_doctor_and_commands_say_what_is_so() {
    let lab = lab("truth", &public_sites(&["a", "b", "c"], 5.0));
    common::network(&lab, &["a", "b", "c"]);
    for target in ["b", "B.lab.p2p", "b.lab.p2p."] {
        assert!(
            !lab.ping("a", target, 1, "100ms")
                .unwrap()
                .rtts_ms
                .is_empty(),
            "{target}"
        );
    }
    let v6 = lab.status("b").unwrap().address_v6;
    assert!(
        !lab.ping("a", &v6, 1, "100ms").unwrap().rtts_ms.is_empty(),
        "{v6}"
    );
    let settled = |host: &str, word: Health, seconds| {
        lab.wait(
            &format!("{host} to be {word}"),
            Duration::from_secs(seconds),
            Duration::from_millis(500),
            || Ok((health(&lab, host).0 == word).then_some(())),
        )
        .unwrap_or_else(|e| {
            panic!(
                "{e}: {:?}\n{}",
                health(&lab, host).1,
                lab.log_tail(host, 20)
            )
        });
    };
    settled("b", Health::Ok, 60);

    // A firewall drops what comes in by the overlay's interface: every link is up, and nothing gets
    // through.
    lab.testbed()
        .run(
            "b",
            &[
                "nft",
                "add table inet guard; add chain inet guard in { type filter \
        hook input priority 0; }",
            ],
        )
        .unwrap();
    lab.testbed()
        .run("b", &["nft", "add rule inet guard in iifname p2pvm0 drop"])
        .unwrap();
    let (code, page, _) = lab.try_p2pvm("b", &["doctor"]).unwrap();
    assert!(
        code == 1
            && page
                .lines()
                .any(|line| line.starts_with("path") && line.contains("failed")),
        "{page}"
    );
    assert!(
        page.contains("cannot be reached") && page.contains("nft list ruleset"),
        "{page}"
    );
    let (word, status) = health(&lab, "b");
    assert!(
        word == Health::Degraded && status.findings.iter().any(|found| found.area == "path"),
        "{status:?}"
    );
    let screen = lab.p2pvm("b", &["top", "--once"]).unwrap();
    assert!(screen.contains("degraded"), "{screen}");
    lab.testbed()
        .run("b", &["nft", "delete", "table", "inet", "guard"])
        .unwrap();
    settled("b", Health::Ok, 60);

    // A member that is dead: the ping ends, with the reason and the exit code for it.
    lab.testbed().kill("c").unwrap();
    let began = Instant::now();
    let (code, _, said) = lab.try_p2pvm("a", &["ping", "-c", "1", "c"]).unwrap();
    assert!(
        code == 4 && began.elapsed() < Duration::from_secs(25),
        "{code} after {:?}: {said}",
        began.elapsed()
    );
    assert!(!said.contains("MemberId("), "{said}");
    let began = Instant::now();
    let (code, _, _) = lab
        .try_p2pvm("a", &["ping", "-c", "50", "c", "--timeout", "2s"])
        .unwrap();
    assert!(
        code == 4 && began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    // What a daemon that was killed left is repaired, once.
    let (_, fixed) = shell(&lab, "c", "p2pvm doctor --fix");
    assert!(fixed.contains("api.sock"), "{fixed}");
    let (_, again) = shell(&lab, "c", "p2pvm doctor --fix");
    assert!(
        again.contains("nothing of p2pvm's own needs repair"),
        "{again}"
    );

    // One that leaves is shown no more.
    lab.p2pvm("b", &["leave"]).unwrap();
    lab.wait(
        "a to show b no more",
        Duration::from_secs(10),
        Duration::from_millis(200),
        || Ok((!is_shown(&lab, "a", "b")).then_some(())),
    )
    .unwrap();
    assert!(is_shown(&lab, "a", "c"), "the dead one has not left");
    lab.down().unwrap();
}

#[test]
fn a_daemon_ending_at_once_is_heard_and_long_paths_work() {
    let lab = lab("ends", &public_sites(&["a"], 5.0));
    let long = lab.dir("a").unwrap().join("x".repeat(120));
    let dir = long.to_str().unwrap();
    lab.p2pvm("a", &["--dir", dir, "init", "--network", "lab"])
        .unwrap();
    fs::write(long.join("node.toml"), SETTINGS).unwrap();
    lab.p2pvm("a", &["--dir", dir, "up", "--detach"]).unwrap();
    assert!(
        lab.p2pvm("a", &["--dir", dir, "status", "--json"])
            .map(|said| said.contains("\"lab\""))
            .unwrap()
    );
    lab.p2pvm("a", &["--dir", dir, "down"]).unwrap();
    // A certificate of another identity: the daemon refuses, and `up` says what it said, with its
    // code.
    fs::remove_file(long.join("identity")).unwrap();
    let said = refused(&lab, "a", &["--dir", dir, "up", "--detach"], 5);
    assert!(
        said.contains("the daemon did not start: ") && said.contains("another identity"),
        "{said}"
    );
    lab.down().unwrap();
}

/// What a host's kernel has of p2pvm: interfaces, nft tables, routing rules, processes.
fn left_on(lab: &Lab, host: &str) -> String {
    let (_, kernel) = shell(
        lab,
        host,
        "ip -o link 2>/dev/null | grep -E ' (p2pvm|pv)'; nft list tables | grep p2pvm; ip rule | \
            grep p2pvm",
    );
    let processes = lab.testbed().processes(host).unwrap();
    let ours = |pid: &&i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|words| String::from_utf8_lossy(&words).contains("p2pvm"))
    };
    format!(
        "{kernel}{:?}",
        processes.iter().filter(ours).collect::<Vec<_>>()
    )
}

#[test]
fn every_command_names_a_hanging_daemon_within_seconds_and_force_ends_it() {
    let lab = lab("hangs", &public_sites(&["a", "b"], 5.0));
    common::network(&lab, &["a", "b"]);
    lab.p2pvm(
        "b",
        &[
            "vm",
            "create",
            "web",
            "--image",
            common::image(),
            "--memory",
            "64M",
            "--start",
        ],
    )
    .unwrap();
    // A guest that has just begun to boot hears no power button; --force does not wait for it.
    for (name, words) in [
        ("stopped", &["vm", "stop", "stopped", "--force"][..]),
        ("deleted", &["vm", "delete", "deleted", "--force"]),
    ] {
        lab.p2pvm(
            "b",
            &[
                "vm",
                "create",
                name,
                "--image",
                common::image(),
                "--memory",
                "64M",
                "--start",
            ],
        )
        .unwrap();
        let began = Instant::now();
        lab.p2pvm("b", words).unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{words:?} took {:?}",
            began.elapsed()
        );
    }
    let daemon = || {
        fs::read_to_string(lab.dir("b").unwrap().join("daemon.pid"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let pid = daemon();
    shell(&lab, "b", &format!("kill -STOP {pid}"));
    let timed = |words: &[&str]| {
        let began = Instant::now();
        let (code, out, said) = lab.try_p2pvm("b", words).unwrap();
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(9),
            "{words:?} took {took:?}: {said}"
        );
        (code, format!("{out}{said}"))
    };
    let process = format!("(process {pid})");
    for words in [
        &["status"][..],
        &["peers", "--timeout", "700ms"],
        &["vm", "list"],
        &["down"],
        &["up", "--detach"],
        &["leave"],
    ] {
        let (code, said) = timed(words);
        assert_eq!(code, 4, "{words:?}: {said}");
        for part in [
            process.as_str(),
            "is stopped",
            "kill -CONT",
            "p2pvm down --force",
        ] {
            assert!(said.contains(part), "{words:?}: {said}");
        }
    }
    let (code, said) = timed(&["up"]);
    assert!(
        code == 5 && said.contains("hangs") && said.contains(&process),
        "{said}"
    );
    let began = Instant::now();
    let (code, page, _) = lab.try_p2pvm("b", &["doctor"]).unwrap();
    assert!(
        code == 1 && page.contains("is stopped") && !page.contains("a port of 0"),
        "{page}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );

    // The daemon goes, what it changed on this machine too, and the guest stays.
    let said = lab.p2pvm("b", &["down", "--force"]).unwrap();
    assert!(said.contains(&process) && said.contains("undone"), "{said}");
    assert!(!Path::new(&format!("/proc/{pid}/cwd")).exists());
    assert!(
        !left_on(&lab, "b").contains("p2pvm0"),
        "{}",
        left_on(&lab, "b")
    );
    lab.p2pvm("b", &["up", "--detach"]).unwrap();
    assert_eq!(
        lab.vm("b", "web").unwrap().state,
        VmStateView::Running,
        "it has gone on"
    );

    // Nothing is left of a network that is left, its guests among it.
    shell(&lab, "b", &format!("kill -STOP {}", daemon()));
    let (code, said) = timed(&["leave", "--force"]);
    assert!(
        code == 0 && said.contains("was not told") && said.contains("ended the VMs web"),
        "{said}"
    );
    lab.wait(
        "nothing to be left",
        Duration::from_secs(5),
        Duration::from_millis(200),
        || Ok((left_on(&lab, "b") == "[]").then_some(())),
    )
    .unwrap_or_else(|e| panic!("{}: {}", chain(&e), left_on(&lab, "b")));
    assert!(
        !lab.dir("b").unwrap().join("certificate").exists()
            && !lab.dir("b").unwrap().join("vms").exists()
    );
    lab.down().unwrap();
}
