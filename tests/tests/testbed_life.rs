//! A testbed leaves nothing behind, however it ends, and its hosts can be killed and revived.

mod testbed_common;

use p2pvm_lab::{Sites, Testbed, keeper::Life, testbed};
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed_common::{name, up};

const PROGRAM: &str = env!("CARGO_BIN_EXE_p2pvm-testbed");
const SITES: &str =
    "[default]\nrtt_ms=2\n[[site]]\nname='a'\nnat='full-cone'\n[[site]]\nname='b'\nhosts=2\n";

/// Namespaces and directories of the testbed that still exist.
fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/run/p2pvm-testbed", "/var/tmp/p2pvm-testbed"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let entry = entry.file_name().into_string().unwrap();
            if entry == name || entry.starts_with(&format!("p2pvm-{name}.")) {
                found.push(entry);
            }
        }
    }
    found
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{what} did not come"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// The program as a user runs it, on testbed `name`.
fn program(name: &str, arguments: &[&str]) -> std::process::Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env("P2PVM_TESTBED", name)
        .output()
        .unwrap()
}

#[test]
fn a_program_on_a_host_sees_a_machine_of_its_own() {
    let testbed = up(SITES);
    let dir = testbed.host("a").unwrap().dir.clone();
    assert_eq!(testbed.run("a", &["hostname"]).unwrap().trim(), "a");
    assert_eq!(
        testbed
            .run("a", &["sh", "-c", "echo $P2PVM_DIR"])
            .unwrap()
            .trim(),
        dir.to_str().unwrap()
    );
    assert!(dir.is_dir());
    assert_eq!(
        testbed
            .run("a", &["ls", "/sys/class/net"])
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["eth0", "lo"]
    );
    let groups = fs::read_dir("/sys/fs/cgroup").unwrap().count();
    assert_eq!(
        testbed
            .run("a", &["ls", "/sys/fs/cgroup"])
            .unwrap()
            .lines()
            .count(),
        groups
    );
    assert_eq!(
        testbed
            .exec("a", &["sh", "-c", "exit 7"])
            .unwrap()
            .status
            .code(),
        Some(7)
    );
    assert!(
        testbed
            .run("a", &["sh", "-c", "echo no good >&2; exit 7"])
            .unwrap_err()
            .to_string()
            .contains("no good")
    );
    assert!(
        testbed
            .exec("nobody", &["true"])
            .unwrap_err()
            .to_string()
            .contains("nobody")
    );
    assert!(
        testbed
            .exec("a", &["/no/such/program"])
            .unwrap_err()
            .to_string()
            .contains("/no/such/program")
    );
}

#[test]
fn a_killed_host_loses_processes_and_network_and_keeps_its_state() {
    let testbed = up(SITES);
    let mut victim = testbed
        .spawn(
            "b1",
            Command::new("sh")
                .args(["-c", "sleep 1000 & sleep 1000"])
                .stdin(Stdio::null()),
        )
        .unwrap();
    let mut other = testbed
        .spawn("b2", Command::new("sleep").arg("1000"))
        .unwrap();
    fs::write(testbed.host("b1").unwrap().dir.join("kept"), "x").unwrap();
    wait_until("the shell's child", || {
        testbed.processes("b1").unwrap().len() == 3
    });
    let killed = testbed.kill("b1").unwrap();
    assert!(killed >= 2, "{killed}");
    assert!(!victim.wait().unwrap().success());
    assert!(testbed.processes("b1").unwrap().is_empty());
    assert!(other.try_wait().unwrap().is_none(), "other hosts go on");
    let target = testbed.host("b2").unwrap().address.to_string();
    let ping = ["ping", "-c", "1", "-W", "1", target.as_str()];
    assert!(!testbed.exec("b1", &ping).unwrap().status.success());
    testbed.revive("b1").unwrap();
    assert!(testbed.exec("b1", &ping).unwrap().status.success());
    assert!(testbed.host("b1").unwrap().dir.join("kept").exists());
    testbed.kill("b2").unwrap();
    other.wait().unwrap();
}

#[test]
fn down_and_drop_leave_no_namespace_process_or_file() {
    for by_drop in [false, true] {
        let testbed = up(SITES);
        let name = testbed.plan().name.clone();
        let mut sleeper = testbed
            .spawn("a", Command::new("sleep").arg("1000"))
            .unwrap();
        assert_eq!(
            leftovers(&name).len(),
            7,
            "three hosts, two routers, two directories: {:?}",
            leftovers(&name)
        );
        if by_drop {
            drop(testbed);
        } else {
            testbed.down().unwrap();
        }
        assert_eq!(leftovers(&name), Vec::<String>::new());
        assert!(!sleeper.wait().unwrap().success());
    }
}

#[test]
fn two_testbeds_of_one_name_are_refused_and_the_first_goes_on() {
    let testbed = up(SITES);
    let name = testbed.plan().name.clone();
    let again = Testbed::up(&Sites::parse(SITES).unwrap(), &name);
    assert!(matches!(again, Err(testbed::Error::Exists(_))));
    assert!(matches!(
        testbed::down(&name),
        Err(testbed::Error::Owned { .. })
    ));
    assert!(testbed.exec("a", &["true"]).unwrap().status.success());
    assert!(Testbed::open("no-such-testbed").is_err());
}

#[test]
fn a_tied_keeper_takes_the_testbed_down_when_its_starter_is_gone() {
    let name = name();
    let sites = Sites::parse(SITES).unwrap();
    let testbed = Testbed::up_by(Path::new(PROGRAM), &[], &sites, &name, Life::Tied).unwrap();
    assert!(testbed.exec("a", &["true"]).unwrap().status.success());
    assert!(testbed.counters().unwrap().len() == 2);
    drop(testbed);
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn what_a_killed_keeper_left_is_removed_by_the_next_up() {
    let (name, next) = (name(), name());
    let sites = Sites::parse(SITES).unwrap();
    let testbed = Testbed::up_by(Path::new(PROGRAM), &[], &sites, &name, Life::Detached).unwrap();
    let mut sleeper = testbed
        .spawn("a", Command::new("sleep").arg("1000"))
        .unwrap();
    let keeper: serde_json::Value = serde_json::from_slice(
        &fs::read(format!("/run/p2pvm-testbed/{name}/keeper.json")).unwrap(),
    )
    .unwrap();
    let pid = keeper["pid"].as_u64().unwrap() as u32;
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
    wait_until("the keeper's end", || !alive(pid));
    assert!(matches!(
        Testbed::open(&name),
        Err(testbed::Error::NotUp(_))
    ));
    // The `up` of another test may be the next one, and still be removing it.
    let second = Testbed::up(&sites, &next).unwrap();
    wait_until("removal", || leftovers(&name).is_empty());
    assert!(!sleeper.wait().unwrap().success());
    second.down().unwrap();
}

#[test]
fn a_keeper_told_to_end_at_any_moment_leaves_nothing() {
    for delay_ms in [0, 5, 20, 60, 150] {
        let name = name();
        let mut keeper = Command::new(PROGRAM)
            .args(["keep", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let sites = serde_json::to_string(&Sites::parse(SITES).unwrap()).unwrap();
        keeper
            .stdin
            .take()
            .unwrap()
            .write_all(format!("{sites}\n").as_bytes())
            .unwrap();
        thread::sleep(Duration::from_millis(delay_ms));
        assert!(
            Command::new("kill")
                .arg(keeper.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        keeper.wait().unwrap();
        assert_eq!(
            leftovers(&name),
            Vec::<String>::new(),
            "after {delay_ms} ms"
        );
    }
}

#[test]
fn a_failure_while_building_leaves_nothing() {
    let name = name();
    // The namespace of the last site exists already.
    assert!(
        Command::new("ip")
            .args(["netns", "add", &format!("p2pvm-{name}.r.b")])
            .status()
            .unwrap()
            .success()
    );
    assert!(Testbed::up(&Sites::parse(SITES).unwrap(), &name).is_err());
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn the_command_line_does_it_all_across_invocations() {
    let name = name();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sites.toml");
    fs::write(&file, SITES).unwrap();
    let ok = |arguments: &[&str]| {
        let output = program(&name, arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ok(&["up", file.to_str().unwrap()]).contains("192.168.1.10"));
    assert_eq!(
        program(&name, &["exec", "a", "--", "sh", "-c", "exit 5"])
            .status
            .code(),
        Some(5)
    );
    let ping = [
        "exec",
        "a",
        "--",
        "ping",
        "-c",
        "1",
        "-W",
        "1",
        "198.18.2.10",
    ];
    ok(&ping);
    ok(&["cut", "a", "b"]);
    assert!(!program(&name, &ping).status.success());
    ok(&["heal", "a", "b"]);
    ok(&ping);
    let status: serde_json::Value = serde_json::from_str(&ok(&["status", "--json"])).unwrap();
    assert_eq!(
        (
            status["hosts"][0]["public"].as_str(),
            status["links"][0]["counters"]["cut"].as_u64()
        ),
        (Some("198.18.1.1"), Some(1))
    );
    ok(&["shape", "a", "b", "--loss", "1"]);
    assert!(!program(&name, &ping).status.success());
    ok(&["kill", "b1"]);
    ok(&["revive", "b1"]);
    ok(&["down"]);
    assert_eq!(leftovers(&name), Vec::<String>::new());
    let again = program(&name, &["down"]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("there is no testbed")
            && !again.status.success()
    );
}

#[test]
fn the_shipped_sites_files_are_right() {
    for file in ["demo.toml", "planetlab.toml"] {
        Sites::load(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../lab/sites")
                .join(file),
        )
        .unwrap();
    }
}
